"""From models and method to what happens to every tensor: left alone, copied from a model, or made piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np

from alignkeep.checkpoint.changes import Change
from alignkeep.checkpoint.numbers import FORMATS, Numbers
from alignkeep.checkpoint.reading import StoredNumbers
from alignkeep.checkpoint.rewrite import Edit, not_finite
from alignkeep.checkpoint.shards import Written
from alignkeep.merge.inputs import Models, Tuned
from alignkeep.merge.method import Rule, TensorMerge
from alignkeep.merge.pieces import PIECE, Piece, whole_blocks, whole_rows
from alignkeep.models.headers import TensorEntry
from alignkeep.objects import faults_of


class Source(NamedTuple):
    """What a tuned model's tensor is: one it has stored, else the base's, and a change to that. (PEFT stores the layer
    under a LoRA of an embedding or head along with it.)"""

    stored: TensorEntry | None = None
    change: Change | None = None


class MergedTensor:
    """One tensor as the method makes it: an edit for `checkpoint.rewrite`."""

    def __init__(self, name: str, base: TensorEntry, tuned: Sequence[Source], method: TensorMerge, size: int) -> None:
        self.name = name
        self.shape = base.shape
        self.made_of = (base, *(source.stored for source in tuned if source.stored is not None))
        self._base, self._tuned, self._method, self._size = base, tuple(tuned), method, size

    def __iter__(self) -> Iterator[Numbers]:
        with ExitStack() as stack:
            opened = {entry: stack.enter_context(StoredNumbers(entry)) for entry in self.made_of}
            for source in self._tuned:
                if source.change is not None:
                    stack.callback(source.change.forget)
            where, expected = f"tensor {self.name}", "a merge of any numbers"
            by = f"the merged() of {type(self._method).__name__}"
            with faults_of(self._method, where, by, expected=expected, remedy="mend the method"):
                yield from self._method.merged(_StoredPieces(self, opened))

    def fill(self, opened: Mapping[TensorEntry, StoredNumbers], start: int, into: Sequence[Numbers]) -> None:
        """The numbers [start, start + n) of base and tuned models into these tensors."""
        base, *tuned = into
        self._read(opened, self._base, start, base)
        for source, numbers in zip(self._tuned, tuned, strict=True):
            if source.stored is None:
                np.copyto(numbers, base)
            else:
                self._read(opened, source.stored, start, numbers)
            if source.change is not None:
                source.change.add_to(numbers, start)

    def _read(self, opened: Mapping[TensorEntry, StoredNumbers], entry: TensorEntry, start: int, into: Numbers) -> None:
        opened[entry].fill(start, into)
        if self._method.needs_finite and not opened[entry].is_finite():
            raise not_finite(self.made_of, self._base, self.name)

    def cut(self, opened: Mapping[TensorEntry, StoredNumbers], size: int) -> Iterator[Piece]:
        """The pieces of one pass, in buffers of their own that every pass uses again."""
        count = math.prod(self.shape)
        buffers = [np.empty(min(size, count), np.float32) for _ in range(1 + len(self._tuned))]
        for start in range(0, count, size):
            base, *tuned = (buffer[: min(size, count - start)] for buffer in buffers)
            self.fill(opened, start, (base, *tuned))
            yield Piece(start, base, tuple(tuned))

    def pieces_of(self, opened: Mapping[TensorEntry, StoredNumbers], *, rows: bool) -> Iterator[Piece]:
        return self.cut(opened, whole_rows(self._size, self.shape) if rows else whole_blocks(self._size))


class _StoredPieces:
    """`merge.pieces.Pieces` over opened files."""

    def __init__(self, tensor: MergedTensor, opened: Mapping[TensorEntry, StoredNumbers]) -> None:
        self.name, self.shape = tensor.name, tensor.shape
        self._tensor, self._opened = tensor, opened

    def __iter__(self) -> Iterator[Piece]:
        return self._tensor.pieces_of(self._opened, rows=False)

    def rows(self) -> Iterator[Piece]:
        return self._tensor.pieces_of(self._opened, rows=True)


def edits_of(models: Models, rule: Rule, *, size: int = PIECE) -> dict[str, Edit | TensorEntry]:
    """What is done to which tensor; a tensor that is not named stays the base's, byte for byte.

    A method that is by construction the base's tensor, or one tuned model's of the same type, copies it.
    """
    edits: dict[str, Edit | TensorEntry] = {}
    for name, entry in models.entries.items():
        if entry.dtype not in FORMATS:
            continue
        sources = [source_of(tuned, name) for tuned in models.tuned]
        if all(source == Source() for source in sources):
            continue
        method = rule(name)
        same = method.identity
        if same == "base":
            continue
        whole = None if same is None or sources[same].change is not None else sources[same].stored
        if whole is not None and whole.dtype == entry.dtype:
            edits[name] = whole
        else:
            edits[name] = MergedTensor(name, entry, sources, method, size)
            if method.through is not None or any(source.change is not None for source in sources):
                import torch  # noqa: F401  # here, not by whichever worker comes first
    return edits


def source_of(tuned: Tuned, name: str) -> Source:
    """Where a tuned model has this tensor from."""
    if tuned.adapter is None:
        return Source(tuned.entries.get(name))
    return Source(tuned.adapter.replaced.get(name), tuned.adapter.changes.get(name))


def reason_for_equal(models: Models, written: Written) -> str:
    """Why a tensor that was to be merged came out as the base's."""
    sources = [source_of(tuned, written.name) for tuned in models.tuned]
    base = models.entries[written.name]
    if all(is_base(source, base) for source in sources):
        return "the tuned model's tensor is the base's"
    return f"the merged change is smaller than a step of {written.dtype}, or the method drops all of it"


def is_base(source: Source, base: TensorEntry) -> bool:
    """Whether the tuned model has the base's own tensor."""
    from alignkeep.checkpoint.shards import sha256_of

    stored, change = source
    if stored is not None and (stored.dtype != base.dtype or sha256_of(stored) != sha256_of(base)):
        return False
    return change is None or change.is_zero
