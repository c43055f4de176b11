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
    2. The fixed point is that of the convex-concave procedure (Yuille and Rangarajan, Neural Computation 15, 2003): the
       push, concave in w, is replaced by its tangent, and what is left, convex, is solved exactly (curate/pull.py). The
       anchored objective falls with every step. Steps along the slope have no such length: where data come in groups
       their potentials jump. (And an optimiser that scales every logit by its own gradient loses the ranking.)
    3. omega is softmax(theta) over the kept, times their number: of mean 1, so that equal masses are plain tuning. The
       literal exp(w) is uniform to 1/n; it is a variant.

Shapes: n examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from alignkeep.curate.pull import level_of, pull
from alignkeep.curate.transport import Costs, Transport, transport

FLOOR = 0.8  # of the examples, effective sample size
STEPS, TOLERANCE = 200, 1e-3  # of the total variation to the fixed point (chosen)
BAND = 2e-3  # of the sample size: so much more than the floor is the floor (chosen)
_HALVINGS, _RANGE = 60, 20.0  # of the logarithm of tau, around that of the slopes' spread
_LEAST = 1e-3  # tau, of the slopes' spread at equal masses: what differs by less is equal (chosen; above rounding)


class Step(NamedTuple):
    """Some masses: the tau they are for, their anchored objective and its two terms, their effective sample size, and
    the total variation to the fixed point. `passes` are those that finding them and looking at them took."""

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
    `converged` says that masses, sample size and both transports are."""

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

    def pulled(self, price: Tensor, tau: float, epsilon: float, before: Transport) -> Transport:
        """From the best masses at the prices (of all examples), which are softmax(-(potential + price) / tau)."""
        count = self.costs.shape[1]
        target = torch.full_like(before.target_potential, 1 / count)
        level = level_of(self.potential(before, len(price)), price, tau)
        return pull(
            self.costs, target, epsilon, price[self.here], tau, start=before.target_potential, level=level,
            count=len(price), total=self.total,
        )  # fmt: skip

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
    """Eq. 6, anchored, from equal masses. A push of 0 only pulls. `after` is shown every step, of which there are at
    most `most`.

    Raises ValueError for a push below 0 or a floor outside (0, 1).
    """
    _check(safe, harmful, count, push, floor, most)
    mass = torch.full((count,), 1 / count, dtype=torch.float64, device=device)
    near = safe.transported(mass.to(dtype), epsilon, None)
    far, steps, search = None, list[Step](), None
    while True:
        far = harmful.transported(mass.to(dtype), epsilon, far)
        nearness, farness = safe.potential(near, count), harmful.potential(far, count)
        slope = nearness - push * farness
        search = search or _Search(floor, float(slope.std(correction=0)), temperature(slope, floor))
        residual = float(((-slope / search.tau).softmax(0) - mass).abs().sum()) / 2
        size = effective_sample_size(mass)
        kept = float(torch.xlogy(mass, mass * count).sum())
        objective = near.value - push * far.value + search.tau * kept
        passes = near.passes + far.passes
        steps.append(Step(objective, near.value, far.value, size, search.tau, residual, passes))
        if after is not None:
            after(steps[-1])
        # Equal masses are nobody's fixed point, however near they are, unless nothing tells the examples apart.
        settled = residual <= TOLERANCE and (len(steps) > 1 or search.spread == 0)
        done = settled and search.ends(size / count)
        if done or len(steps) == most:
            break
        near = safe.pulled(-push * farness, search.tau, epsilon, near)
        mass = (-(safe.potential(near, count) - push * farness) / search.tau).softmax(0)
    logits = mass.log() - mass.log().mean()
    return Weighing(
        mass.to(dtype), logits.to(dtype), nearness.to(dtype), farness.to(dtype), near.target_potential,
        far.target_potential, tuple(steps), done and near.converged and far.converged,
    )  # fmt: skip


def _check(safe: Reference, harmful: Reference, count: int, push: float, floor: float, most: int) -> None:
    if not (push >= 0 and math.isfinite(push)) or not 0 < floor < 1 or count < 1 or most < 1:
        raise ValueError(f"need push >= 0, 0 < floor < 1, examples and steps, got {push}, {floor}, {count}, {most}")
    ends = {(one.here.stop - one.here.start, one.costs.shape[0]) for one in (safe, harmful)}
    if any(rows != costs for rows, costs in ends) or max(safe.here.stop, harmful.here.stop) > count:
        raise ValueError(f"need costs of as many rows as a process has of {count} examples, got {sorted(ends)}")


@dataclass
class _Search:
    """For the smallest tau that keeps the floor. The variance of n w falls about as 1 / tau^2."""

    floor: float
    spread: float  # of the slopes at equal masses
    tau: float
    _tried: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])  # ln tau, ln variance
    _low: float = -math.inf
    _high: float = math.inf

    def ends(self, share: float) -> bool:
        """Whether this sample size, as a share of the examples, is the one; else another tau."""
        least = _LEAST * self.spread
        if self.spread == 0:  # nothing to choose by
            return True
        if self.floor * (1 - 1e-6) <= share <= self.floor + BAND or (share > self.floor and self.tau <= least):
            return True
        at, wanted = math.log(self.tau), math.log(1 / (self.floor + BAND / 2) - 1)
        found = math.log(max(1 / share - 1, 1e-300))
        if share > self.floor:
            self._high = min(self._high, at)
        else:
            self._low = max(self._low, at)
        fall = -2.0
        if self._tried and abs(at - self._tried[-1][0]) > 1e-9:
            fall = (found - self._tried[-1][1]) / (at - self._tried[-1][0])
        self._tried.append((at, found))
        step = (wanted - found) / fall if fall < -0.1 else (found - wanted) / 2
        aim = at + min(max(step, -2.0), 2.0)
        if not self._low < aim < self._high or len(self._tried) % 4 == 0:
            aim = (self._low + self._high) / 2 if math.isfinite(self._low + self._high) else aim
        self.tau = max(math.exp(aim), least)
        return False


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
    if form not in ("softmax", "exponential", "equal"):
        raise ValueError(f"need softmax, exponential or equal, got {form}")
    if form == "equal":
        return kept.to(weighing.mass)
    scores = weighing.logits if form == "softmax" else weighing.mass
    weights = torch.zeros_like(scores)
    weights[kept] = scores[kept].double().softmax(0).to(scores) * int(kept.sum())
    return weights
