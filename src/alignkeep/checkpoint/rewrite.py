"""A checkpoint written again with some of its tensors changed, shard by shard, without loading it.

Every output shard has the header, and so the names, types, shapes and places, of the base's shard; in between stand the
base's own bytes, or another file's, or numbers made piece by piece in float32 and rounded once. Workers share the
tensors of a shard; a shard is flushed and renamed before the journal says so, and a killed run goes on behind the last
shard whose bytes are still what the journal says. Memory does not grow with the checkpoint, nor with a tensor.

The disk space of a shard is claimed before it is written: a full disk is noticed at once, and the file system need not
look for room piece by piece (six times faster on ext4).
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Protocol

import numpy as np

from alignkeep.checkpoint.companions import sha256_of_header
from alignkeep.checkpoint.files import machine_errors, sweep
from alignkeep.checkpoint.numbers import FORMATS, Numbers, is_finite, is_zero, memory_of, round_into
from alignkeep.checkpoint.reading import COPY_BYTES, StoredBytes, stored_bytes
from alignkeep.checkpoint.shards import Change, Written, close_shard, finished_shards, unfinished
from alignkeep.errors import CheckpointError
from alignkeep.models.headers import TensorEntry
from alignkeep.progress import Progress, Silent


class Edit(Protocol):
    """How the numbers of one tensor are made; `made_of` are the stored tensors they come from."""

    @property
    def made_of(self) -> Sequence[TensorEntry]: ...

    def __iter__(self) -> Iterator[Numbers]:
        """Flat float32 pieces in order; a piece may be overwritten once the next is asked for."""
        ...


def rewrite(
    base: Mapping[str, TensorEntry],
    edits: Mapping[str, Edit | TensorEntry],
    work: Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    may_vanish: Collection[str] = (),
) -> list[Written]:
    """Write the base's shards into `work` with the tensors of `edits` replaced; returns all tensors, in order.

    An edit that is a TensorEntry is copied from there, byte for byte. Raises CheckpointError where numbers come out
    that are not finite (naming the input that holds them, if one does), or all 0 where those they are made of are not
    (but for the tensors in `may_vanish`), MachineError where the disk fails; finished shards are kept. `edits` must
    name tensors of the base, in types that can be calculated with.
    """
    shards: dict[Path, list[str]] = {}
    for name, entry in base.items():
        shards.setdefault(entry.file, []).append(name)
    progress = progress or Silent()
    with one_thread_each(), machine_errors(work), _Crew(workers) as crew:
        sweep(work)
        found = finished_shards(work, crew.pool)
        todo = [file for file in shards if file.name not in found or not _same_header(work / file.name, file)]
        progress.start("tensors", sum(len(shards[file]) for file in todo))
        closing: list[Future[None]] = []
        for file in todo:  # all of it before the first number: a full disk is noticed at once
            data = min((base[name].begin for name in shards[file]), default=None)
            _claim_space(unfinished(work, file.name), file, data)
        for file in todo:
            written = _write_shard(crew, file, {name: base[name] for name in shards[file]}, edits, work, progress)
            _refuse_empty([one for one in written if one.name not in may_vanish], base, edits, work)
            found[file.name] = written
            closing.append(crew.closer.submit(close_shard, work, file.name, written))
        for done in closing:
            done.result()
    progress.done()
    by_name = {written.name: written for shard in found.values() for written in shard}
    return [by_name[name] for name in base]


def digests(
    base: Mapping[str, TensorEntry], edits: Mapping[str, Edit | TensorEntry], *, workers: int | None = None
) -> dict[str, str]:
    """SHA-256 of every tensor that `rewrite` would write, without writing it."""

    def digest(name: str) -> str:
        found = hashlib.sha256()
        for piece in _bytes_of(edits.get(name, base[name]), base[name], name):
            found.update(memory_of(piece))
        return found.hexdigest()

    with one_thread_each(), _Crew(workers) as crew:
        return dict(zip(base, crew.pool.map(digest, base), strict=True))


def _same_header(made: Path, file: Path) -> bool:
    return sha256_of_header(made) == sha256_of_header(file)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Torch, where an edit needs it, computes every piece on one thread within the block: the workers are the
    parallelism, and sums and products do not depend on how many of them there are."""
    if "torch" not in sys.modules:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Crew:
    """Workers for tensors and one more for closing shards; an error or an interrupt stops them all."""

    def __init__(self, workers: int | None) -> None:
        # glibc gives memory back to the system, and asks for it again, with every large array, until it has seen a
        # larger one freed. Nothing is touched here.
        np.empty(1 << 24, np.uint8)
        self.stopped = threading.Event()
        self.pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
        self.closer = ThreadPoolExecutor(1)  # flushes a shard while the next one is made

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.stopped.set()
        self.pool.shutdown(cancel_futures=kind is not None)
        self.closer.shutdown()


def _write_shard(
    crew: _Crew,
    file: Path,
    entries: Mapping[str, TensorEntry],
    edits: Mapping[str, Edit | TensorEntry],
    work: Path,
    progress: Progress,
) -> list[Written]:
    target = unfinished(work, file.name)
    # The largest first, so that the workers end together.
    order = sorted(entries, key=lambda name: -entries[name].size)
    futures = {
        crew.pool.submit(_write_tensor, target, name, entries[name], edits.get(name), crew.stopped): name
        for name in order
    }
    written: dict[str, Written] = {}
    for done in as_completed(futures):
        written[futures[done]] = done.result()
        progress.advance()
    return [written[name] for name in entries]


def _claim_space(target: Path, source: Path, data: int | None) -> None:
    """A file of the source's size with the source's header (all of it, where it has no tensors)."""
    size = source.stat().st_size
    with FileIO(source) as old, FileIO(target, "w") as new:
        if hasattr(os, "posix_fallocate") and size:
            try:
                os.posix_fallocate(new.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot claim space
                    raise
        new.truncate(size)
        _write_all(new, memoryview(old.read(size if data is None else data)))


def _write_tensor(
    target: Path, name: str, entry: TensorEntry, edit: Edit | TensorEntry | None, stopped: threading.Event
) -> Written:
    digest = hashlib.sha256()
    is_base = True
    with StoredBytes(entry) as base, FileIO(target, "r+") as out:
        out.seek(entry.begin)
        raw = np.empty(COPY_BYTES, np.uint8)
        at = 0
        for piece in _bytes_of(entry if edit is None else edit, entry, name):
            if stopped.is_set():
                raise InterruptedError("another tensor failed")
            if edit is not None and is_base:
                if len(raw) < len(piece):
                    raw = np.empty(len(piece), np.uint8)
                old = raw[: len(piece)]
                base.read(at, memory_of(old))
                is_base = bool(np.array_equal(old, piece))
            view = memory_of(piece)
            digest.update(view)
            _write_all(out, view)
            at += len(view)
        _begin_flush(out, entry)
    if at != entry.size:
        raise ValueError(f"tensor {name}: {at} bytes were made, {entry.size} were planned")
    change: Change = "copied" if edit is None else "equal" if is_base else "changed"
    return Written(name, entry.file.name, entry.dtype, entry.shape, digest.hexdigest(), change)


def _write_all(file: FileIO, data: memoryview) -> None:
    """All of it: a disk that is nearly full takes a part, and says so with the rest only."""
    done = 0
    while done < len(data):
        done += file.write(data[done:]) or 0


def _refuse_empty(
    written: Sequence[Written], base: Mapping[str, TensorEntry], edits: Mapping[str, Edit | TensorEntry], work: Path
) -> None:
    """Raises CheckpointError where a tensor came out all 0 although what it is made of is not."""
    for tensor in written:
        edit = edits.get(tensor.name)
        if tensor.change != "changed" or edit is None or isinstance(edit, TensorEntry):
            continue
        made = base[tensor.name]._replace(file=unfinished(work, tensor.file))
        if _is_empty(made) and not all(map(_is_empty, edit.made_of)):
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name}",
                seen="a result that is all 0, of inputs that are not",
                expected="weights that say something",
                remedy="check the weights that were given: they cancel out, or are too small for this type",
            )


def _is_empty(entry: TensorEntry) -> bool:
    """Whether every number is 0; ends at the first that is not."""
    return all(is_zero(piece, entry.dtype) for piece in stored_bytes(entry))


def _begin_flush(file: FileIO, entry: TensorEntry) -> None:
    """The system starts to write a finished tensor to the disk, so that less is left to wait for at the end."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), entry.begin, entry.size, os.POSIX_FADV_DONTNEED)


def _bytes_of(edit: Edit | TensorEntry, entry: TensorEntry, name: str) -> Iterator[Numbers]:
    """The tensor's bytes in pieces, looked through for NaN and infinity."""
    if isinstance(edit, TensorEntry):
        for piece in stored_bytes(edit):
            if edit.dtype in FORMATS and not is_finite(piece, edit.dtype):
                raise not_finite([edit], entry, name)
            yield piece
        return
    rounded = np.empty(0, FORMATS[entry.dtype])
    for piece in edit:
        if len(piece) == 0:
            continue
        part = piece
        if rounded.dtype != piece.dtype:
            if len(rounded) < len(piece):
                rounded = np.empty(len(piece), rounded.dtype)
            part = rounded[: len(piece)]
            round_into(part, piece)
        if not is_finite(part, entry.dtype):
            raise not_finite(edit.made_of, entry, name)
        yield part.view(np.uint8)


def not_finite(inputs: Sequence[TensorEntry], entry: TensorEntry, name: str) -> CheckpointError:
    """The error for numbers that cannot be stored: the input that holds NaN or infinity, else the result itself."""
    for source in inputs:
        if not all(is_finite(piece, source.dtype) for piece in stored_bytes(source)):
            return CheckpointError(
                f"{source.file}: tensor {name}",
                seen="NaN or infinity",
                expected="finite numbers",
                remedy="copy or make the model again",
            )
    return CheckpointError(
        f"{entry.file}: tensor {name}",
        seen=f"a result beyond the largest number of {entry.dtype}",
        expected="weights that its type can hold",
        remedy="choose a smaller weight or strength, or a base in a wider type",
    )
