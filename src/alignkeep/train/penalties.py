"""What AlignGuard-LoRA adds to the loss of one matrix: three terms in factors, and one over entries in row blocks.

Source
    AlignGuard-LoRA, arXiv:2508.02079, reconstructed from reviews and re-implementations:
    L = L_task + lambda_A ||dW_A F^{1/2}||^2 + lambda_T ||H^{1/2} * dW_T||^2 + lambda_NC [a E_RM + (1 - a) E_geo]
    E_RM = sum_ij eta_ij |dW_A,ij dW_T,ij|,  eta_ij = 1 + beta sigmoid(|dW_ij| - tau)
    E_geo = <dW_A, dW_T>^2 / (||dW_A||^2 ||dW_T||^2)

Symbols (paper -> here)
    dW_A, dW_T   split.aligned, .rest    factors (train/split.py)
    F            subspace
    H            rows, columns           of H_ij = rows_i columns_j, None is 1
    E_RM         collision               over entries: the Riemannian overlap
    E_geo        coherence               a squared cosine: the geodesic separation
    eta          Emphasis                beta, tau, and what is compared with tau

Departures
    1. Terms are sums over entries, F and H divided by their largest eigenvalue or entry (or all F by the largest of the
       model): as means they vanish.
    2. <., .> in E_geo weighs coordinates by F's diagonal. In the plain inner product dW_A and dW_T are orthogonal and
       E_geo is 0 whatever the update. H is a variant.
    3. E_geo is 0, with gradient 0, while either squared norm is below `SMALLEST`, or is rounding beside the other: LoRA
       begins at dW = 0, where it is 0/0.
    4. H, by default 1 everywhere, is rank one: a running mean (.95) over the task's batches of the mean square of each
       output's gradient, times that of each input.
    5. With |dW| of 0 to 0.1 and the published tau = 0.01 eta is nearly constant, 1 + beta / 2. Variants compare
       relatively, (|dW| - tau) / tau, or the whole weight, |W0 + dW|.

Shapes: d_out x d_in update, r its rank; *B any number of matrices at once, or none: terms are one number for each.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alignkeep.train.split import LowRank, LowRankSplit, Subspace

SMALLEST = 1e-12  # squared norm: below it an update has no direction to speak of
ENTRIES = 1 << 18  # of a block (chosen, not measured yet)

PerMatrix = Float[Tensor, "*B"]


class Emphasis(NamedTuple):
    """eta: how much more an entry counts where the update, or the weight, is large."""

    beta: float = 4.0
    tau: float = 0.01
    compares: Literal["update", "relative", "weight"] = "update"


def inner(
    one: LowRank,
    other: LowRank,
    rows: Float[Tensor, "*B d_out"] | None = None,
    columns: Float[Tensor, "*B d_in"] | None = None,
) -> PerMatrix:
    """sum_ij rows_i columns_j one_ij other_ij, in O((d_out + d_in) r^2)."""
    left = one.left if rows is None else one.left * rows[..., None]
    right = one.right if columns is None else one.right * columns[..., None, :]
    return ((left.mT @ other.left) * (right @ other.right.mT)).sum((-2, -1))


def fisher_penalty(aligned: LowRank, subspace: Subspace) -> PerMatrix:
    """||dW_A F^{1/2}||^2; tr(dW_A^T F_out dW_A F_in) with both sides. Quadratic in the update, 0 beside the basis."""
    left, right = aligned
    if subspace.outputs is not None:
        left = subspace.outputs.eigenvalues.sqrt()[..., None] * (subspace.outputs.vectors.mT @ left)
    if subspace.inputs is not None:
        right = (right @ subspace.inputs.vectors) * subspace.inputs.eigenvalues.sqrt()[..., None, :]
    seen = LowRank(left, right)
    return inner(seen, seen)


def trust_penalty(
    rest: LowRank, rows: Float[Tensor, "*B d_out"] | None = None, columns: Float[Tensor, "*B d_in"] | None = None
) -> PerMatrix:
    """||H^{1/2} * dW_T||^2: a trust region around the base, beside the subspace."""
    return inner(rest, rest, rows, columns)


def coherence(
    parts: LowRankSplit,
    subspace: Subspace,
    rows: Float[Tensor, "*B d_out"] | None = None,
    columns: Float[Tensor, "*B d_in"] | None = None,
) -> PerMatrix:
    """E_geo, in [0, 1]: the squared cosine between both parts where coordinates weigh as the Fisher's diagonal, or as
    H's `rows` and `columns`."""
    if rows is None and columns is None:
        rows = None if subspace.outputs is None else subspace.outputs.diagonal
        columns = None if subspace.inputs is None else subspace.inputs.diagonal
    aligned, rest = parts
    ours, theirs = inner(aligned, aligned, rows, columns), inner(rest, rest, rows, columns)
    rounding = torch.finfo(ours.dtype).eps ** 2 * (aligned.left.shape[-2] + aligned.right.shape[-1])
    is_small = torch.minimum(ours, theirs) < SMALLEST + rounding * torch.maximum(ours, theirs)
    norms = torch.where(is_small, torch.ones_like(ours), ours * theirs)
    return torch.where(is_small, torch.zeros_like(ours), inner(aligned, rest, rows, columns).square() / norms)


def collision(
    parts: LowRankSplit, emphasis: Emphasis | None = None, weight: Float[Tensor, "*B d_out d_in"] | None = None
) -> PerMatrix:
    """E_RM. Needs entries: they are formed in blocks of rows, with the gradient, and let go; no second derivative.

    `weight` is W0, asked for by an emphasis that compares the whole weight; ValueError without it.
    """
    emphasis = emphasis or Emphasis()
    if emphasis.compares == "weight" and weight is None:
        raise ValueError("an emphasis on the whole weight needs the base's matrix")
    found: Any = _Collision.apply(*parts.aligned, *parts.rest, emphasis, weight)
    return found


class _Collision(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, other_left: Tensor, other_right: Tensor, emphasis: Emphasis, weight: Any
    ) -> Tensor:
        wide = torch.float64 if left.dtype == torch.float64 else torch.float32
        total = left.new_zeros(left.shape[:-2], dtype=wide)
        gradients = [torch.zeros_like(factor, dtype=wide) for factor in (left, right, other_left, other_right)]
        several = max(total.numel() * right.shape[-1], 1)
        rows = max(ENTRIES // several, 1)
        for start in range(0, left.shape[-2], rows):
            block = ..., slice(start, start + rows), slice(None)
            ours, theirs = left[block] @ right, other_left[block] @ other_right
            product = (ours * theirs).abs_()
            eta, slope = _eta(ours + theirs, emphasis, None if weight is None else weight[block].to(ours))
            total += (eta * product).sum((-2, -1))
            both = slope.mul_(product)
            by_ours = (eta * theirs.abs()).mul_(ours.sign()).add_(both)
            by_theirs = (eta * ours.abs()).mul_(theirs.sign()).add_(both)
            gradients[0][block] = by_ours @ right.mT
            gradients[1] += left[block].mT @ by_ours
            gradients[2][block] = by_theirs @ other_right.mT
            gradients[3] += other_left[block].mT @ by_theirs
        ctx.save_for_backward(*(gradient.to(left.dtype) for gradient in gradients))
        return total.to(left.dtype)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: torch calls it by place
        ctx: Any, *outer: Tensor
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("collision has no second derivative")
        return *(outer[0][..., None, None] * gradient for gradient in ctx.saved_tensors), None, None


def _eta(update: Tensor, emphasis: Emphasis, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """eta and its derivative by the update."""
    beta, tau, compares = emphasis
    looked_at = update if weight is None or compares != "weight" else weight + update
    unit = tau if compares == "relative" else 1.0
    sigmoid = ((looked_at.abs() - tau) / unit).sigmoid_()
    slope = (sigmoid * (1 - sigmoid)).mul_(looked_at.sign()).mul_(beta / unit)
    return 1 + beta * sigmoid, slope
