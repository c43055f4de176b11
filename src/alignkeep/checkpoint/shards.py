"""Which shards of a rewritten checkpoint are finished: a journal of what was written, believed only where it is so."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from alignkeep.checkpoint.files import flush
from alignkeep.checkpoint.numbers import memory_of
from alignkeep.checkpoint.parts import append_rows, recover_rows
from alignkeep.checkpoint.reading import stored_bytes
from alignkeep.errors import CheckpointError
from alignkeep.models.headers import TensorEntry, read_headers

JOURNAL = "shards.partial.jsonl"
Change = Literal["copied", "changed", "equal"]


@dataclass(frozen=True, slots=True)
class Written:
    """A tensor as it was written: SHA-256 of its bytes, and whether they are the base's (`copied` without being
    touched, `equal` although an edit was meant to change them) or not (`changed`)."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    change: Change

    @classmethod
    def of(cls, facts: Any) -> Written:
        """From what `asdict` made of it. Raises TypeError or KeyError for anything else."""
        return cls(**{**facts, "shape": tuple(facts["shape"])})


def unfinished(work: Path, name: str) -> Path:
    """Where a shard grows, before it gets its name."""
    return work / f".{name}.{os.getpid()}.tmp"


def close_shard(work: Path, name: str, written: list[Written]) -> None:
    """Flush a shard, look at it again, give it its name and note it in the journal."""
    grown = unfinished(work, name)
    handle = os.open(grown, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    check_headers(read_headers([grown]), written)
    grown.replace(work / name)
    flush(work)
    append_rows(work / JOURNAL, [{"file": name, "tensors": [asdict(tensor) for tensor in written]}])


def finished_shards(work: Path, pool: Executor) -> dict[str, list[Written]]:
    """The shards of an earlier attempt whose every byte is what the journal says; others are to be made again."""
    found: dict[str, list[Written]] = {}
    for row in recover_rows(work / JOURNAL):
        name, written = str(row["file"]), [Written.of(facts) for facts in row["tensors"]]
        try:
            check_hashes(work, written, pool)
        except (CheckpointError, OSError):
            continue
        found[name] = written
    return found


def check_headers(entries: dict[str, TensorEntry], written: Iterable[Written]) -> None:
    """Exactly these tensors are there, in their types and shapes. Raises CheckpointError for the first that is not."""
    rest = dict(entries)
    for tensor in written:
        entry = rest.pop(tensor.name, None)
        if entry is None or (entry.dtype, entry.shape) != (tensor.dtype, tensor.shape):
            seen = "no such tensor" if entry is None else f"{entry.dtype} {list(entry.shape)}"
            raise _fault(f"{tensor.file}: tensor {tensor.name}", seen, f"{tensor.dtype} {list(tensor.shape)}")
    for name, entry in rest.items():
        raise _fault(f"{entry.file}: tensor {name}", "a tensor that was not planned", "the planned ones only")


def check_hashes(folder: Path, written: list[Written], pool: Executor) -> None:
    """The files hold exactly these tensors with these bytes. Raises CheckpointError naming the first that differs."""
    entries = read_headers([folder / name for name in sorted({tensor.file for tensor in written})])
    check_headers(entries, written)
    found = pool.map(sha256_of, [entries[tensor.name] for tensor in written])
    for tensor, digest in zip(written, found, strict=True):
        if digest != tensor.sha256:
            raise _fault(f"{folder / tensor.file}: tensor {tensor.name}", f"sha256 {digest[:12]}...", tensor.sha256)


def sha256_of(entry: TensorEntry) -> str:
    """SHA-256 of a stored tensor's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for piece in stored_bytes(entry):
        digest.update(memory_of(piece))
    return digest.hexdigest()


def _fault(where: str, seen: str, expected: str) -> CheckpointError:
    return CheckpointError(
        where, seen=seen, expected=expected, remedy="give the command that made it again, with --fresh"
    )
