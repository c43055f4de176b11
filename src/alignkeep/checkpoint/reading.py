"""The numbers of a stored tensor, a range at a time, as float32 in memory that the caller owns.

Nothing is mapped and nothing is kept: what a merge or an edit of a checkpoint of any size needs is a few small buffers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from io import FileIO

import numpy as np

from alignkeep.checkpoint.numbers import FORMATS, Numbers, is_finite, memory_of
from alignkeep.errors import CheckpointError
from alignkeep.models.headers import TensorEntry

COPY_BYTES = 1 << 20
_AHEAD = 1 << 25  # bytes that the system is asked to fetch before they are wanted (chosen)


class StoredBytes:
    """The bytes of one tensor in its file; use it with `with`, from one thread at a time."""

    def __init__(self, entry: TensorEntry) -> None:
        self.entry = entry
        self._asked = 0

    def __enter__(self) -> StoredBytes:
        self._file = FileIO(self.entry.file)
        self._asked = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, begin: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `begin` on. Raises CheckpointError where the file is shorter by now."""
        self._fetch_ahead(begin)
        self._file.seek(self.entry.begin + begin)
        done = 0
        while done < len(into):
            count = self._file.readinto(into[done:])
            if not count:
                raise CheckpointError(
                    str(self.entry.file),
                    seen="a file that has become shorter",
                    expected="inputs that nobody writes to",
                    remedy="put the model back and give the same command again",
                )
            done += count

    def _fetch_ahead(self, begin: int) -> None:
        """The system reads the next stretch from the disk while this one is worked on."""
        if not hasattr(os, "posix_fadvise") or self._asked >= min(begin + _AHEAD, self.entry.size):
            return
        stretch = min(2 * _AHEAD, self.entry.size - begin)
        os.posix_fadvise(self._file.fileno(), self.entry.begin + begin, stretch, os.POSIX_FADV_WILLNEED)
        self._asked = begin + stretch


class StoredNumbers(StoredBytes):
    """The numbers of one tensor in its file."""

    def __init__(self, entry: TensorEntry) -> None:
        super().__init__(entry)
        self._raw = self._last = np.empty(0, FORMATS[entry.dtype])

    def __enter__(self) -> StoredNumbers:
        super().__enter__()
        return self

    def fill(self, start: int, into: Numbers) -> None:
        """Numbers [start, start + n) into the float32 array `into` (n,)."""
        if self._raw.dtype == into.dtype:
            self.read(start * into.itemsize, memory_of(into))
            self._last = into
            return
        if len(self._raw) < len(into):
            self._raw = np.empty(len(into), self._raw.dtype)
        self._last = self._raw[: len(into)]
        self.read(start * self._raw.itemsize, memory_of(self._last))
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(into, self._last, casting="unsafe")

    def is_finite(self) -> bool:
        """Whether what was filled in last, and has not been changed since, has neither NaN nor infinity."""
        return is_finite(self._last, self.entry.dtype)


def stored_bytes(entry: TensorEntry) -> Iterator[Numbers]:
    """All bytes of a tensor in uint8 pieces; a piece is overwritten once the next is asked for."""
    buffer = np.empty(min(COPY_BYTES, entry.size), np.uint8)
    with StoredBytes(entry) as stored:
        for begin in range(0, entry.size, COPY_BYTES):
            part = buffer[: min(COPY_BYTES, entry.size - begin)]
            stored.read(begin, memory_of(part))
            yield part


def stored_numbers(name: str, entry: TensorEntry) -> Numbers:
    """A whole small tensor (a factor of an adapter) as float32, in its shape. Raises CheckpointError for NaN and
    infinity."""
    numbers = np.empty(math.prod(entry.shape), np.float32)
    with StoredNumbers(entry) as stored:
        stored.fill(0, numbers)
        if not stored.is_finite():
            raise CheckpointError(
                f"{entry.file}: tensor {name}",
                seen="NaN or infinity",
                expected="finite numbers",
                remedy="copy or make the model again",
            )
    return numbers.reshape(entry.shape)
