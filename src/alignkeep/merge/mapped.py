"""A merge that sees the update through its inputs: base + D M.

Symbols
    D          tuned - base
    U, P       basis (d_in, m) of the directions the aligned model uses on alignment prompts; P = U U^T
    M          map of the inputs, scale I + reads writes^T; I - (1 - w) P for the alignment subspace

Ours, after Matena and Raffel, Merging Models with Fisher-Weighted Averaging, arXiv:2111.09832 (`subspace/balance.py`
finds the map). A generator over one tensor in pieces that gives the merged numbers back in order, in float32. Products
are torch's, and it is imported for this file only.
"""

# torch leaves the types of some methods open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from alignkeep.merge.methods import InputMap
from alignkeep.merge.pieces import Array, Pieces, row_length

# A product's bits depend on its shape, and on the number of threads where a side is no multiple of 16 (measured with
# MKL): so products are of blocks of so many rows, cut at fixed places, with sides filled up with zeros.
TILE = 64


def mapped_merge(pieces: Pieces, through: InputMap, *, input_axis: int = -1) -> Iterator[Float32[Array, " n"]]:
    """base + D M: the update seen through a map of its inputs.

    The input side is the last axis, or axis 0 of a matrix (d_in, d_out) such as Conv1D's, where it takes two passes.
    Law: scale 1 and no reads give tuned exactly. Raises ValueError for another axis and when the map has not as many
    rows as the input side.
    """
    inputs = pieces.shape[input_axis] if pieces.shape else 1
    if len(through.reads) != inputs or len(through.writes) != inputs:
        raise ValueError(f"the map is of {len(through.reads)} inputs, tensor {pieces.name!r} has {inputs}")
    read, write = _filled(through.reads), _filled(through.writes)
    if input_axis in (-1, len(pieces.shape) - 1):
        for _, update, tuned in _row_blocks(pieces):
            inside = torch.mm(torch.mm(update, read), write.T)[: len(tuned), : tuned.shape[1]]
            yield _mapped(tuned, update, inside, through.scale)
    elif input_axis == 0 and len(pieces.shape) == 2:
        coordinates = torch.zeros((), dtype=torch.float64)
        for row, update, _ in _row_blocks(pieces):
            coordinates = coordinates + torch.mm(read[row : row + TILE].T, update)
        for row, update, tuned in _row_blocks(pieces):
            inside = torch.mm(write[row : row + TILE], coordinates.float())[: len(tuned), : tuned.shape[1]]
            yield _mapped(tuned, update, inside, through.scale)
    else:
        raise ValueError(f"the input side is the last axis, or axis 0 of a matrix, not {input_axis} of {pieces.shape}")


def seen_through(factor: Float32[Array, "r d_in"], through: InputMap) -> Float32[Array, "r d_in"]:
    """A M, the factor A of an update B A seen through the same map."""
    numbers = torch.from_numpy(factor)
    return torch.add(through.scale * numbers, numbers @ through.reads.float() @ through.writes.float().T).numpy()


def _mapped(
    tuned: Float[Tensor, "rows d"], update: Float[Tensor, "tile filled"], inside: Float[Tensor, "rows d"], scale: float
) -> Float32[Array, " n"]:
    """base + scale D + inside, from tuned = base + D."""
    if scale != 1:
        tuned = tuned.sub_(update[: len(tuned), : tuned.shape[1]], alpha=1 - scale)
    return tuned.add_(inside).view(-1).numpy()


def _filled(factor: Float[Tensor, "d_in k"]) -> Float[Tensor, "tiled tiled"]:
    """In float32, filled up to whole tiles: products of one shape have one order of summation."""
    return torch.nn.functional.pad(factor.float(), (0, -factor.shape[1] % TILE, 0, -factor.shape[0] % TILE))


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
        both = torch.stack((torch.from_numpy(piece.base), torch.from_numpy(tuned)))
        waiting = torch.cat((waiting, both.view(2, -1, width)), 1)
        last_piece = piece.start + len(tuned) == math.prod(pieces.shape)
        while waiting.shape[1] >= (1 if last_piece else TILE):
            base_rows, tuned_rows = waiting[:, :TILE]
            torch.sub(tuned_rows, base_rows, out=filled[: len(tuned_rows), :width])
            filled[len(tuned_rows) :].zero_()
            yield first, filled, tuned_rows
            waiting, first = waiting[:, TILE:], first + TILE
