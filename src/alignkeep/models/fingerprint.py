"""A model in 64 hexadecimal digits: equal fingerprints mean the same weights, tokenizer, template and base."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import cast

import xxhash

from alignkeep.models.folders import base_of, localise, resolve, tensor_entries
from alignkeep.models.headers import TensorEntry, load_json

_CHUNK = 1 << 20  # bytes read at a time
_NAMES = ("config.", "generation_config.", "tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_")
_ENDINGS = (".jinja", ".model", ".py")


def fingerprint_model(
    reference: str, revision: str | None = None, *, with_base: bool = True, base: str | None = None
) -> str:
    """`sha256:...` over everything that decides what the model says.

    Configs, tokenizer and template files count with their content. Weights count tensor by tensor, with name, type,
    shape and every byte, and not with how they are cut into files nor what else a header says. An adapter's includes
    its base's (`with_base`; `base` where it names none), and not the path to it: a run folder may be moved. A hub id is
    downloaded first. Raises as `resolve` does.

    All weights are read once (XXH3, several files' tensors at a time); in one process a file that has not changed
    since, by its times, is not read again.
    """
    found = resolve(reference, revision, base=base, with_base=with_base)
    checkpoint = localise(found, with_base=with_base)
    folder = cast(Path, checkpoint.folder)
    parts = [f"{file.name} {_of_text(file.read_bytes())}" for file in sorted(folder.iterdir()) if _decides(file)]
    parts.append(f"weights {_of_weights(folder, adapter=checkpoint.is_adapter)}")
    if checkpoint.is_adapter:
        config = load_json(folder / "adapter_config.json")
        config.pop("base_model_name_or_path", None)
        parts.append(f"adapter_config.json {_of_text(json.dumps(config, sort_keys=True).encode())}")
        parts.extend([f"base {fingerprint_model(*base_of(folder, base))}"] if with_base else [])
    return f"sha256:{_of_text('|'.join(parts).encode())}"


def _decides(file: Path) -> bool:
    return file.is_file() and (file.name.startswith(_NAMES) or file.name.endswith(_ENDINGS))


def _of_text(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _of_weights(folder: Path, *, adapter: bool) -> str:
    entries = tensor_entries(folder, adapter=adapter)
    states = {entry.file: os.stat(entry.file) for entry in entries.values()}

    def line(name: str) -> str:
        entry = entries[name]
        state = states[entry.file]
        return f"{name} {entry.dtype} {entry.shape} {_of_tensor(entry, state.st_mtime_ns, state.st_ctime_ns)}"

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return _of_text("\n".join(pool.map(line, sorted(entries))).encode())


@lru_cache(maxsize=1 << 16)
def _of_tensor(entry: TensorEntry, _changed: int, _status: int) -> str:
    digest = xxhash.xxh3_128()
    left = entry.size
    buffer = memoryview(bytearray(min(_CHUNK, max(left, 1))))
    with entry.file.open("rb", buffering=0) as stream:
        stream.seek(entry.begin)
        while left:
            count = stream.readinto(buffer[: min(_CHUNK, left)])
            if not count:
                break  # shorter than its header says: `resolve` names that, and the digest differs
            digest.update(buffer[:count])
            left -= count
    return digest.hexdigest()
