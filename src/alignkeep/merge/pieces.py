"""One tensor of every model, gone through in float32 pieces, as often as a method needs.

A merge never holds a whole tensor: it asks for pieces, measures what it has to know about the whole in the first passes
and gives the merged numbers back in the last one. What it measures is summed block by block in float64, blocks having a
fixed place in the tensor, so that the size of the pieces and the number of threads change no bit of the result.
"""

# numpy and torch leave the types of some methods open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float32, Float64

Array = np.ndarray

BLOCK = 1 << 16
PIECE = 1 << 18  # chosen: measured in benchmarks/bench_merge.py

# Numbers in a sum of products. OpenBLAS splits one among its threads from 10,000 on, which would change its last bits.
STRETCH = 1 << 13


class Piece(NamedTuple):
    """`n` neighbouring numbers of one tensor in all models.

    The arrays belong to the method until it asks for the next piece: it may overwrite them and must not keep them.
    """

    start: int
    base: Float32[Array, " n"]
    tuned: tuple[Float32[Array, " n"], ...]


class Pieces(Protocol):
    """A tensor by its name and shape. Every iteration is a pass over all of its numbers in order."""

    name: str
    shape: tuple[int, ...]

    def __iter__(self) -> Iterator[Piece]:
        """Flat pieces: every one starts at a multiple of BLOCK."""
        ...

    def rows(self) -> Iterator[Piece]:
        """Pieces of whole rows (the last axis); a tensor of one axis or none is one row."""
        ...


class Whole:
    """Pieces of arrays in memory, for notebooks and tests. The arrays are left as they are."""

    def __init__(self, name: str, base: Array, tuned: Sequence[Array], *, size: int = PIECE) -> None:
        self.name = name
        self.shape = tuple(base.shape)
        self._size = size
        self._flat = [np.asarray(array).reshape(-1) for array in (base, *tuned)]

    def __iter__(self) -> Iterator[Piece]:
        return self._cut(whole_blocks(self._size))

    def rows(self) -> Iterator[Piece]:
        return self._cut(whole_rows(self._size, self.shape))

    def _cut(self, size: int) -> Iterator[Piece]:
        for start in range(0, math.prod(self.shape), size):
            base, *tuned = (np.array(part[start : start + size], np.float32) for part in self._flat)
            yield Piece(start, base, tuple(tuned))


def whole_blocks(size: int) -> int:
    """`size` rounded up to whole blocks, at least one."""
    return max(1, math.ceil(size / BLOCK)) * BLOCK


def whole_rows(size: int, shape: Sequence[int]) -> int:
    """`size` rounded up to whole rows of a tensor of this shape, at least one row."""
    row = row_length(shape)
    return max(1, math.ceil(size / row)) * row


def row_length(shape: Sequence[int]) -> int:
    """Numbers in a row: the last axis of a matrix, all of a vector or scalar; at least 1."""
    return max(1, shape[-1] if len(shape) > 1 else math.prod(shape))


def total(sums: Iterable[float]) -> float:
    """The sum over a tensor from the sums over its blocks, correctly rounded and so in any order the same."""
    return math.fsum(sums)


class Gram:
    """Inner products of vectors that come in flat pieces, in float64: `gram[i, j]` with i <= j. Law: the same bits for
    every size of pieces and number of threads, since numbers are summed in stretches of fixed place.
    """

    def __init__(self, vectors: int) -> None:
        self._parts: dict[tuple[int, int], list[float]] = {(i, j): [] for j in range(vectors) for i in range(j + 1)}
        self._wide = np.empty((vectors, BLOCK))

    def add(self, vectors: Sequence[Float32[Array, " n"]]) -> None:
        """The next piece of every vector. Raises ValueError when there are more or fewer vectors than announced."""
        for start in range(0, len(vectors[0]), BLOCK):
            rows = self._wide[:, : len(vectors[0][start : start + BLOCK])]
            for row, vector in zip(rows, vectors, strict=True):
                row[:] = vector[start : start + BLOCK]
            for (first, second), parts in self._parts.items():
                for left, right in zip(_stretches(rows[first]), _stretches(rows[second]), strict=True):
                    parts.extend(np.vecdot(left, right).tolist())

    def __getitem__(self, pair: tuple[int, int]) -> float:
        return total(self._parts[pair])


def _stretches(values: Float64[Array, " n"]) -> tuple[Float64[Array, "stretches d"], Float64[Array, "1 rest"]]:
    whole = len(values) - len(values) % STRETCH
    return values[:whole].reshape(-1, STRETCH), values[whole:].reshape(1, -1)


def row_products(left: Float32[Array, "rows d"], right: Float32[Array, "rows d"]) -> Float64[Array, " rows"]:
    """The inner product of every row with its like, in float64. Law: however many rows come with it, the same bits."""
    sums = np.zeros(len(left))
    some = max(1, BLOCK // left.shape[1])  # rows at a time, so that the wide copies stay in the cache
    for row in range(0, len(left), some):
        for column in range(0, left.shape[1], STRETCH):
            part = slice(row, row + some), slice(column, column + STRETCH)
            sums[part[0]] += np.vecdot(left[part].astype(np.float64), right[part].astype(np.float64))
    return sums


def magnitude_sums(values: Float32[Array, " n"], width: int) -> list[float]:
    """Parts of the sum of magnitudes for `total`, of every `width` numbers, in float64."""
    sums: list[float] = []
    whole = len(values) - len(values) % width
    some = max(1, BLOCK // width) * width  # rows at a time, so that the wide copies stay in the cache
    rows = [values[start : min(start + some, whole)].reshape(-1, width) for start in range(0, whole, some)]
    for row in (*rows, values[whole:].reshape(1, -1)):
        for column in range(0, row.shape[1], STRETCH):
            part = row[:, column : column + STRETCH].astype(np.float64)
            sums += np.abs(part, out=part).sum(1).tolist()
    return sums
