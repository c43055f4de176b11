"""Merges that add models up: linear, along an arc, and through a map of the inputs.

Sources
    Wortsman et al., Model soups, arXiv:2203.05482: the weighted mean (`linear`).
    Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985: the arc (`slerp`, `nuslerp`).
    mergekit 0.1.5, for which of several readings of the two arcs users know.

Symbols
    t          place on the arc: 0 is the first end, 1 the second
    U, P       basis (d_in, m) of the directions the aligned model uses on alignment prompts; P = U U^T
    D          tuned - base

Departures
    1. `slerp` moves over the tensors as they are, not over their unit vectors, and is straight above |cos| 0.9995.
    2. An end that is all zero has no direction: it counts as orthogonal to the other, as in mergekit.
    3. Cosines are taken in float64 at every scale; `nuslerp` is straight where float32 cannot tell the angle from 0 or
       pi (cos^2 > 1 - 2^-23), so that opposite ends give (1 - 2t) times the first, however their numbers round.
    4. `mapped_merge` is ours.

Every function is a generator over one tensor in pieces and gives the merged numbers back in order, in float32.
"""

# torch and numpy leave the types of some methods open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from alignkeep.merge.pieces import BLOCK, Piece, Pieces, row_length, total

SLERP_LIMIT = 0.9995  # mergekit's; |cos| above it is a straight line
NUSLERP_LIMIT = math.sqrt(1 - 2**-23)
# Numbers in a sum. torch splits one long sum among its threads, from 2^15 numbers on, which would change its last bits.
STRETCH = 1 << 14
# A product's bits depend on its shape, and on the number of threads where a side is no multiple of 16 (measured with
# MKL): so products are of blocks of so many rows, cut at fixed places, with sides filled up with zeros.
TILE = 64

Weights = tuple[Float[np.ndarray, "*vectors"], Float[np.ndarray, "*vectors"]]


def linear(pieces: Pieces, weights: Sequence[float]) -> Iterator[Float[Tensor, " n"]]:
    """sum_i weights_i x_i, the base first. Laws: one weight of 1 among zeros gives that model's numbers exactly; convex
    weights give equal numbers back exactly. Raises ValueError when weights and models differ in number.
    """
    for piece in pieces:
        yield weighted_sum((piece.base, *piece.tuned), weights)


def weighted_sum(tensors: Sequence[Float[Tensor, " n"]], weights: Sequence[float]) -> Float[Tensor, " n"]:
    """sum_i weights_i x_i, written into one of the tensors. A convex one is a running mean: it keeps equal numbers."""
    parts = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight != 0]
    if not parts:
        return tensors[0].zero_()
    (result, sum_of_weights), *rest = parts
    if all(weight > 0 for _, weight in parts) and abs(math.fsum(weights) - 1) < 1e-12:
        for tensor, weight in rest:
            sum_of_weights += weight
            result.lerp_(tensor, weight / sum_of_weights)
        return result
    result.mul_(sum_of_weights)
    for tensor, weight in rest:
        result.add_(tensor, alpha=weight)
    return result


def slerp(pieces: Pieces, t: float) -> Iterator[Float[Tensor, " n"]]:
    """From base (t = 0) to the one tuned model (t = 1) along the arc in their plane. Laws: the ends are exact; equal
    tensors are kept exactly. Two passes.
    """
    return _arc(pieces, t, over_base=False, limit=SLERP_LIMIT)


def nuslerp(
    pieces: Pieces, t: float, *, over_base: bool = False, row_wise: bool = False, flatten: bool = True
) -> Iterator[Float[Tensor, " n"]]:
    """mergekit's second arc: from base to the tuned model, or (`over_base`) between the task vectors of two tuned
    models, added to the base.

    One arc for the whole tensor (`flatten`), or one for every vector along the last axis, or (`row_wise`, mergekit's
    word) along the first. A tensor of one axis is one vector. Two passes, or one along the last axis.
    """
    if flatten or len(pieces.shape) < 2:
        return _arc(pieces, t, over_base=over_base, limit=NUSLERP_LIMIT)
    return (_arcs_along_first if row_wise else _arcs_along_last)(pieces, t, over_base)


def _arc(pieces: Pieces, t: float, *, over_base: bool, limit: float) -> Iterator[Float[Tensor, " n"]]:
    sums = Gram(2)
    for piece in pieces:
        sums.add(_ends(piece, over_base))
    found = (np.array(sums[pair]) for pair in ((0, 1), (0, 0), (1, 1)))
    at_first, at_second = arc_weights(t, *found, limit=limit)
    for piece in pieces:
        result = weighted_sum(_ends(piece, over_base), (float(at_first), float(at_second)))
        yield piece.base.add_(result) if over_base else result


def _arcs_along_last(pieces: Pieces, t: float, over_base: bool) -> Iterator[Float[Tensor, " n"]]:
    width = row_length(pieces.shape)
    for piece in pieces.rows():
        first, second = (end.view(-1, width) for end in _ends(piece, over_base))
        found = (row_products(*pair) for pair in ((first, second), (first, first), (second, second)))
        at_first, at_second = map(_column, arc_weights(t, *found, limit=NUSLERP_LIMIT))
        result = first.mul_(at_first).add_(second.mul_(at_second)).view(-1)
        yield piece.base.add_(result) if over_base else result


def _arcs_along_first(pieces: Pieces, t: float, over_base: bool) -> Iterator[Float[Tensor, " n"]]:
    width, across = row_length(pieces.shape), math.prod(pieces.shape[1:])
    sums = torch.zeros(3, across, dtype=torch.float64)
    for piece in pieces.rows():
        for place, first, second in _row_ends(piece, width, across, over_base):
            left, right = first.double(), second.double()
            # One row at a time and in order, whatever the pieces: a sum of two rows first would round differently.
            sums[:, place : place + width] += torch.stack((left * right, left * left, right * right))
    found = arc_weights(t, *(row.numpy() for row in sums), limit=NUSLERP_LIMIT)
    at_first, at_second = (torch.from_numpy(weights).float() for weights in found)
    for piece in pieces.rows():
        results: list[Tensor] = []
        for place, first, second in _row_ends(piece, width, across, over_base):
            here = slice(place, place + width)
            results.append(first.mul_(at_first[here]).add_(second.mul_(at_second[here])))
        result = torch.cat(results)
        yield piece.base.add_(result) if over_base else result


def arc_weights(
    t: float,
    dot: Float[np.ndarray, "*vectors"],
    first_square: Float[np.ndarray, "*vectors"],
    second_square: Float[np.ndarray, "*vectors"],
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


def mapped_merge(
    pieces: Pieces,
    scale: float,
    reads: Float[Tensor, "d_in k"],
    writes: Float[Tensor, "d_in k"],
    *,
    input_axis: int = -1,
) -> Iterator[Float[Tensor, " n"]]:
    """base + D M with the input map M = scale I + reads writes^T: the update seen through its inputs.

    The input side is the last axis, or axis 0 of a matrix (d_in, d_out) such as Conv1D's, where it takes two passes.
    Law: scale 1 and no reads give tuned exactly. Raises ValueError for another axis and when the map has not as many
    rows as the input side.
    """
    inputs = pieces.shape[input_axis] if pieces.shape else 1
    if len(reads) != inputs or len(writes) != inputs:
        raise ValueError(f"the map is of {len(reads)} inputs, tensor {pieces.name!r} has {inputs}")
    read, write = _filled(reads), _filled(writes)
    if input_axis in (-1, len(pieces.shape) - 1):
        for _, update, tuned in _row_blocks(pieces):
            inside = torch.mm(torch.mm(update, read), write.T)[: len(tuned), : tuned.shape[1]]
            yield _through(tuned, update, inside, scale)
    elif input_axis == 0 and len(pieces.shape) == 2:
        coordinates = torch.zeros((), dtype=torch.float64)
        for row, update, _ in _row_blocks(pieces):
            coordinates = coordinates + torch.mm(read[row : row + TILE].T, update)
        for row, update, tuned in _row_blocks(pieces):
            inside = torch.mm(write[row : row + TILE], coordinates.float())[: len(tuned), : tuned.shape[1]]
            yield _through(tuned, update, inside, scale)
    else:
        raise ValueError(f"the input side is the last axis, or axis 0 of a matrix, not {input_axis} of {pieces.shape}")


def _through(tuned: Tensor, update: Tensor, inside: Tensor, scale: float) -> Tensor:
    """base + scale D + inside, from tuned = base + D."""
    if scale != 1:
        tuned = tuned.sub_(update[: len(tuned), : tuned.shape[1]], alpha=1 - scale)
    return tuned.add_(inside).view(-1)


def _filled(factor: Float[Tensor, "d_in k"]) -> Float[Tensor, "tiled tiled"]:
    """In float32, filled up to whole tiles: products of one shape have one order of summation."""
    return torch.nn.functional.pad(factor.float(), (0, -factor.shape[1] % TILE, 0, -factor.shape[0] % TILE))


class Gram:
    """Inner products of vectors that come in flat pieces, in float64: `gram[i, j]` with i <= j. Law: the same bits for
    every size of pieces and number of threads, since numbers are summed in stretches of fixed place.
    """

    def __init__(self, vectors: int) -> None:
        self._parts: dict[tuple[int, int], list[float]] = {(i, j): [] for j in range(vectors) for i in range(j + 1)}

    def add(self, vectors: Sequence[Float[Tensor, " n"]]) -> None:
        """The next piece of every vector. Raises ValueError when there are more or fewer vectors than announced."""
        wide = torch.empty(len(vectors) + 1, min(BLOCK, len(vectors[0])), dtype=torch.float64)
        for blocks in zip(*(vector.split(BLOCK) for vector in vectors), strict=True):
            *rows, product = wide[:, : len(blocks[0])]
            for row, block in zip(rows, blocks, strict=True):
                row.copy_(block)
            for (first, second), parts in self._parts.items():
                torch.mul(rows[first], rows[second], out=product)
                parts.extend(part for sums in _stretches(product) for part in sums.sum(1).tolist())

    def __getitem__(self, pair: tuple[int, int]) -> float:
        return total(self._parts[pair])


def _stretches(values: Float[Tensor, " n"]) -> tuple[Float[Tensor, "stretches d"], Float[Tensor, "1 rest"]]:
    whole = len(values) - len(values) % STRETCH
    return values[:whole].view(-1, STRETCH), values[whole:].view(1, -1)


def row_products(left: Float[Tensor, "rows d"], right: Float[Tensor, "rows d"]) -> Float[np.ndarray, " rows"]:
    """The inner product of every row with its like, in float64. Law: however many rows come with it, the same bits."""
    sums = torch.zeros(len(left), dtype=torch.float64)
    some = max(1, BLOCK // left.shape[1])  # rows at a time, so that the wide copies stay in the cache
    for rows in zip(sums.split(some), left.split(some), right.split(some), strict=True):
        for columns in zip(*(row.split(STRETCH, 1) for row in rows[1:]), strict=True):
            rows[0].add_(torch.mul(*(part.double() for part in columns)).sum(1))
    return sums.numpy()


def magnitude_sums(values: Float[Tensor, " n"], width: int) -> list[float]:
    """Parts of the sum of magnitudes for `total`, of every `width` numbers, in float64."""
    whole = len(values) - len(values) % width
    rows = (*values[:whole].view(-1, width).split(max(1, BLOCK // width)), values[whole:].view(1, -1))
    parts = (part for row in rows for part in row.split(STRETCH, 1))
    return [sums for part in parts for sums in part.abs().sum(1, dtype=torch.float64).tolist()]


def _column(values: Float[np.ndarray, " rows"]) -> Float[Tensor, "rows 1"]:
    return torch.from_numpy(values).float().unsqueeze(1)


def _ends(piece: Piece, over_base: bool) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The two ends of the arc. Raises ValueError when there are not exactly as many models as it takes."""
    if over_base:
        first, second = piece.tuned
        return first.sub_(piece.base), second.sub_(piece.base)
    (tuned,) = piece.tuned
    return piece.base, tuned


def _row_ends(
    piece: Piece, width: int, across: int, over_base: bool
) -> Iterator[tuple[int, Float[Tensor, " d"], Float[Tensor, " d"]]]:
    """The two ends row by row, and the place of the row's first number within its index of the first axis."""
    first, second = _ends(piece, over_base)
    for start in range(0, len(first), width):
        yield (piece.start + start) % across, first[start : start + width], second[start : start + width]


def _row_blocks(pieces: Pieces) -> Iterator[tuple[int, Float[Tensor, "tile filled"], Float[Tensor, "rows d"]]]:
    """The update and the one tuned model in blocks of TILE rows, cut at the same places whatever the pieces, with the
    number of the first row. The last block of tuned rows may be shorter; updates are filled up with zeros.
    """
    width = row_length(pieces.shape)
    filled = torch.zeros(TILE, width + -width % TILE)
    waiting = torch.empty(2, 0, width)
    first = 0
    for piece in pieces.rows():
        (tuned,) = piece.tuned
        waiting = torch.cat((waiting, torch.stack((piece.base, tuned)).view(2, -1, width)), 1)
        last_piece = piece.start + len(tuned) == math.prod(pieces.shape)
        while waiting.shape[1] >= (1 if last_piece else TILE):
            base_rows, tuned_rows = waiting[:, :TILE]
            torch.sub(tuned_rows, base_rows, out=filled[: len(tuned_rows), :width])
            filled[len(tuned_rows) :].zero_()
            yield first, filled, tuned_rows
            waiting, first = waiting[:, TILE:], first + TILE
