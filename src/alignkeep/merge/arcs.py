"""Merges along an arc.

Sources
    Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.
    mergekit 0.1.5, for which of several readings of the two arcs users know.

Symbols
    t          place on the arc: 0 is the first end, 1 the second

Departures
    1. `slerp` moves over the tensors as they are, not over their unit vectors, and is straight above |cos| 0.9995.
    2. An end that is all zero has no direction: it counts as orthogonal to the other, as in mergekit.
    3. Cosines are taken in float64 at every scale; `nuslerp` is straight where float32 cannot tell the angle from 0 or
       pi (cos^2 > 1 - 2^-23), so that opposite ends give (1 - 2t) times the first, however their numbers round.
"""

# numpy leaves the types of some methods open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from alignkeep.merge.linear import weighted_sum
from alignkeep.merge.method import Asked, Identity, MergeMethod, NoOptions, TensorMerge, only_model
from alignkeep.merge.pieces import Array, Gram, Piece, Pieces, row_length, row_products
from alignkeep.works import Citation

SLERP_LIMIT = 0.9995  # mergekit's; |cos| above it is a straight line
NUSLERP_LIMIT = math.sqrt(1 - 2**-23)
Weights = tuple[Float64[Array, "*vectors"], Float64[Array, "*vectors"]]


CITATION = Citation(
    "slerp",
    "Merging along the arc between two tensors",
    ("shoemake1985animating",),
    ("Per tensor, on tensors as they are; nearly parallel ones are mixed linearly.",),
)


@dataclass(frozen=True)
class Slerp(TensorMerge):
    """From base (t = 0) to the one tuned model (t = 1) along the arc in their plane. Laws: the ends are exact; equal
    tensors are kept exactly. Two passes.
    """

    t: float
    needs_finite = False

    def merged(self, pieces: Pieces) -> Iterator[Float32[Array, " n"]]:
        return _arc(pieces, self.t, over_base=False, limit=SLERP_LIMIT)

    @property
    def identity(self) -> Identity:
        return only_model((1 - self.t, self.t))


@dataclass(frozen=True)
class NuSlerp(TensorMerge):
    """mergekit's second arc: from base to the one tuned model, or (`over_base`) between the task vectors of two tuned
    models, added to the base.

    One arc for the whole tensor (`flatten`), or one for every vector along the last axis, or (`row_wise`, mergekit's
    word) along the first. A tensor of one axis is one vector. Two passes, or one along the last axis.
    """

    t: float
    over_base: bool = False
    row_wise: bool = False
    flatten: bool = True

    def merged(self, pieces: Pieces) -> Iterator[Float32[Array, " n"]]:
        if self.flatten or len(pieces.shape) < 2:
            return _arc(pieces, self.t, over_base=self.over_base, limit=NUSLERP_LIMIT)
        return (_arcs_along_first if self.row_wise else _arcs_along_last)(pieces, self.t, self.over_base)

    @property
    def identity(self) -> Identity:
        end = only_model((1 - self.t, self.t))
        return end if not self.over_base else None if end is None else 0 if end == "base" else 1


@dataclass(frozen=True)
class ArcMethod(MergeMethod[NoOptions]):
    """The arc of one of the two kinds, from the base to one tuned model."""

    name: str
    title: str
    arc: type[Slerp] | type[NuSlerp]
    options = NoOptions
    cites = (CITATION,)
    models = (1, 1)
    weighs = "share"

    def tensor(self, asked: Asked[NoOptions]) -> TensorMerge:
        return self.arc(asked.weight)


METHODS = (
    ArcMethod("slerp", "along the arc from the base to the tuned model", Slerp),
    ArcMethod("nuslerp", "along mergekit's second arc, which bends for smaller angles too", NuSlerp),
)


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
