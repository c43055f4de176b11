"""What an update does inside an alignment subspace, and what it does beside it.

Source
    AlignGuard-LoRA, arXiv:2508.02079: dW_A = P dW, dW_T = (I - P) dW with P = U_m U_m^T.

Symbols (paper -> here)
    dW           delta                   tuned minus base, as y = W x: rows are outputs, columns inputs
    dW_A, dW_T   Split.aligned, .rest    inside and beside the subspace
    B A          left, right             the factors of a low-rank update, delta = left @ right

Departures
    1. The paper writes dW = A B with A the down-projection, so its P stands on the input side: here `dW P`. The output
       side, `P dW`, and both, `P_out dW P_in`, are variants.
    2. `weighted` is not in the paper: the update with its part inside the subspace scaled, dW_T + w dW_A.

Shapes: d_out x d_in update, m and k ranks of the bases, r rank of the update. A matrix stored transposed (Conv1D of
transformers) is transposed by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Split(NamedTuple):
    """The two parts of an update; they add up to it and are orthogonal in the inner product of entries."""

    aligned: Float[Tensor, "*rows d_in"]
    rest: Float[Tensor, "*rows d_in"]


class LowRank(NamedTuple):
    """An update as left @ right."""

    left: Float[Tensor, "d_out r"]
    right: Float[Tensor, "r d_in"]


@dataclass(frozen=True, slots=True, eq=False)
class Projector:
    """The projection of updates onto a subspace of their inputs, of their outputs, or of both.

    Bases are orthonormal columns in float32 or float64; an empty one (m = 0) projects everything to zero. Laws:
    projecting twice is projecting once; <dW_A, dW_T> = 0. Raises ValueError for no basis at all, or columns that are
    not orthonormal to 1e-3.
    """

    inputs: Float[Tensor, "d_in m"] | None = None
    outputs: Float[Tensor, "d_out k"] | None = None

    def __post_init__(self) -> None:
        if self.inputs is None and self.outputs is None:
            raise ValueError("a projector needs a basis of inputs, of outputs, or both")
        for basis in (self.inputs, self.outputs):
            if basis is None:
                continue
            gram = basis.mT @ basis
            off = (gram - torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)).abs()
            if off.numel() and not bool(off.max() <= 1e-3):  # so said, NaN is refused too
                raise ValueError(f"columns of a basis must be orthonormal, U^T U is off by {float(off.max()):.2g}")

    def aligned(self, delta: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_in"]:
        """The part inside the subspace, in the update's dtype. With inputs alone any block of rows can be given."""
        part = delta
        if self.inputs is not None:
            basis = self.inputs.to(delta)
            part = (part @ basis) @ basis.mT
        if self.outputs is not None:
            basis = self.outputs.to(delta)
            part = basis @ (basis.mT @ part)
        return part

    def split(self, delta: Float[Tensor, "*rows d_in"]) -> Split:
        """Both parts. With two bases `rest` is everything but P_out dW P_in."""
        aligned = self.aligned(delta)
        return Split(aligned, delta - aligned)

    def weighted(self, delta: Float[Tensor, "*rows d_in"], weight: float) -> Float[Tensor, "*rows d_in"]:
        """dW_T + weight dW_A: the update itself at weight 1, bit for bit."""
        return delta if weight == 1 else delta - (1 - weight) * self.aligned(delta)

    def weighted_factors(self, update: LowRank, weight: float) -> LowRank:
        """`weighted` of left @ right without their product; of rank r on one side, 2 r with both.

        On the input side it is left @ (right (I - (1 - weight) P)), so only an adapter's A changes.
        """
        if weight == 1:
            return update
        left, right = update
        inside = LowRank(left, right)
        if self.inputs is not None:
            basis = self.inputs.to(right)
            inside = LowRank(left, (right @ basis) @ basis.mT)
        if self.outputs is not None:
            basis = self.outputs.to(left)
            inside = LowRank(basis @ (basis.mT @ left), inside.right)
        if self.outputs is None:
            return LowRank(left, right - (1 - weight) * inside.right)
        if self.inputs is None:
            return LowRank(left - (1 - weight) * inside.left, right)
        return LowRank(torch.cat([left, (weight - 1) * inside.left], 1), torch.cat([right, inside.right], 0))
