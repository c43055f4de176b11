"""The few directions that hold most of a factor's trace.

Sources
    AlignGuard-LoRA, arXiv:2508.02079: the leading eigenvectors U_m of a layer's Fisher factor.
    Tropp, Yurtsever, Udell and Cevher, arXiv:1706.05736, algorithm 3: eigenpairs from a sketch, by a Nystroem
    approximation of F + shift, shifted back.

Symbols (paper -> here)
    U_m       vectors       orthonormal columns
    Lambda    eigenvalues   of F divided by its largest one, so that a penalty's strength has no unit
    nu        shift         what keeps the small matrix of the Nystroem formula positive

Departures
    1. m is the smallest rank that holds 90 % of the trace, at most 64; the paper fixes none.
    2. Tropp et al. take a Cholesky factor; here an eigendecomposition, so that a factor of lower rank than the sketch
       (fewer samples than columns) needs no special case.

Shapes: d width of the factor, m rank kept, p columns of the probe.
"""

# torch.linalg brings no types:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from alignkeep.subspace.fisher import Factor, FullFactor, SketchedFactor

SHARE, MOST = 0.9, 64
_ROUNDING = torch.finfo(torch.float32).eps  # of the products that a factor is summed from


@dataclass(frozen=True, slots=True, eq=False)
class Eigenbasis:
    """`vectors` with their normalised `eigenvalues` (falling from 1), and how good they are.

    `captured` is the share of the factor's `trace` that they hold, NaN for a factor of zero, which has no vectors at
    all; `capped` says that they hold less than was asked for. `largest` is the eigenvalue that became 1.
    """

    vectors: Float[Tensor, "d m"]
    eigenvalues: Float[Tensor, " m"]
    largest: float
    trace: float
    captured: float
    capped: bool

    @property
    def rank(self) -> int:
        return self.vectors.shape[1]


def eigenbasis(factor: Factor, share: float = SHARE, most: int = MOST) -> Eigenbasis:
    """The smallest leading eigenspace that holds `share` of the trace, of rank `most` at most.

    From a sketch the eigenvalues are not above the true ones, so the captured share is a lower bound. Eigenvalues that
    float32 products cannot tell from zero are left out. Raises ValueError for a factor that is not finite, a share
    outside (0, 1] or a rank below 1.
    """
    _check(factor, share, most)
    values, vectors = _whole(factor) if isinstance(factor, FullFactor) else _nystroem(factor)
    return _leading(values, vectors, factor.trace, share, most)


def coordinate_basis(factor: Factor, share: float = SHARE, most: int = MOST) -> Eigenbasis:
    """The same for the factor's diagonal alone: its vectors are axes, so the projector is a mask over coordinates."""
    _check(factor, share, most)
    values, order = factor.diagonal.sort(descending=True, stable=True)
    order = order[:most]
    axes = torch.zeros(factor.diagonal.shape[0], order.shape[0], dtype=values.dtype, device=values.device)
    axes[order, torch.arange(order.shape[0], device=values.device)] = 1.0
    return _leading(values[:most], axes, factor.trace, share, most)


def _check(factor: Factor, share: float, most: int) -> None:
    if not 0 < share <= 1 or most < 1:
        raise ValueError(f"need 0 < share <= 1 and most >= 1, got {share} and {most}")
    parts = [factor.matrix] if isinstance(factor, FullFactor) else [factor.sketch, factor.diagonal]
    if not all(bool(part.isfinite().all()) for part in parts):
        raise ValueError("a factor with NaN or infinite entries has no eigenbasis")


def _whole(factor: FullFactor) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    values, vectors = torch.linalg.eigh(factor.matrix)
    return values.flip(0), vectors.flip(1)


def _nystroem(factor: SketchedFactor) -> tuple[Float[Tensor, " q"], Float[Tensor, "d q"]]:
    """Eigenpairs of Y (Omega^T Y)^+ Y^T for Y = (F + shift) Omega, shifted back; q <= p of them, falling."""
    probe = factor.probe.to(factor.sketch.dtype)
    shift = _ROUNDING * float(torch.linalg.matrix_norm(factor.sketch, 2))
    shifted = factor.sketch + shift * probe
    small = probe.mT @ shifted
    weights, mixing = torch.linalg.eigh((small + small.mT) / 2)
    sound = weights > _ROUNDING * weights[-1].clamp(min=0)
    root = shifted @ (mixing[:, sound] / weights[sound].sqrt())
    vectors, singular, _ = torch.linalg.svd(root, full_matrices=False)
    return singular.square() - shift, vectors


def _leading(values: Tensor, vectors: Tensor, trace: float, share: float, most: int) -> Eigenbasis:
    """Cuts falling eigenpairs. A trace of 0 gives the empty basis."""
    largest = float(values[0]) if values.numel() else 0.0
    if largest <= 0 or trace <= 0:
        return Eigenbasis(vectors[:, :0], values[:0], 0.0, 0.0, math.nan, False)
    floor = math.sqrt(vectors.shape[0]) * _ROUNDING * largest
    values = values[values > floor]
    held = values.cumsum(0) / trace
    enough = int((held < share - _ROUNDING).sum()) + 1
    rank = min(enough, most, values.shape[0])
    captured = min(float(held[rank - 1]), 1.0)
    kept = values[:rank] / largest
    return Eigenbasis(vectors[:, :rank].contiguous(), kept, largest, trace, captured, captured < share - _ROUNDING)
