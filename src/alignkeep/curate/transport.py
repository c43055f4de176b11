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
       After some sweeps Newton steps are taken, damped (Levenberg and Marquardt) as far as the dual is no quadratic.
       The solution is that of sweeps, in tens of passes over the costs instead of thousands.
    4. A first solution goes from a large epsilon down to the one asked for.

Laws: a constant added to the costs is added to the value and changes no gradient; a permutation of the sources permutes
f; costs and epsilon times a number are value and potentials times that number.

Shapes: n sources (of this process), m targets.
"""

# torch.linalg brings no types:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

TOLERANCE = 1e-5  # of the marginals (chosen: what float32 sums over 100,000 sources still tell)
MOST = 2000  # passes over the costs (chosen)
FIRST, AGAIN = 8, 2  # sweeps before the first Newton step, from nothing and from a start (chosen)
_STAGES = 4.0  # each epsilon on the way down is so much smaller than the one before
_COARSE = 1e-2  # marginals on the way down
_SMALLEST = 1e-30  # a sweep goes no further at once than from a marginal of this
_DAMPING, _LEAST, _LARGEST = 1e-3, 1e-12, 1e3  # of the mean curvature: at first, and its bounds


class Costs(Protocol):
    """Costs block by block of rows, so that they need not all be in memory."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def blocks(self) -> Iterator[tuple[slice, Float[Tensor, "rows m"]]]: ...


@dataclass(frozen=True, eq=False)
class DenseCosts:
    """Costs that are in memory. They are looked at `rows` at a time, which bounds what else is needed."""

    matrix: Float[Tensor, "n m"]
    rows: int = 4096

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def blocks(self) -> Iterator[tuple[slice, Float[Tensor, "rows m"]]]:
        for rows in _slices(self.matrix.shape[0], self.rows):
            yield rows, self.matrix[rows]


@dataclass(frozen=True, eq=False)
class CosineCosts:
    """1 - cos between vectors of length 1, made again in every pass."""

    sources: Float[Tensor, "n d"]
    targets: Float[Tensor, "m d"]
    rows: int = 4096

    @property
    def shape(self) -> tuple[int, int]:
        return self.sources.shape[0], self.targets.shape[0]

    def blocks(self) -> Iterator[tuple[slice, Float[Tensor, "rows m"]]]:
        for rows in _slices(self.sources.shape[0], self.rows):
            yield rows, 1 - self.sources[rows] @ self.targets.mT


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
    spread = _spread(costs, total)
    problem = _Problem(costs, source, target, spread, tolerance, total)
    g, passes = torch.zeros_like(target, dtype=torch.float64), 1
    first = FIRST
    if start is not None:
        g, first = start.double(), AGAIN
    else:
        for scale in _scales(spread, epsilon):
            look, used = _solved(problem, g, scale, _COARSE, most - passes, first)
            g, passes, first = look.g, passes + used, AGAIN
    look, used = _solved(problem, g, epsilon, tolerance, max(most - passes, 1), first)
    middle = look.value - float(look.g @ target.double())  # sum_i w_i f_i, over all processes
    error = problem.error(look)
    return Transport(
        value=look.value,
        source_potential=(look.f - middle).to(source),
        target_potential=(look.g + middle).to(target),
        error=error,
        passes=passes + used,
        converged=error <= tolerance,
    )


class _Look(NamedTuple):
    """What one pass sees at target potentials g: the answering f, the plan's target marginal, sum_i w_i P_ij P_ik for
    the curvature (None where it was not asked for), and the dual value. In float64."""

    g: Tensor
    f: Tensor
    marginal: Tensor
    second: Tensor | None
    value: float


@dataclass(frozen=True, eq=False)
class _Problem:
    costs: Costs
    source: Tensor
    target: Tensor
    spread: float
    tolerance: float
    total: Callable[[Tensor], Tensor]

    def look(self, g: Tensor, epsilon: float, *, second: bool) -> _Look:
        n, m = self.costs.shape
        rounding = torch.finfo(self.source.dtype).eps * self.spread / epsilon
        dtype = self.source.dtype if rounding < self.tolerance else torch.float64
        f = torch.empty(n, dtype=torch.float64, device=g.device)
        sums = torch.zeros(m + 1, dtype=torch.float64, device=g.device)
        products = torch.zeros(m, m, dtype=torch.float64, device=g.device) if second else None
        offset = (g / epsilon + self.target.double().log()).to(dtype)
        for rows, block in self.costs.blocks():
            inside = offset - block.to(dtype) / epsilon
            logs = torch.logsumexp(inside, 1)
            shares = inside.sub_(logs[:, None]).exp_()
            weights = self.source[rows].to(dtype)
            f[rows] = -epsilon * logs.double()
            sums[:m] += (weights @ shares).double()
            sums[m] += weights.double() @ f[rows]
            if products is not None:
                products += (shares.mT @ (weights[:, None] * shares)).double()
        sums = self.total(sums)
        value = float(sums[m] + g @ self.target.double())
        return _Look(g, f, sums[:m], None if products is None else self.total(products), value)

    def error(self, look: _Look) -> float:
        return float((look.marginal - self.target.double()).abs().sum())

    def swept(self, look: _Look, epsilon: float) -> Tensor:
        """Sinkhorn's answer to f."""
        return look.g + epsilon * (self.target.double() / look.marginal.clamp(min=_SMALLEST)).log()

    def newton(self, look: _Look, epsilon: float, damping: float) -> tuple[Tensor, float] | None:
        """A damped step, and what the dual would gain by it were it quadratic; None where it has no factors."""
        assert look.second is not None
        curvature = (torch.diag(look.marginal) - look.second) / epsilon
        scale = float(curvature.diagonal().mean())
        curvature += scale / curvature.shape[0]  # along (1, ..., 1) it is 0: f takes back what g is given
        ridge = torch.full_like(look.marginal, damping * scale).diag()
        factor, failed = torch.linalg.cholesky_ex(curvature + ridge)
        if bool(failed):
            return None
        slope = self.target.double() - look.marginal
        step = torch.cholesky_solve(slope[:, None], factor)[:, 0]
        return step, float(slope @ step - step @ curvature @ step / 2)


def _spread(costs: Costs, total: Callable[[Tensor], Tensor]) -> float:
    """How far the costs of a source lie apart, on average."""
    sums = torch.zeros(2, dtype=torch.float64)
    for _, block in costs.blocks():
        sums += torch.tensor([float((block.amax(1) - block.amin(1)).sum()), float(block.shape[0])]).double()
    whole = total(sums)
    return float(whole[0] / whole[1].clamp(min=1))


def _scales(spread: float, epsilon: float) -> list[float]:
    """Epsilons on the way down."""
    found: list[float] = []
    scale = spread / _STAGES
    while scale > _STAGES * epsilon:
        found.append(scale)
        scale /= _STAGES
    return found


def _solved(problem: _Problem, g: Tensor, epsilon: float, tolerance: float, most: int, first: int) -> tuple[_Look, int]:
    """Sweeps, then damped Newton steps, until the marginals are right or `most` passes are used up. The damping falls
    while the dual behaves as a quadratic, and rises where it does not."""
    look = problem.look(g, epsilon, second=False)
    passes, sweeps, damping = 1, 0, _DAMPING
    while problem.error(look) > tolerance and passes < most:
        if sweeps < first:
            sweeps += 1
            look = problem.look(problem.swept(look, epsilon), epsilon, second=sweeps == first)
            passes += 1
            continue
        found = problem.newton(look, epsilon, damping)
        if found is not None:
            step, gain = found
            tried = problem.look(look.g + step, epsilon, second=True)
            passes += 1
            gained = tried.value - look.value
            if gained > 0.1 * gain or problem.error(tried) < 0.5 * problem.error(look):
                look = tried
                damping = max(damping / 10, _LEAST) if gained > 0.5 * gain else damping
                continue
        damping *= 10
        if damping > _LARGEST:  # no step gains: sweeps always do
            sweeps, damping = 0, _DAMPING
    return look, passes


def _slices(count: int, rows: int) -> Iterator[slice]:
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))
