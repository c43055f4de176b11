"""The masses that lie best towards a reference, at given prices of the examples: transport with its sources free.

    min over w of  OT_eps(P_w, P_u) + <price, w> + tau KL(w || uniform)

Since OT_eps(P_w, P_u) = max over g of <w, f(g)> + <g, u> (curate/transport.py), and their order does not matter
(Sion, Pacific Journal of Mathematics 8, 1958), this equals

    max over g of  <g, u> - tau ln mean_i exp(-(f_i(g) + price_i) / tau),      w_i ~ exp(-(f_i(g) + price_i) / tau)

a concave problem in the few target potentials. Its slope is u minus the plan's target marginal M at these w, and with
the shares s of a source's mass (curate/costs.py) its curvature is

    -(diag(M) - s' W s) / eps - (s' W s - M M') / tau

between 1 / eps and 1 / tau of diag(M) in every direction that matters. A transport between fixed masses has no such
lower bound: where examples and references come in groups, its potentials jump by whole costs within a sliver of mass,
so that no step along them has a length that suits. Here the masses follow, and nothing jumps.

Symbols
    price            price         of an example, as the push's tangent (curate/weighting.py)
    tau              tau           strength of the anchor
    w, g, f, u, eps  as in curate/transport.py
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from alignkeep.curate.costs import Costs, Look, Passes
from alignkeep.curate.transport import MOST, TOLERANCE, Transport, as_transport, solved

_GROWTH = 30.0  # how far a step may move a potential, over tau: masses grow by e^30 at most, which float32 holds


@dataclass(eq=False)
class _Free(Passes):
    """Sources whose masses answer to their potentials. `level` is ln mean_i exp(-(f_i + price_i) / tau) of the look
    before, over all processes, so that masses neither overflow nor vanish."""

    price: Tensor = field(kw_only=True)
    tau: float = field(kw_only=True)
    level: float = field(kw_only=True)
    count: int = field(kw_only=True)  # sources of all processes

    def weights(self, rows: slice, answer: Tensor) -> Tensor:
        return (-(answer + self.price[rows]) / self.tau - self.level).exp() / self.count

    def summed(self, g: Tensor, f: Tensor, marginal: Tensor, second: Tensor | None, mean: float, mass: float) -> Look:
        self.level += math.log(mass)
        value = float(g @ self.target) - self.tau * self.level
        return Look(g, f, marginal / mass, None if second is None else second / mass, mean / mass, value)

    def curvature(self, look: Look, epsilon: float) -> Tensor:
        assert look.second is not None
        return super().curvature(look, epsilon) + (look.second - torch.outer(look.marginal, look.marginal)) / self.tau

    def leap(self, epsilon: float) -> float:
        return min(super().leap(epsilon), _GROWTH * self.tau)

    def swept(self, look: Look, epsilon: float) -> Tensor:
        """A step of the slope that gains, as the curvature is at most 1 / min(eps, tau)."""
        step = min(epsilon, self.tau) * self.lacking(look)
        return look.g + step.clamp(-_GROWTH * self.tau, _GROWTH * self.tau)


def pull(
    costs: Costs,
    target: Float[Tensor, " m"],
    epsilon: float,
    price: Float[Tensor, " n"],
    tau: float,
    *,
    start: Float[Tensor, " m"],
    level: float,
    count: int,
    tolerance: float = TOLERANCE,
    most: int = MOST,
    total: Callable[[Tensor], Tensor] = lambda vector: vector,
) -> Transport:
    """The transport from the best masses to the reference; the masses are exp(-(f + price) / tau), normalised.

    Prices are of the sources of this process, `count` is that of all. `start` are target potentials to begin from and
    `level` is ln mean_i exp(-(f_i + price_i) / tau) of the f that answer to them, as `level_of` says. Raises ValueError
    for an epsilon or a tau that is not positive.
    """
    if not (epsilon > 0 and tau > 0 and math.isfinite(epsilon) and math.isfinite(tau) and math.isfinite(level)):
        raise ValueError(f"need epsilon > 0 and tau > 0, and a level, got {epsilon}, {tau}, {level}")
    source = torch.empty(costs.shape[0], dtype=start.dtype, device=target.device)
    problem = _Free(costs, source, target, tolerance, total, price=price.double(), tau=tau, level=level, count=count)
    look, passes = solved(problem, start.double(), epsilon, tolerance, most)
    return as_transport(problem, look, passes)


def level_of(potential: Float[Tensor, " n"], price: Float[Tensor, " n"], tau: float) -> float:
    """ln mean_i exp(-(f_i + price_i) / tau), of all sources."""
    return float((-(potential.double() + price.double()) / tau).logsumexp(0)) - math.log(len(price))
