"""What this machine has for the work: versions, devices, memory, disk, extras, and whether the hub can be reached."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from alignkeep.checkpoint.records import versions
from alignkeep.extras import HUB, TRAIN, wanted

# Package to import, and what it is for.
EXTRAS = {
    "trl": "training", "datasets": "data sets of the hub", "vllm": "fast answers", "gguf": "models of llama.cpp",
    "bitsandbytes": "packed weights",
}  # fmt: skip
# Those whose versions decide whether anything works; of the others any later one has done.
_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "trl", "datasets")
_SECONDS = 3.0  # chosen: a hub that answers slower is none to wait for
_GIB = 1 << 30


def examine(folder: Path, *, reach: Callable[[str, int], None] | None = None) -> dict[str, object]:
    """Facts by name, each a text or texts by name. `folder` is where results would go; `reach` connects to a host and
    port and raises OSError where that fails."""
    return {
        "versions": versions(),
        "ranges": _ranges(),
        "devices": _devices(),
        "memory": _memory(),
        "disk": f"{shutil.disk_usage(folder).free / _GIB:.1f} GiB free at {folder}",
        "extras": {name: f"{_there(name)} ({use})" for name, use in EXTRAS.items()},
        "hub": _hub(reach or _connect),
    }


def _ranges() -> dict[str, str]:
    """Whether the versions that are here are among those that the package was tried with."""
    every = {one.name: str(one) for extra in ("", TRAIN, HUB) for one in wanted(extra)}
    return {name: every[name] for name in _LIBRARIES if name in every}


def _there(name: str) -> str:
    return "installed" if find_spec(name) else "not installed"


def _devices() -> list[str]:
    import torch

    found = [f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index}, {facts.name}, {facts.total_memory / _GIB:.1f} GiB")
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        free, whole = (page * os.sysconf(name) / _GIB for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return "not known on this system"
    return f"{free:.1f} of {whole:.1f} GiB free"


def _hub(reach: Callable[[str, int], None]) -> str:
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return "not asked: HF_HUB_OFFLINE is set, local files only"
    parts = urlsplit(address)
    try:
        reach(str(parts.hostname), parts.port or (80 if parts.scheme == "http" else 443))
    except OSError as error:
        return f"{address} cannot be reached ({error}): local files only"
    return f"{address} can be reached"


def _connect(host: str, port: int) -> None:
    with socket.create_connection((host, port), timeout=_SECONDS):
        pass
