"""The numbers of a stored tensor, a range at a time, as float32 in memory that the caller owns.

Nothing is mapped and nothing is kept: what a merge or an edit of a checkpoint of any size needs is a few small buffers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import FileIO

import torch
from torch import Tensor

from alignkeep.errors import CheckpointError
from alignkeep.models.headers import TensorEntry

# What can be calculated with. The rest (integers, masks, packed or scale-only formats) is only ever copied.
NUMBERS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
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
        if not hasattr(os, "posix_fadvise") or begin + _AHEAD <= self._asked:
            return
        stretch = min(2 * _AHEAD, self.entry.size - begin)
        os.posix_fadvise(self._file.fileno(), self.entry.begin + begin, stretch, os.POSIX_FADV_WILLNEED)
        self._asked = begin + stretch


class StoredNumbers(StoredBytes):
    """The numbers of one tensor in its file."""

    def __init__(self, entry: TensorEntry) -> None:
        super().__init__(entry)
        self._raw = torch.empty(0, dtype=NUMBERS[entry.dtype])

    def __enter__(self) -> StoredNumbers:
        super().__enter__()
        return self

    def fill(self, start: int, into: Tensor) -> None:
        """Numbers [start, start + n) into the float32 tensor `into` (n,)."""
        if self._raw.numel() < into.numel():
            self._raw = torch.empty(into.numel(), dtype=self._raw.dtype)
        raw = self._raw[: into.numel()]
        self.read(start * raw.element_size(), memory_of(raw))
        into.copy_(raw)


def stored_bytes(entry: TensorEntry) -> Iterator[Tensor]:
    """All bytes of a tensor in uint8 pieces; a piece is overwritten once the next is asked for."""
    buffer = torch.empty(min(COPY_BYTES, entry.size), dtype=torch.uint8)
    with StoredBytes(entry) as stored:
        for begin in range(0, entry.size, COPY_BYTES):
            part = buffer[: min(COPY_BYTES, entry.size - begin)]
            stored.read(begin, memory_of(part))
            yield part


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a flat contiguous tensor, writable, without a copy."""
    return memoryview(tensor.view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]  # an array is a buffer
