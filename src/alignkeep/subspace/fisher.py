"""One side of a matrix's Fisher information as a Kronecker factor, summed over samples without a gradient of its shape.

Sources
    Martens and Grosse, Optimizing neural networks with Kronecker-factored approximate curvature, arXiv:1503.05671: a
    factor per side of a matrix. Its use as an alignment subspace: AlignGuard-LoRA, arXiv:2508.02079.
    Tropp, Yurtsever, Udell and Cevher, Fixed-rank approximation of a positive-semidefinite matrix from streaming data,
    arXiv:1706.05736: the sketch F Omega, taken in one pass, and what is read from it (`eigenbasis.py`).

Symbols (paper -> here)
    a_t, g_t   activation, gradient   of the loss with respect to the matrix's output, at token t of one sample
    G_i        (never formed)         gradient of sample i's loss with respect to the matrix, sum_t g_t a_t^T
    F          FullFactor.matrix      (1/n) sum_i G_i^T G_i on the input side, (1/n) sum_i G_i G_i^T on the output side
    Omega      probe                  fixed Gaussian columns, made orthonormal

Departures
    1. K-FAC's input factor is the second moment of the activations and its output factor that of the gradients, as if
       the two were independent. Here both come from the gradient of a whole sample; the plain second moment is what
       `add` sums when it gets no partners.
    2. G^T G = A^T (g g^T) A is contracted over the tokens: T^2 numbers per sample in between, not d_out x d_in.
    3. A matrix wider than `FULL_UP_TO` keeps F Omega, the trace and the diagonal, all exact, in place of F.

Shapes: B samples padded to T tokens, d the width of the side that is summed, e that of the other, p probe columns.
"""

# torch.linalg brings no types:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Chosen: a full factor of this width takes 8 MB and half a second to diagonalise; wider ones also cost more than the
# forward pass that feeds them.
FULL_UP_TO = 1024
# Chosen: twice the largest rank asked for by default (64).
PROBE_COLUMNS = 128


@dataclass(frozen=True, slots=True, eq=False)
class FullFactor:
    """A mean of `count` positive semidefinite matrices, whole."""

    matrix: Float[Tensor, "d d"]
    count: int

    @property
    def diagonal(self) -> Float[Tensor, " d"]:
        return self.matrix.diagonal()

    @property
    def trace(self) -> float:
        return float(self.diagonal.sum())


@dataclass(frozen=True, slots=True, eq=False)
class SketchedFactor:
    """The same seen through a probe: `sketch` = F @ `probe`, with the exact diagonal of F."""

    sketch: Float[Tensor, "d p"]
    probe: Float[Tensor, "d p"]
    diagonal: Float[Tensor, " d"]
    count: int

    @property
    def trace(self) -> float:
        return float(self.diagonal.sum())


Factor = FullFactor | SketchedFactor


class FactorSum:
    """The running sum behind a factor: products in float32, sums of them in float64 (float32 on MPS, which lacks it).

    With a probe the factor is sketched. Law: the factor does not depend on how samples are batched or padded, or on
    their order, up to the rounding of a float32 product.
    """

    def __init__(self, width: int, *, probe: Float[Tensor, "d p"] | None = None, device: torch.device | None = None):
        if probe is not None and probe.shape[0] != width:
            raise ValueError(f"a probe of {probe.shape[0]} rows for a factor of width {width}")
        device = device if probe is None else probe.device
        kind = torch.float32 if device is not None and device.type == "mps" else torch.float64
        columns = width if probe is None else probe.shape[1]
        self.probe = probe
        self.count = 0
        self._sum = torch.zeros(width, columns, dtype=kind, device=device)
        self._diagonal = torch.zeros(width if probe is not None else 0, dtype=kind, device=device)

    def add(
        self,
        vectors: Float[Tensor, "*B T d"],
        partners: Float[Tensor, "*B T e"] | None = None,
        *,
        mask: Bool[Tensor, "*B T"] | None = None,
    ) -> None:
        """Adds sum_i V_i^T (P_i P_i^T) V_i and counts samples; without partners sum_t v_t v_t^T, and counts tokens.

        With activations as vectors and gradients as partners this is the input side, swapped the output side. Tokens
        where `mask` is False do not exist, whatever stands there. Raises ValueError when the shapes do not fit.
        """
        rows, others, there = _batched(vectors, partners, mask)
        if rows.shape[-1] != self._sum.shape[0]:
            raise ValueError(f"vectors of width {rows.shape[-1]} for a factor of width {self._sum.shape[0]}")
        mixed = rows if others is None else torch.bmm(torch.bmm(others, others.mT), rows)
        flat, mixed = rows.flatten(0, 1), mixed.flatten(0, 1)
        if self.probe is None:
            self._sum += flat.mT @ mixed
        else:
            self._sum += flat.mT @ (mixed @ self.probe)
            self._diagonal += (flat * mixed).sum(0, dtype=self._diagonal.dtype)
        self.count += rows.shape[0] if others is not None else int(there.sum())

    def factor(self) -> Factor:
        """The mean so far; of nothing, zero. Later `add`s do not change it."""
        mean = self._sum / max(self.count, 1)
        if self.probe is None:
            return FullFactor((mean + mean.mT) / 2, self.count)
        return SketchedFactor(mean, self.probe, self._diagonal / max(self.count, 1), self.count)


def gaussian_probe(
    width: int, *, columns: int = PROBE_COLUMNS, seed: int = 0, device: torch.device | None = None
) -> Float[Tensor, "d p"]:
    """Orthonormal columns that span a Gaussian random subspace, float32; at most `width` of them.

    The same for the same width, columns and seed: drawn on the CPU, in float64.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(width, min(columns, width), generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.to(torch.float32).to(device)


def _batched(
    vectors: Tensor, partners: Tensor | None, mask: Tensor | None
) -> tuple[Float[Tensor, "B T d"], Float[Tensor, "B T e"] | None, Bool[Tensor, "*B T"]]:
    """Vectors and partners in float32 with a batch axis, zeros where the mask is False."""
    if vectors.ndim not in (2, 3):
        raise ValueError(f"vectors need the shape (T, d) or (B, T, d), got {tuple(vectors.shape)}")
    shape = vectors.shape[:-1]
    there = torch.ones(shape, dtype=torch.bool, device=vectors.device) if mask is None else mask
    for name, given in (("partners", None if partners is None else partners.shape[:-1]), ("mask", there.shape)):
        if given is not None and given != shape:
            raise ValueError(f"{name} for tokens {tuple(given)} beside vectors for tokens {tuple(shape)}")

    def ready(values: Tensor) -> Tensor:
        values = values.detach().to(torch.float32)
        values = values if mask is None else values.masked_fill(~there[..., None], 0.0)
        return values if values.ndim == 3 else values[None]

    return ready(vectors), None if partners is None else ready(partners), there
