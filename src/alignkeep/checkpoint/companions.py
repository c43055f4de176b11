"""The files beside the weights: config, generation config, tokenizer and chat template, copied byte for byte."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("*.model", "chat_template*", "*.jinja"),
)
CONFIG = ("config.json", "generation_config.json", "*.py")
INDEX = "model.safetensors.index.json"


def copy_companions(base: Path, work: Path, patterns: Iterable[str]) -> list[str]:
    """Copy the base's files of these patterns into `work`; returns their names."""
    wanted = tuple(patterns)
    names = [
        path.name
        for path in sorted(base.iterdir())
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in wanted)
    ]
    for name in names:
        shutil.copyfile(base / name, work / name)
    return names


def sha256_of_header(path: Path) -> str:
    """SHA-256 of all that stands before the data of a safetensors file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        length = file.read(8)
        return hashlib.sha256(length + file.read(int.from_bytes(length, "little"))).hexdigest()
