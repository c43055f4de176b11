"""Entropic optimal transport between a weighted set and a reference, by its dual potentials.

Sources
    SOT, arXiv:2601.07200, eq. 6: both of its terms are such a cost.
    Cuturi, Sinkhorn distances, arXiv:1306.0895: the sweeps.
    Brauer, Clason, Lorenz and Wirth, A Sinkhorn-Newton method for entropic optimal transport, arXiv:1710.06635.

Symbols (paper -> here)
    OT_eps(P_w, P_u)   value       min over plans T of <T, C> + eps KL(T || w x u), with marginals w and u
    w, u               source, target
    C                  costs
    eps                epsilon
    f, g               source_potential, target_potential    T_ij = w_i u_j exp((f_i + g_j - C_ij) / eps)

Departures
    1. The entropy is relative to w x u (KL), so that the value between two points is their cost; with -eps H(T) it is
       another one, and so is the gradient of a difference of two such terms.
    2. The gradient by w is f, by the envelope theorem: no iteration is differentiated. f is centred, sum_i w_i f_i = 0,
       as a gradient on the simplex is defined up to a constant.
    3. f is always the exact answer to g, so that the dual is a concave function of the few target potentials alone.
       Where sweeps are fast enough they go on; else Newton steps are taken, damped (Levenberg and Marquardt) as far
       as the dual is no quadratic. The solution is that of sweeps, in tens of passes instead of thousands.
    4. A first solution goes from a large epsilon down to the one asked for.

Laws: a constant added to the costs is added to the value and changes no gradient; a permutation of the sources permutes
f; costs and epsilon times a number are value and potentials times that number.

Shapes: n sources (of this process), m targets.
"""

# torch.linalg brings no types:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alignkeep.curate.costs import CosineCosts, Costs, DenseCosts, Look, Passes

__all__ = ["CosineCosts", "Costs", "DenseCosts", "Transport", "transport"]

TOLERANCE = 1e-5  # of the marginals (chosen: what float32 sums over 100,000 sources still tell)
MOST = 2000  # passes over the costs (chosen)
_RELAXED = 1.7  # times a sweep, below 2 (chosen)
_FEWEST = 4  # sweeps, before it is looked at how fast they are (chosen)
_CHEAP, _DEAR = 0.3, 0.02  # sweeps that some Newton steps cost, per target, with kept shares and without (measured)
_STAGES = 4.0  # each epsilon on the way down is so much smaller than the one before
_COARSE = 1e-2  # marginals on the way down
_DAMPING, _LEAST, _LARGEST = 1e-3, 1e-12, 1e3  # of the mean curvature: at first, and its bounds

_FLATTEST = 1e-9  # of the curvature that a marginal as it should be has: so little still says where to go (chosen)
_ROUNDING = 1e-6  # of epsilon: so much less of the dual may be rounding; more is a step back (chosen)


class Transport(NamedTuple):
    """A solution, and how good it is. The plan's source marginal is exact; `error` is the sum of what its target
    marginal is off by. `passes` counts looks at all costs."""

    value: float
    source_potential: Float[Tensor, " n"]
    target_potential: Float[Tensor, " m"]
    error: float
    passes: int
    converged: bool


def _alone(vector: Tensor) -> Tensor:
    return vector


def transport(
    costs: Costs,
    source: Float[Tensor, " n"],
    target: Float[Tensor, " m"],
    epsilon: float,
    *,
    start: Float[Tensor, " m"] | None = None,
    tolerance: float = TOLERANCE,
    most: int = MOST,
    total: Callable[[Tensor], Tensor] = _alone,
) -> Transport:
    """OT_eps between weights on the sources and on the targets, each of which sum to 1.

    `start` are target potentials to begin from, such as those of nearly the same weights. Computed in the dtype of
    `source`, sums over sources in float64, and exponents too where epsilon is so small that they would lose the
    tolerance. Under several processes each has its own sources, and `total` adds a vector up over them. Raises
    ValueError for an epsilon that is not positive, weights below 0, or a target without weight.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)) or bool((target <= 0).any()) or bool((source < 0).any()):
        raise ValueError(f"need epsilon > 0, source weights >= 0 and target weights > 0, got epsilon {epsilon}")
    problem = Passes(costs, source, target, tolerance, total)
    g, passes = torch.zeros_like(target, dtype=torch.float64), 1
    if start is not None:
        g = start.double()
    else:
        for scale in _scales(problem.spread, epsilon):
            look, used = solved(problem, g, scale, _COARSE, most - passes)
            g, passes = look.g, passes + used
    look, used = solved(problem, g, epsilon, tolerance, max(most - passes, 1))
    return as_transport(problem, look, passes + used)


def as_transport(problem: Passes, look: Look, passes: int) -> Transport:
    """The solution that was found, in the dtype of the sources."""
    error = problem.error(look)
    return Transport(
        value=look.mean + float(look.g @ problem.target),
        source_potential=(look.f - look.mean).to(problem.source),
        target_potential=(look.g + look.mean).to(problem.source),
        error=error,
        passes=passes,
        converged=error <= problem.tolerance,
    )


def _newton(problem: Passes, look: Look, epsilon: float, damping: float, reach: float) -> tuple[Tensor, float] | None:
    """A damped step by at most `reach`, and what the dual would gain by it were it quadratic; None where it has no
    factors."""
    curvature = problem.curvature(look, epsilon)
    scale = max(float(curvature.diagonal().mean()), _FLATTEST / (epsilon * curvature.shape[0]))
    curvature += scale / curvature.shape[0]  # along (1, ..., 1) it is 0: f takes back what g is given
    ridge = torch.full_like(look.marginal, damping * scale).diag()
    factor, failed = torch.linalg.cholesky_ex(curvature + ridge)
    if bool(failed):
        return None
    slope = problem.target - look.marginal
    step = torch.cholesky_solve(slope[:, None], factor)[:, 0]
    step *= min(1.0, reach / max(float(step.abs().amax()), 1e-300))  # hardly any curvature is no reason to leap
    return step, float(slope @ step - step @ curvature @ step / 2)


def _scales(spread: float, epsilon: float) -> list[float]:
    """Epsilons on the way down."""
    found: list[float] = []
    scale = spread / _STAGES
    while scale > _STAGES * epsilon:
        found.append(scale)
        scale /= _STAGES
    return found


def solved(problem: Passes, g: Tensor, epsilon: float, tolerance: float, most: int) -> tuple[Look, int]:
    """Sweeps as long as they are the shorter way, then damped Newton steps, until the marginals are right or `most`
    passes are used up. The damping falls while the dual behaves as a quadratic, and rises where it does not."""
    look = problem.look(g, epsilon, second=False)
    passes, errors, least = 1, [problem.error(look)], _FEWEST
    damping, reach = _DAMPING, problem.leap(epsilon)
    patience = (_CHEAP if problem.keeps else _DEAR) * len(g)
    while errors[-1] > tolerance and passes < most:
        if len(errors) <= least or _remaining(errors, tolerance) < patience:
            # What is left after some sweeps changes slowly: further than a sweep goes is nearer, unless it was not.
            relaxed = len(errors) > least and errors[-1] < errors[-2]
            step = (_RELAXED if relaxed else 1.0) * (problem.swept(look, epsilon) - look.g)
            look = problem.look(look.g + step, epsilon, second=False)
            passes += 1
            errors.append(problem.error(look))
            continue
        if look.second is None:
            look = problem.look(look.g, epsilon, second=True)
            passes += 1
        found = _newton(problem, look, epsilon, damping, reach)
        if found is not None:
            step, gain = found
            tried = problem.look(look.g + step, epsilon, second=True)
            passes += 1
            gained = tried.value - look.value
            nearer = problem.error(tried) < 0.5 * problem.error(look) and gained > -_ROUNDING * epsilon
            if gained > 0.1 * gain or nearer:
                look = tried
                errors = [math.inf] * least + [problem.error(look)]
                if gained > 0.5 * gain:
                    damping, reach = max(damping / 10, _LEAST), min(2 * reach, problem.leap(epsilon))
                continue
        damping, reach = damping * 10, reach / 2
        if damping > _LARGEST:  # no step gains: sweeps always do
            errors, damping, reach = errors[-1:], _DAMPING, problem.leap(epsilon)
    return look, passes


def _remaining(errors: Sequence[float], tolerance: float) -> float:
    """How many more sweeps it takes, if they go on as the last ones did."""
    before, now = errors[-1 - _FEWEST], errors[-1]
    if not (math.isfinite(before) and 0 < now < before):
        return math.inf
    return math.log(now / tolerance) / math.log(before / now) * _FEWEST
