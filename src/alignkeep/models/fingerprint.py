"""A model in 64 hexadecimal digits: equal fingerprints mean the same weights, tokenizer, template and base."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import cast

from alignkeep.models.folders import base_of, localise, resolve
from alignkeep.models.headers import load_json

_WHOLE = 64 << 20  # bytes up to which a weight file is read whole; beyond, a change is told by header, ends and time
_END = 1 << 20
_NAMES = ("config.", "generation_config.", "tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_")
_ENDINGS = (".jinja", ".model", ".py", ".safetensors", ".safetensors.index.json")


def fingerprint_model(reference: str, revision: str | None = None, *, with_base: bool = True) -> str:
    """`sha256:...` over everything that decides what the model says.

    Configs, tokenizer and template files count with their content; weights with their content up to 64 MB a file, else
    with first and last megabyte (the header lies in the first), size and time of change. An adapter's includes its
    base's (`with_base`), and not the path to it: a run folder may be moved. A hub id is downloaded first. Raises as
    `resolve` does.
    """
    checkpoint = localise(resolve(reference, revision))
    folder = cast(Path, checkpoint.folder)
    parts = [f"{file.name} {_of_file(file)}" for file in sorted(folder.iterdir()) if _decides(file)]
    if checkpoint.is_adapter:
        config = load_json(folder / "adapter_config.json")
        config.pop("base_model_name_or_path", None)
        parts.append(f"adapter_config.json {_of_text(json.dumps(config, sort_keys=True))}")
        parts.extend([f"base {fingerprint_model(*base_of(folder))}"] if with_base else [])
    return f"sha256:{_of_text('|'.join(parts))}"


def _decides(file: Path) -> bool:
    return file.is_file() and (file.name.startswith(_NAMES) or file.name.endswith(_ENDINGS))


def _of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _of_file(file: Path) -> str:
    size = os.path.getsize(file)
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        if size <= _WHOLE:
            while chunk := stream.read(_END):
                digest.update(chunk)
        else:
            digest.update(stream.read(_END))
            stream.seek(-_END, os.SEEK_END)
            digest.update(stream.read(_END))
            digest.update(f"{size} {os.stat(file).st_mtime_ns}".encode())
    return digest.hexdigest()
