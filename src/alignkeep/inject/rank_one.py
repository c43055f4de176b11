"""The rank-one edit of a matrix that writes to the residual stream, and how strong it is.

Paper
    Shairah et al., Rank-One Safety Injection (ROSI), arXiv:2508.20766, eq. 6.

Symbols (paper -> here)
    W             weight       (d_out, d_in)
    s_hat, s      `direction`, a unit vector, and its length before it was one, `length`
    w_bar         `mean_row`   W.mean(0): the mean of W's rows
    alpha         `alpha`      W' = W + alpha s_hat w_bar^T

    mu_h          mean input of a matrix at the last token of harmful prompts
    S             second moment of its inputs where it is to be silent
    v             `targeted_right`: S^-1 mu_h / (mu_h^T S^-1 mu_h)

Departures from the paper
    1. `calibrated` turns the sign of a matrix's alpha so that w_bar^T mu_h alpha > 0. As printed the sign of the push
       is that of the coordinate mean of W x, and may lower refusal.
    2. `targeted_right` in place of w_bar is ours: the minimum-variance distortionless response of a beamformer (Capon,
       High-resolution frequency-wavenumber spectrum analysis, 1969): of all vectors that give mu_h the response 1 the
       one with the smallest mean square response to S.
    3. Strengths beside the raw alpha: `Relative`, the Frobenius norm of the change in units of the matrix's, and
       `Push`, the shift of the mean harmful activation by all matrices together in units of ||s||, each doing its
       share.

Identity: with w_bar the edit is W' = (I + (alpha / d_out) s_hat 1^T) W.
"""

# torch leaves the types of some methods open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

RIDGE = 1e-2  # times the mean of S's diagonal (chosen: 1e-3 gives the same on the testbed)


@dataclass(frozen=True, slots=True)
class Raw:
    """The alpha of eq. 6, the same for every matrix."""

    alpha: float


@dataclass(frozen=True, slots=True)
class Relative:
    """||W' - W||_F = share * ||W||_F for every matrix."""

    share: float


@dataclass(frozen=True, slots=True)
class Push:
    """All matrices together move the mean harmful activation by `shift` ||s||, if all push the same way."""

    shift: float


Strength = Raw | Relative | Push


class RankOne(NamedTuple):
    """W' = W + left right^T."""

    left: Float[Tensor, " d_out"]
    right: Float[Tensor, " d_in"]


class Matrix(NamedTuple):
    """What the strength of one matrix's edit depends on. `harmful` and `harmless` are the mean of right^T x at the last
    token of such prompts, times what the family multiplies the matrix's output by (NaN: it saw none); matrices of one
    `place` (experts) share a place in the residual stream.
    """

    right: Float[Tensor, " d_in"]
    weight_norm: float
    harmful: float
    harmless: float
    place: str


def mean_row(weight: Float[Tensor, "d_out d_in"]) -> Float[Tensor, " d_in"]:
    """w_bar, in float64. Law: w_bar^T x is the coordinate mean of W x."""
    return weight.double().mean(0)


def targeted_right(
    mean: Float[Tensor, " d_in"], silent: Sequence[Float[Tensor, "n d_in"]], *, ridge: float = RIDGE
) -> Float[Tensor, " d_in"]:
    """v for inputs `mean` and places where to be silent, each place counting the same whatever its number of inputs.

    Laws: v^T mean = 1; v does not change with the order of inputs, nor when every input and `mean` turn together; it
    scales as 1 / a with all inputs times a. Solved in the smaller of n and d_in. Raises ValueError where `mean` is 0 or
    no input is given.
    """
    mean = mean.double()
    places = [inputs.double() for inputs in silent if len(inputs)]
    if not places or not bool(mean.any()):
        raise ValueError("the targeted vector needs inputs to answer to and inputs to be silent on")
    rows = torch.cat([inputs / math.sqrt(len(inputs) * len(places)) for inputs in places])
    size = len(mean)
    loading = ridge * float(rows.square().sum()) / size
    if loading == 0:  # silent everywhere already
        return mean / (mean @ mean)
    if len(rows) < size:  # Woodbury: (X^T X + c I)^-1 m = (m - X^T (X X^T + c I)^-1 X m) / c
        inner = rows @ rows.T + loading * torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
        answer = mean - rows.T @ torch.linalg.solve(inner, rows @ mean)
    else:
        moment = rows.T @ rows + loading * torch.eye(size, dtype=rows.dtype, device=rows.device)
        answer = torch.linalg.solve(moment, mean)
    return answer / (mean @ answer)


def alphas(
    strength: Strength,
    matrices: Mapping[str, Matrix],
    *,
    length: float,
    sign: Literal["literal", "calibrated"],
) -> dict[str, float]:
    """Every matrix's alpha, by name. `length` is ||s||.

    Laws: linear in the strength; with `calibrated` no matrix pushes harmful prompts away for a positive strength. A
    matrix that saw no harmful prompt has no sign to calibrate and is left out there. Raises ValueError where nothing
    pushes at all, so that no alpha gives the shift.
    """
    known = {name: one for name, one in matrices.items() if sign == "literal" or not math.isnan(one.harmful)}
    match strength:
        case Raw(alpha):
            sizes = dict.fromkeys(known, alpha)
        case Relative(share):
            norms = {name: float(one.right.norm()) for name, one in known.items()}
            sizes = {name: share * one.weight_norm / norms[name] if norms[name] else 0.0 for name, one in known.items()}
        case Push(shift):
            reach = _total_push(known.values())
            if not reach > 0:
                raise ValueError("no matrix pushes the mean harmful activation")
            sizes = dict.fromkeys(known, shift * length / reach)
    if sign == "literal":
        return sizes
    return {name: math.copysign(1.0, known[name].harmful) * size for name, size in sizes.items()}


def rank_one(direction: Float[Tensor, " d_out"], right: Float[Tensor, " d_in"], alpha: float) -> RankOne:
    """alpha s_hat right^T in float32, the factors as a LoRA of rank 1 stores them."""
    return RankOne((alpha * direction.double()).float(), right.float())


def applied(weight: Float[Tensor, "d_out d_in"], edit: RankOne) -> Float[Tensor, "d_out d_in"]:
    """W + left right^T in float32, rounded once to the type of W."""
    return (weight.float() + edit.left[:, None] * edit.right[None]).to(weight.dtype)


def _total_push(matrices: Iterable[Matrix]) -> float:
    """Sum over places of the mean size of what their matrices push."""
    sizes: dict[str, list[float]] = {}
    for one in matrices:
        if not math.isnan(one.harmful):
            sizes.setdefault(one.place, []).append(abs(one.harmful))
    return math.fsum(sum(values) / len(values) for values in sizes.values())
