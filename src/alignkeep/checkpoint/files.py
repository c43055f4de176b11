"""Files that are the old ones or the new ones, never half of either: written beside, flushed, renamed."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from alignkeep.checkpoint.listing import TEMPORARY
from alignkeep.errors import DataError, MachineError, RecipeError
from alignkeep.input_files import open_input, read_input

MACHINE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG})
# Libraries that lose the errno on the way: safetensors and tokenizers (Rust), torch's archives, torch's CPU allocator.
_FULL_DISK = (
    "no space left on device", "os error 28", "os error 122", "disk quota exceeded", "file too large", "os error 27",
    "pytorchstreamwriter", "iostream error", "inline_container.cc",
)  # fmt: skip
_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory")
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG})


def notice(line: str) -> None:
    """Say one line on stderr (a library's user hears it from the logger `alignkeep`), from the first process only."""
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger("alignkeep").warning(line)


def says_full_disk(error: BaseException) -> bool:
    """Whether an error without a number tells of a disk that ran full."""
    return any(sign in str(error).lower() for sign in _FULL_DISK)


def says_no_memory(error: BaseException) -> bool:
    """Whether an error without a type of its own tells of memory that ran out."""
    return any(sign in str(error).lower() for sign in _NO_MEMORY)


@contextmanager
def machine_errors(path: Path) -> Iterator[None]:
    """Turn a full or broken disk into a MachineError, and a folder one may not write into a RecipeError."""
    try:
        yield
    except OSError as error:
        if error.errno in MACHINE_ERRNOS:
            raise MachineError(
                str(error.filename or path),
                seen=error.strerror or "a write that failed",
                expected="room and a working disk",
                remedy="free some space and give the same command again: finished work is kept",
            ) from error
        if error.errno in _NOT_ALLOWED:
            raise RecipeError(
                str(error.filename or path),
                seen=error.strerror or "a folder that cannot be written",
                expected="a folder this user may write",
                remedy="choose another --out",
            ) from error
        raise


def write_text(path: Path, text: str) -> Path:
    """Replace `path` by `text` in one step; returns `path`."""
    return write_bytes(path, text.encode("utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> Path:
    """Replace `path` by a safetensors file of torch tensors in one step; returns `path`."""
    from safetensors.torch import save

    data = save(dict(tensors), metadata=dict(metadata))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))  # the library's order is another one every time
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return write_bytes(path, len(text).to_bytes(8, "little") + text + data[8 + length :])


def write_bytes(path: Path, data: bytes) -> Path:
    """Replace `path` by `data` in one step; returns `path`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with machine_errors(path):
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        flush(path.parent)
    return path


def write_json(path: Path, value: object) -> Path:
    """`value` as indented JSON; numbers that are not finite become null."""
    return write_text(path, json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Add rows and flush them to the disk. A last line torn by a kill is cut off first."""
    text = "".join(json.dumps(jsonable(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with machine_errors(path), path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if size and file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(text.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def read_jsonl(path: Path) -> list[dict[str, object]]:
    """Rows written by `append_jsonl`, without a torn last line; no rows where there is no file."""
    if not path.exists():
        return []
    whole, _, _ = read_input(path).rpartition(b"\n")
    return [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]


def read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file of ours. Raises DataError where it holds none; OSError where it is not there."""
    return parse_object(read_input(path), str(path))


def parse_object(data: bytes, where: str) -> dict[str, object]:
    """A JSON object; `where` is the file, or file and line. Raises DataError for anything else."""
    try:
        value = json.loads(data.decode("utf-8"))
        if isinstance(value, dict):
            return value
        cause, seen = None, f"no JSON object (a {type(value).__name__})"
    except (ValueError, RecursionError) as error:
        cause, seen = error, f"no JSON object ({type(error).__name__})"
    raise DataError(
        where,
        seen=seen,
        expected="a file written by alignkeep",
        remedy="run that stage again, the file was changed or cut off",
    ) from cause


def rows_of(path: Path) -> Iterator[tuple[Mapping[str, object], str]]:
    """Every row of a file of JSON lines, and where it stands; none without a file. DataError for a broken row."""
    if not path.exists():
        return
    with open_input(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield parse_object(line, f"{path}:{number}"), f"{path}:{number}"


def jsonable(value: object) -> object:
    """Plain JSON values: NaN and infinities become null, paths and enums their text, tuples lists."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def sweep(folder: Path) -> None:
    """Remove what a kill in the middle of `write_text` left beside its file."""
    for path in folder.rglob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name) and (path.is_symlink() or path.is_file()):
            path.unlink()


def flush_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and itself, to the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            flush(Path(root) / name)
        flush(Path(root))


def flush(path: Path) -> None:
    """Flush one file or folder; a link is left alone."""
    if path.is_symlink():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems do not flush folders
            raise
    finally:
        os.close(handle)
