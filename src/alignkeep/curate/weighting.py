"""Example weights that pull a set towards safe data and push it away from harmful data, as distributions.

Paper
    SOT, arXiv:2601.07200, eqs. 6 and 7.

Symbols (paper -> here)
    w                mass                  on the simplex, w = softmax(theta)
    theta            logits
    P_s, P_h         safe, harmful         references, uniform
    lambda           push
    OT_eps           curate/transport.py
    Top-K, omega     top_k, training_weights

Departures
    1. + tau KL(w || uniform). Without it the objective, convex minus convex, collapses to a handful of examples. tau is
       the smallest whose fixed point w ~ exp(-phi / tau), phi = f_safe - push f_harmful, keeps the effective sample
       size 1 / sum w^2 at `floor` of the examples.
    2. Mirror descent: theta goes half of the way to the fixed point's in every step, and half as far once that leads
       away from it. (An optimiser that scales every
       logit by its own gradient loses the ranking.) How far it still is stands in the result.
    3. omega is softmax(theta) over the kept, times their number: of mean 1, so that equal masses are plain tuning. The
       literal exp(w) is uniform to 1/n; it is a variant.

Shapes: n examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from alignkeep.curate.transport import Costs, Transport, transport

FLOOR = 0.8  # of the examples, effective sample size
STEPS, DAMPING, TOLERANCE = 40, 0.5, 1e-3  # of the total variation to the fixed point (chosen)
_HALVINGS, _RANGE = 60, 20.0  # of the logarithm of tau, around that of the slopes' spread


class Step(NamedTuple):
    """One step: the anchored objective and its two terms at the masses before it, their effective sample size, the tau
    of the fixed point, and the total variation to it. `passes` are both transports'."""

    objective: float
    safe: float
    harmful: float
    sample_size: float
    tau: float
    residual: float
    passes: int


@dataclass(frozen=True, eq=False)
class Weighing:
    """Masses, and the potentials that they rest on: how far an example lies from safe and from harmful data, beyond the
    mean; `safe_targets` and `harmful_targets` are the references' own, from which `shares` makes rows of the plans.
    `converged` says that masses and both transports are."""

    mass: Float[Tensor, " n"]
    logits: Float[Tensor, " n"]
    safe_potential: Float[Tensor, " n"]
    harmful_potential: Float[Tensor, " n"]
    safe_targets: Float[Tensor, " m"]
    harmful_targets: Float[Tensor, " h"]
    steps: tuple[Step, ...]
    converged: bool

    @property
    def sample_size(self) -> float:
        return effective_sample_size(self.mass)


@dataclass(frozen=True, eq=False)
class Reference:
    """Costs from the examples of this process (`here`, of all) to a uniform reference. `total` adds a vector up over
    processes."""

    costs: Costs
    here: slice
    total: Callable[[Tensor], Tensor]

    def transported(self, mass: Tensor, epsilon: float, before: Transport | None) -> Transport:
        count = self.costs.shape[1]
        target = torch.full((count,), 1 / count, dtype=mass.dtype, device=mass.device)
        start = None if before is None else before.target_potential
        return transport(self.costs, mass[self.here], target, epsilon, start=start, total=self.total)

    def potential(self, found: Transport, count: int) -> Tensor:
        """f of all examples."""
        whole = torch.zeros(count, dtype=torch.float64, device=found.source_potential.device)
        whole[self.here] = found.source_potential.double()
        return self.total(whole)


def alone(costs: Costs) -> Reference:
    """All examples are here."""
    return Reference(costs, slice(0, costs.shape[0]), lambda vector: vector)


def effective_sample_size(mass: Float[Tensor, " n"]) -> float:
    """1 / sum w^2: n for equal masses, 1 for a single one."""
    return 1 / float(mass.double().square().sum())


def weigh(
    safe: Reference,
    harmful: Reference,
    count: int,
    epsilon: float,
    *,
    push: float = 1.0,
    floor: float = FLOOR,
    most: int = STEPS,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    after: Callable[[Step], object] | None = None,
) -> Weighing:
    """Eq. 6, anchored. A push of 0 only pulls. `after` is shown every step.

    Raises ValueError for a push below 0 or a floor outside (0, 1).
    """
    if not (push >= 0 and math.isfinite(push)) or not 0 < floor < 1 or count < 1 or most < 1:
        raise ValueError(f"need push >= 0, 0 < floor < 1, examples and steps, got {push}, {floor}, {count}, {most}")
    logits = torch.zeros(count, dtype=torch.float64, device=device)
    steps, share, seen = list[Step](), DAMPING, None
    while True:
        mass = logits.softmax(0)
        seen = _look(safe, harmful, mass, epsilon, push, dtype, seen)
        tau = temperature(seen.slope, floor)
        aim = -seen.slope / tau
        residual = float((aim.softmax(0) - mass).abs().sum()) / 2
        near, far = seen.to_safe, seen.to_harmful
        anchored = near.value - push * far.value + tau * float(torch.xlogy(mass, mass * count).sum())
        size = effective_sample_size(mass)
        steps.append(Step(anchored, near.value, far.value, size, tau, residual, near.passes + far.passes))
        if after is not None:
            after(steps[-1])
        if residual <= TOLERANCE or len(steps) == most:
            break
        if len(steps) > 1 and residual > steps[-2].residual:  # it goes to and fro
            share /= 2
        logits = (1 - share) * (logits - logits.mean()) + share * (aim - aim.mean())
    return Weighing(
        mass.to(dtype), logits.to(dtype), seen.safe.to(dtype), seen.harmful.to(dtype), near.target_potential,
        far.target_potential, tuple(steps), residual <= TOLERANCE and near.converged and far.converged,
    )  # fmt: skip


class _Seen(NamedTuple):
    """Both transports at some masses, the potentials of all examples, and phi."""

    to_safe: Transport
    to_harmful: Transport
    safe: Tensor
    harmful: Tensor
    slope: Tensor


def _look(
    safe: Reference, harmful: Reference, mass: Tensor, epsilon: float, push: float, dtype: torch.dtype,
    before: _Seen | None,
) -> _Seen:  # fmt: skip
    """From the potentials of the masses before, where there are some."""
    to_safe = safe.transported(mass.to(dtype), epsilon, None if before is None else before.to_safe)
    to_harmful = harmful.transported(mass.to(dtype), epsilon, None if before is None else before.to_harmful)
    near, far = safe.potential(to_safe, len(mass)), harmful.potential(to_harmful, len(mass))
    return _Seen(to_safe, to_harmful, near, far, near - push * far)


def shares(costs: Float[Tensor, "rows m"], targets: Float[Tensor, " m"], epsilon: float) -> Float[Tensor, "rows m"]:
    """Which share of an example's mass goes to which uniform reference: T_ij / w_i, of which every row sums to 1."""
    return ((targets.double() - costs.double()) / epsilon).softmax(1)


def temperature(slope: Float[Tensor, " n"], floor: float) -> float:
    """The smallest tau for which softmax(-slope / tau) has an effective sample size of `floor` n, or e^-20 of the
    slopes' spread where that has it already (what differs by less is equal); of equal slopes any will do."""
    spread = float(slope.std(correction=0))
    if spread == 0:
        return 1.0
    low, high = math.log(spread) - _RANGE, math.log(spread) + _RANGE
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = effective_sample_size((-slope.double() / math.exp(middle)).softmax(0)) >= floor * len(slope)
        low, high = (low, middle) if enough else (middle, high)
    return math.exp(high)


def top_k(mass: Float[Tensor, " n"], keep: float) -> Bool[Tensor, " n"]:
    """The share `keep` of largest masses, of equal ones the first. Raises ValueError where that is nothing, or where
    one is no number."""
    if bool(mass.isnan().any()):
        raise ValueError("need masses that are numbers")
    count = round(keep * len(mass))
    if not 0 < count <= len(mass):
        raise ValueError(f"need to keep 1 to {len(mass)} examples, got a share of {keep}")
    kept = torch.zeros(len(mass), dtype=torch.bool, device=mass.device)
    kept[mass.sort(descending=True, stable=True).indices[:count]] = True
    return kept


def training_weights(
    weighing: Weighing, kept: Bool[Tensor, " n"], form: Literal["softmax", "exponential", "equal"] = "softmax"
) -> Float[Tensor, " n"]:
    """omega of eq. 7: of mean 1 over the kept, 0 for the others. `exponential` is the paper's exp(w_i) / sum exp(w),
    `equal` Top-K alone."""
    if form == "equal":
        return kept.to(weighing.mass)
    scores = weighing.logits if form == "softmax" else weighing.mass
    weights = torch.zeros_like(scores)
    weights[kept] = scores[kept].double().softmax(0).to(scores) * int(kept.sum())
    return weights
