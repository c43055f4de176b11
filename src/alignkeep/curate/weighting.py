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
       size 1 / sum w^2 at `floor` of the examples (curate/temperature.py).
    2. The fixed point is that of the convex-concave procedure (Yuille and Rangarajan, Neural Computation 15, 2003): the
       push, concave in w, is replaced by its tangent, and what is left, convex, is solved exactly
       (curate/free_masses.py). The anchored objective falls with every step. It may have more than one end, so each
       tau begins at equal masses.
       Steps along the slope have no such length: where data come in groups their potentials jump. (And an optimiser
       that scales every logit by its own gradient loses the ranking.)
    3. omega is softmax(theta) over the kept, times their number: of mean 1, so that equal masses are plain tuning. The
       literal exp(w) is uniform to 1/n; it is a variant.

Shapes: n examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from alignkeep.curate.free_masses import level_of, pull
from alignkeep.curate.temperature import LEAST, FloorSearch, effective_sample_size, temperature
from alignkeep.curate.transport import Costs, Transport, transport

FLOOR = 0.8  # of the examples, effective sample size
STEPS, TOLERANCE = 200, 1e-4  # for one tau, and of the total variation to the fixed point (chosen)
_STILL = 1e-5  # of all mass: a step by so little is rounding (chosen: the transports' tolerance)
_ROUNDING = 4.0  # times the dtype's: a spread of potentials that tells nothing apart (chosen)


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
    `logits` are theta, in float64: they tell masses apart that are 0 in the dtype. The errors are the transports' (of
    the references' marginals); `converged` says that these are solved and the masses settled."""

    mass: Float[Tensor, " n"]
    logits: Float[Tensor, " n"]
    safe_potential: Float[Tensor, " n"]
    harmful_potential: Float[Tensor, " n"]
    safe_targets: Float[Tensor, " m"]
    harmful_targets: Float[Tensor, " h"]
    steps: tuple[Step, ...]
    safe_error: float
    harmful_error: float
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
        target = torch.full((count,), 1 / count, dtype=torch.float64, device=mass.device)
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
    """Eq. 6, anchored, from equal masses, for one tau after the other. `after` is shown every step, of which there are
    at most `most` for a tau. A push of 0 only pulls.

    Raises ValueError for a push below 0 or a floor outside (0, 1).
    """
    _check(safe, harmful, count, push, floor, most)
    problem = _PushPull(safe, harmful, count, epsilon, push, dtype)
    seen = equal = problem.at_equal_masses(device)
    spread, steps = float(equal.slope.std(correction=0)), list[Step]()

    def take(now: _Seen, tau: float) -> Step:
        steps.append(now.step(push, tau))
        if after is not None:
            after(steps[-1])
        return steps[-1]

    settled = spread <= _ROUNDING * torch.finfo(dtype).eps * equal.scale  # nothing to choose by
    search = FloorSearch(floor, LEAST * spread, 1.0 if settled else temperature(equal.slope, floor))
    take(equal, search.tau)
    while not settled:
        now, moves = equal, list[float]()
        for _ in range(most):
            before, now = now, problem.stepped(now, search.tau, seen)
            seen = now
            moves.append(float((now.mass - before.mass).abs().sum()) / 2)
            residual = take(now, search.tau).residual
            settled = residual <= TOLERANCE and (push == 0 or _remaining(moves) <= TOLERANCE)
            if settled:
                break
        if search.ends(effective_sample_size(seen.mass) / count):
            break
        settled = False
    return Weighing(
        seen.mass.to(dtype), seen.logits - seen.logits.mean(), seen.nearness.to(dtype), seen.farness.to(dtype),
        seen.near.target_potential, seen.far.target_potential, tuple(steps), seen.near.error, seen.far.error,
        settled and seen.near.converged and seen.far.converged,
    )  # fmt: skip


class _Seen(NamedTuple):
    """Masses as logits that sum to 1, both transports and their potentials, of all examples and in float64."""

    logits: Tensor
    near: Transport
    far: Transport
    nearness: Tensor
    farness: Tensor
    slope: Tensor

    @property
    def mass(self) -> Tensor:
        return self.logits.exp()

    @property
    def scale(self) -> float:
        """The size of what the slopes are differences of."""
        ends = self.near.target_potential, self.far.target_potential
        return sum(float(one.abs().amax()) for one in ends) + abs(self.near.value) + abs(self.far.value)

    def step(self, push: float, tau: float) -> Step:
        mass = self.mass
        aim = (-self.slope / tau).softmax(0)
        kept = float(mass @ (self.logits + math.log(len(mass))))
        return Step(
            objective=self.near.value - push * self.far.value + tau * kept,
            safe=self.near.value,
            harmful=self.far.value,
            sample_size=effective_sample_size(mass),
            tau=tau,
            residual=float((aim - mass).abs().sum()) / 2,
            passes=self.near.passes + self.far.passes,
        )


@dataclass(frozen=True, eq=False)
class _PushPull:
    safe: Reference
    harmful: Reference
    count: int
    epsilon: float
    push: float
    dtype: torch.dtype

    def at_equal_masses(self, device: torch.device | str) -> _Seen:
        logits = torch.full((self.count,), -math.log(self.count), dtype=torch.float64, device=device)
        near = self.safe.transported(logits.exp().to(self.dtype), self.epsilon, None)
        return self._seen(logits, near, None)

    def stepped(self, now: _Seen, tau: float, warm: _Seen) -> _Seen:
        """The masses that are best against the push's tangent; the transports begin at those of `warm`."""
        price = -self.push * now.farness
        near = self.safe.pulled(price, tau, self.epsilon, warm.near)
        logits = (-(self.safe.potential(near, self.count) + price) / tau).log_softmax(0)
        return self._seen(logits, near, warm.far)

    def _seen(self, logits: Tensor, near: Transport, warm: Transport | None) -> _Seen:
        far = self.harmful.transported(logits.exp().to(self.dtype), self.epsilon, warm)
        nearness, farness = self.safe.potential(near, self.count), self.harmful.potential(far, self.count)
        return _Seen(logits, near, far, nearness, farness, nearness - self.push * farness)


def _remaining(moves: Sequence[float]) -> float:
    """How far masses still go, in total variation, where each step is the same share of the one before."""
    if len(moves) < 2:
        return math.inf
    before, now = moves[-2:]
    if now <= _STILL:
        return 0.0
    return now * now / (before - now) if now < before else math.inf


def _check(safe: Reference, harmful: Reference, count: int, push: float, floor: float, most: int) -> None:
    if not (push >= 0 and math.isfinite(push)) or not 0 < floor < 1 or count < 1 or most < 1:
        raise ValueError(f"need push >= 0, 0 < floor < 1, examples and steps, got {push}, {floor}, {count}, {most}")
    ends = {(one.here.stop - one.here.start, one.costs.shape[0]) for one in (safe, harmful)}
    if any(rows != costs for rows, costs in ends) or max(safe.here.stop, harmful.here.stop) > count:
        raise ValueError(f"need costs of as many rows as a process has of {count} examples, got {sorted(ends)}")


def shares(costs: Float[Tensor, "rows m"], targets: Float[Tensor, " m"], epsilon: float) -> Float[Tensor, "rows m"]:
    """Which share of an example's mass goes to which uniform reference: T_ij / w_i, of which every row sums to 1."""
    return ((targets.double() - costs.double()) / epsilon).softmax(1)


def top_k(scores: Float[Tensor, " n"], keep: float) -> Bool[Tensor, " n"]:
    """The share `keep` of largest masses or their logits, of equal ones the first. Raises ValueError where that is
    nothing, or where one is no number."""
    if bool(scores.isnan().any()):
        raise ValueError("need scores that are numbers")
    count = round(keep * len(scores))
    if not 0 < count <= len(scores):
        raise ValueError(f"need to keep 1 to {len(scores)} examples, got a share of {keep}")
    kept = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    kept[scores.sort(descending=True, stable=True).indices[:count]] = True
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
    weights = torch.zeros_like(weighing.mass)
    weights[kept] = (scores[kept].double().softmax(0) * int(kept.sum())).to(weights)
    return weights
