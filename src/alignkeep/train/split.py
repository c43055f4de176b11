"""A low-rank update cut in two, inside and beside the subspace that alignment rests on, never leaving its factors.

Source
    AlignGuard-LoRA, arXiv:2508.02079: dW = dW_A + dW_T, dW_A = P dW, P = U_m U_m^T, U_m the leading eigenvectors of
    the matrix's Fisher factor. Reconstructed from reviews and re-implementations; no public code runs.

Symbols (paper -> here)
    dW = s B A     update            LowRank(left = s B, right = A)
    dW_A, dW_T     aligned, rest
    U_m, Lambda    Side.vectors, .eigenvalues
    F              Subspace          one Kronecker factor of it, or both

Departures
    1. P stands on the input side, dW_A = dW P: the paper writes dW = A B with A the down-projection. The output
       side and both are variants.
    2. Where both sides are given F is their Kronecker product (K-FAC) and dW_A = P_out dW P_in.

Shapes: d_out x d_in update of rank r, m the rank of a basis; *B any number of matrices at once, or none.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class LowRank(NamedTuple):
    """An update as left @ right."""

    left: Float[Tensor, "*B d_out r"]
    right: Float[Tensor, "*B r d_in"]


class Side(NamedTuple):
    """The leading eigenvectors of one factor, orthonormal (or 0, with eigenvalue 0: no direction at all); their
    eigenvalues and the factor's diagonal, both divided by its largest eigenvalue, or by the largest of a model."""

    vectors: Float[Tensor, "*B d m"]
    eigenvalues: Float[Tensor, "*B m"]
    diagonal: Float[Tensor, "*B d"]

    @property
    def held(self) -> Float[Tensor, "*B"]:
        """The share of the factor's trace that these directions hold, in [0, 1]; NaN for a factor of 0."""
        return (self.eigenvalues.sum(-1) / self.diagonal.sum(-1)).clamp(max=1)


class Subspace(NamedTuple):
    """Of one matrix: what its inputs, its outputs, or both say. One of them is there."""

    inputs: Side | None = None
    outputs: Side | None = None


class LowRankSplit(NamedTuple):
    """Both parts as factors. Laws: they add up to the update; their inner product over entries is 0."""

    aligned: LowRank
    rest: LowRank


def split(update: LowRank, subspace: Subspace) -> LowRankSplit:
    """The parts of rank r; with both sides `rest` has rank 2 r, as it is all but P_out dW P_in."""
    left, right = update
    inside_left = left if subspace.outputs is None else _projected(left, subspace.outputs.vectors)
    inside_right = right if subspace.inputs is None else _projected(right.mT, subspace.inputs.vectors).mT
    aligned = LowRank(inside_left, inside_right)
    if subspace.outputs is None:
        return LowRankSplit(aligned, LowRank(left, right - inside_right))
    if subspace.inputs is None:
        return LowRankSplit(aligned, LowRank(left - inside_left, right))
    beside = LowRank(
        torch.cat([left - inside_left, inside_left], -1),
        torch.cat([right, right - inside_right], -2),
    )
    return LowRankSplit(aligned, beside)


def _projected(columns: Float[Tensor, "*B d r"], basis: Float[Tensor, "*B d m"]) -> Float[Tensor, "*B d r"]:
    return basis @ (basis.mT @ columns)
