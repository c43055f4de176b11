"""What a killed run left to go on from, believed only where every byte is the one that was written.

Rows of a log carry a checksum each; a file gets its SHA-256 beside it (`.NAME.sha256`), a folder a list of its files'
within it (`complete`). What does not agree, after a power loss or a change, is said in one line and done again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

from alignkeep.checkpoint.files import append_jsonl, jsonable, notice, write_bytes, write_json, write_text
from alignkeep.checkpoint.listing import files_below, sha256_of_file

SEALED = "complete"
SEAL = re.compile(r"\..+\.sha256")
_CHECK = "check"


def append_rows(log: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Add rows to a log, each with its checksum under `check`, and flush them to the disk."""
    plain: list[Any] = [jsonable(row) for row in rows]
    append_jsonl(log, [{**row, _CHECK: _check_of(row)} for row in plain])


def recover_rows(log: Path) -> list[dict[str, Any]]:
    """The rows of a log that are what was written, without their checksums. Others are taken out of the file, and that
    is said; a last line torn by a kill is nothing to speak of. No rows where there is no file."""
    if not log.exists():
        return []
    *lines, torn = log.read_bytes().split(b"\n")
    rows = [_row_of(line) for line in lines]
    kept = [line + b"\n" for line, row in zip(lines, rows, strict=True) if row is not None]
    damaged = len(lines) - len(kept)
    if damaged:
        notice(f"{log}: {damaged} of {len(lines)} lines are not what was written; what they told of is done again")
    if damaged or torn:
        write_bytes(log, b"".join(kept))
    return [row for row in rows if row is not None]


def seal(part: Path) -> None:
    """Say that a file, or a folder with all that is below it, is written whole."""
    if part.is_dir():
        names = [name for name in files_below(part) if name != SEALED]
        with ThreadPoolExecutor() as pool:
            digests = pool.map(lambda name: sha256_of_file(part / name), names)
        write_json(part / SEALED, dict(zip(names, digests, strict=True)))
    else:
        write_text(_seal_of(part), sha256_of_file(part) + "\n")


def is_whole(part: Path) -> bool:
    """Whether a file or folder is there as it was sealed. One that was sealed and is so no more is spoken of."""
    if not part.exists():
        return False
    fault = _fault_in_folder(part) if part.is_dir() else _fault_in_file(part)
    if fault:
        notice(f"{part}: {fault}; it is made again")
    return fault is None


def _fault_in_file(file: Path) -> str | None:
    seal = _seal_of(file)
    if not seal.is_file():
        return ""  # a kill came before the seal: nothing to speak of
    is_same = seal.read_bytes() == (sha256_of_file(file) + "\n").encode("ascii")
    return None if is_same else "other bytes than were written"


def _fault_in_folder(folder: Path) -> str | None:
    if not (folder / SEALED).is_file():
        return ""
    try:
        listed = json.loads((folder / SEALED).read_bytes())
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, dict):
        return f"its list of files ({SEALED}) cannot be read"
    there = {name for name in files_below(folder) if name != SEALED}
    if there != listed.keys():
        return f"{min(there ^ listed.keys())} is missing or was added"
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda name: sha256_of_file(folder / name), listed)
    changed = [name for name, digest in zip(listed, digests, strict=True) if digest != listed[name]]
    return f"{changed[0]} has other bytes than were written" if changed else None


def _seal_of(file: Path) -> Path:
    return file.with_name(f".{file.name}.sha256")


def _check_of(row: Mapping[str, object]) -> str:
    return sha256(json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")).hexdigest()[:16]


def _row_of(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        return row if isinstance(row, dict) and row.pop(_CHECK, None) == _check_of(row) else None
    except (ValueError, RecursionError):
        return None
