"""Merges that add models up: linear, and along an arc.

Sources
    Wortsman et al., Model soups, arXiv:2203.05482: the weighted mean (`linear`).
    Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985: the arc (`slerp`, `nuslerp`).
    mergekit 0.1.5, for which of several readings of the two arcs users know.

Symbols
    t          place on the arc: 0 is the first end, 1 the second

Departures
    1. `slerp` moves over the tensors as they are, not over their unit vectors, and is straight above |cos| 0.9995.
    2. An end that is all zero has no direction: it counts as orthogonal to the other, as in mergekit.
    3. Cosines are taken in float64 at every scale; `nuslerp` is straight where float32 cannot tell the angle from 0 or
       pi (cos^2 > 1 - 2^-23), so that opposite ends give (1 - 2t) times the first, however their numbers round.

Every function is a generator over one tensor in pieces and gives the merged numbers back in order, in float32.
"""

# numpy leaves the types of some methods open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Float64

from alignkeep.merge.pieces import BLOCK, Array, Piece, Pieces, row_length, total

SLERP_LIMIT = 0.9995  # mergekit's; |cos| above it is a straight line
NUSLERP_LIMIT = math.sqrt(1 - 2**-23)
# Numbers in a sum of products. OpenBLAS splits one among its threads from 10,000 on, which would change its last bits.
STRETCH = 1 << 13

Weights = tuple[Float64[Array, "*vectors"], Float64[Array, "*vectors"]]


def linear(pieces: Pieces, weights: Sequence[float]) -> Iterator[Float32[Array, " n"]]:
    """sum_i weights_i x_i, the base first. Laws: one weight of 1 among zeros gives that model's numbers exactly; convex
    weights give equal numbers back exactly. Raises ValueError when weights and models differ in number.
    """
    for piece in pieces:
        yield weighted_sum((piece.base, *piece.tuned), weights)


def weighted_sum(arrays: Sequence[Float32[Array, " n"]], weights: Sequence[float]) -> Float32[Array, " n"]:
    """sum_i weights_i x_i, written into one of the arrays, the others being overwritten. A convex one is a running
    mean: it keeps equal numbers.
    """
    parts = [(array, weight) for array, weight in zip(arrays, weights, strict=True) if weight != 0]
    if not parts:
        arrays[0].fill(0)
        return arrays[0]
    (result, sum_of_weights), *rest = parts
    if all(weight > 0 for _, weight in parts) and abs(math.fsum(weights) - 1) < 1e-12:
        for array, weight in rest:
            sum_of_weights += weight
            _between(result, array, weight / sum_of_weights)
        return result
    result *= sum_of_weights
    for array, weight in rest:
        array *= weight
        result += array
    return result


def _between(first: Float32[Array, " n"], second: Float32[Array, " n"], share: float) -> None:
    """first + share (second - first), into `first`; counted from the nearer end, so that both ends are exact."""
    if share < 0.5:
        second -= first
        second *= share
        first += second
    else:
        first -= second
        first *= 1 - share
        first += second


def slerp(pieces: Pieces, t: float) -> Iterator[Float32[Array, " n"]]:
    """From base (t = 0) to the one tuned model (t = 1) along the arc in their plane. Laws: the ends are exact; equal
    tensors are kept exactly. Two passes.
    """
    return _arc(pieces, t, over_base=False, limit=SLERP_LIMIT)


def nuslerp(
    pieces: Pieces, t: float, *, over_base: bool = False, row_wise: bool = False, flatten: bool = True
) -> Iterator[Float32[Array, " n"]]:
    """mergekit's second arc: from base to the tuned model, or (`over_base`) between the task vectors of two tuned
    models, added to the base.

    One arc for the whole tensor (`flatten`), or one for every vector along the last axis, or (`row_wise`, mergekit's
    word) along the first. A tensor of one axis is one vector. Two passes, or one along the last axis.
    """
    if flatten or len(pieces.shape) < 2:
        return _arc(pieces, t, over_base=over_base, limit=NUSLERP_LIMIT)
    return (_arcs_along_first if row_wise else _arcs_along_last)(pieces, t, over_base)


def _arc(pieces: Pieces, t: float, *, over_base: bool, limit: float) -> Iterator[Float32[Array, " n"]]:
    sums = Gram(2)
    for piece in pieces:
        sums.add(_ends(piece, over_base))
    found = (np.array(sums[pair]) for pair in ((0, 1), (0, 0), (1, 1)))
    at_first, at_second = arc_weights(t, *found, limit=limit)
    for piece in pieces:
        result = weighted_sum(_ends(piece, over_base), (float(at_first), float(at_second)))
        yield _onto(piece.base, result) if over_base else result


def _arcs_along_last(pieces: Pieces, t: float, over_base: bool) -> Iterator[Float32[Array, " n"]]:
    width = row_length(pieces.shape)
    for piece in pieces.rows():
        first, second = (end.reshape(-1, width) for end in _ends(piece, over_base))
        found = (row_products(*pair) for pair in ((first, second), (first, first), (second, second)))
        at_first, at_second = map(_column, arc_weights(t, *found, limit=NUSLERP_LIMIT))
        first *= at_first
        second *= at_second
        first += second
        result = first.reshape(-1)
        yield _onto(piece.base, result) if over_base else result


def _arcs_along_first(pieces: Pieces, t: float, over_base: bool) -> Iterator[Float32[Array, " n"]]:
    width, across = row_length(pieces.shape), math.prod(pieces.shape[1:])
    sums = np.zeros((3, across))
    for piece in pieces.rows():
        for place, first, second in _row_ends(piece, width, across, over_base):
            left, right = first.astype(np.float64), second.astype(np.float64)
            # One row at a time and in order, whatever the pieces: a sum of two rows first would round differently.
            for total_of, product in zip(sums, (left * right, left * left, right * right), strict=True):
                total_of[place : place + width] += product
    found = arc_weights(t, *sums, limit=NUSLERP_LIMIT)
    at_first, at_second = (weights.astype(np.float32) for weights in found)
    for piece in pieces.rows():
        ends = _ends(piece, over_base)
        for place, first, second in _cut_rows(piece.start, ends, width, across):
            here = slice(place, place + width)
            first *= at_first[here]
            second *= at_second[here]
            first += second
        yield _onto(piece.base, ends[0]) if over_base else ends[0]


def arc_weights(
    t: float,
    dot: Float64[Array, "*vectors"],
    first_square: Float64[Array, "*vectors"],
    second_square: Float64[Array, "*vectors"],
    *,
    limit: float,
) -> Weights:
    """What the two ends weigh at t, from their inner products: sin((1-t) a)/sin(a) and sin(t a)/sin(a), a the angle
    between them, and 1 - t and t where |cos a| > limit. Law: at t = 0 they are exactly 1 and 0, at t = 1 0 and 1.
    """
    norms = np.sqrt(first_square) * np.sqrt(second_square)
    cosine = np.clip(dot / np.where(norms > 0, norms, 1.0), -1.0, 1.0)
    straight = np.abs(cosine) > limit
    angle = np.arccos(np.where(straight, 0.0, cosine))
    sine = np.sin(angle)
    return (
        np.where(straight, 1 - t, np.sin((1 - t) * angle) / sine),
        np.where(straight, t, np.sin(t * angle) / sine),
    )


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


def _column(values: Float64[Array, " rows"]) -> Float32[Array, "rows 1"]:
    return values.astype(np.float32)[:, None]


def _onto(base: Float32[Array, " n"], update: Float32[Array, " n"]) -> Float32[Array, " n"]:
    base += update
    return base


def _ends(piece: Piece, over_base: bool) -> tuple[Float32[Array, " n"], Float32[Array, " n"]]:
    """The two ends of the arc. Raises ValueError when there are not exactly as many models as it takes."""
    if over_base:
        first, second = piece.tuned
        first -= piece.base
        second -= piece.base
        return first, second
    (tuned,) = piece.tuned
    return piece.base, tuned


def _row_ends(
    piece: Piece, width: int, across: int, over_base: bool
) -> Iterator[tuple[int, Float32[Array, " d"], Float32[Array, " d"]]]:
    """The two ends row by row, and the place of the row's first number within its index of the first axis."""
    return _cut_rows(piece.start, _ends(piece, over_base), width, across)


def _cut_rows(
    at: int, ends: tuple[Float32[Array, " n"], Float32[Array, " n"]], width: int, across: int
) -> Iterator[tuple[int, Float32[Array, " d"], Float32[Array, " d"]]]:
    first, second = ends
    for start in range(0, len(first), width):
        yield (at + start) % across, first[start : start + width], second[start : start + width]
