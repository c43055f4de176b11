"""Costs, and what one pass over them sees of a transport at given target potentials.

Symbols of curate/transport.py. With s_ij = T_ij / w_i, the shares of a source's mass, and r_i what they sum to:

    f_i = -eps ln sum_j u_j exp((g_j - C_ij) / eps)      the exact answer to g
    s_ij = u_j exp((f_i + g_j - C_ij) / eps)             rows sum to 1
    at g + d:  r_i = sum_j s_ij exp(d_j / eps),  f_i - eps ln r_i,  s_ij exp(d_j / eps) / r_i

So where costs are in memory the shares are kept, and a pass is two products with them instead of exponentials, until g
has moved so far that what underflowed could matter (a stabilised scaling loop).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

_REACH = 20.0  # how far a potential may move, over epsilon: e^-20 of what underflows in float32 is below its rounding
_LEAP = 16.0  # the farthest step, over epsilon: within what is kept of the shares
_SMALLEST = 1e-30  # a sweep goes no further at once than from a marginal of this


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

    @cached_property
    def spreads(self) -> tuple[float, int]:
        """How far the costs of every source lie apart, summed, and the count of sources."""
        return _spreads(self)


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

    @cached_property
    def spreads(self) -> tuple[float, int]:
        """As those of DenseCosts."""
        return _spreads(self)


class Look(NamedTuple):
    """What one pass sees at target potentials g: the answering f, the plan's target marginal, sum_i w_i s_ij s_ik for
    the curvature (None where it was not asked for), sum_i w_i f_i, and the dual value. In float64."""

    g: Tensor
    f: Tensor
    marginal: Tensor
    second: Tensor | None
    mean: float
    value: float


class _Kept(NamedTuple):
    """Shares at g, block by block, and the f that answers to it."""

    epsilon: float
    g: Tensor
    f: Tensor
    blocks: list[tuple[slice, Tensor]]


@dataclass(eq=False)
class Passes:
    """Looks at one problem. `total` adds a vector up over processes, each of which has sources of its own."""

    costs: Costs
    source: Tensor
    target: Tensor
    tolerance: float
    total: Callable[[Tensor], Tensor]
    spread: float = field(init=False)  # how far the costs of a source lie apart, on average over all sources
    _kept: _Kept | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.target = self.target.double() / self.target.double().sum()
        spreads = getattr(self.costs, "spreads", None) or _spreads(self.costs)
        whole = self.total(torch.tensor(spreads, dtype=torch.float64, device=self.target.device))
        self.spread = float(whole[0] / whole[1].clamp(min=1))

    @property
    def keeps(self) -> bool:
        """Whether passes after the first one are cheap."""
        return isinstance(self.costs, DenseCosts)

    def look(self, g: Tensor, epsilon: float, *, second: bool) -> Look:
        n, m = self.costs.shape
        f = torch.empty(n, dtype=torch.float64, device=g.device)
        sums = torch.zeros(m + 2, dtype=torch.float64, device=g.device)
        products = torch.zeros(m, m, dtype=torch.float64, device=g.device) if second else None
        for rows, answer, shares, factor in self._shares(g, epsilon):
            exact = self.weights(rows, answer)
            weights = exact.to(shares)
            scaled = weights if factor is None else weights / factor.rows
            marginal = scaled @ shares
            f[rows] = answer
            sums[:m] += (marginal if factor is None else marginal * factor.columns).double()
            sums[m] += exact.double() @ answer
            sums[m + 1] += exact.double().sum()
            if products is not None:
                again = scaled if factor is None else scaled / factor.rows
                found = (shares.mT @ (again[:, None] * shares)).double()
                products += found if factor is None else found * torch.outer(factor.columns, factor.columns)
        sums = self.total(sums)
        products = None if products is None else self.total(products)
        return self.summed(g, f, sums[:m], products, float(sums[m]), float(sums[m + 1]))

    def weights(self, rows: slice, answer: Tensor) -> Tensor:
        """Of these sources, up to a factor."""
        return self.source[rows]

    def summed(self, g: Tensor, f: Tensor, marginal: Tensor, second: Tensor | None, mean: float, mass: float) -> Look:
        """The look that sums over all sources make; `mass` is the sum of the weights, 1 but for rounding."""
        mean, second = mean / mass, None if second is None else second / mass
        return Look(g, f, marginal / mass, second, mean, mean + float(g @ self.target))

    def curvature(self, look: Look, epsilon: float) -> Tensor:
        """Of the dual value, by the target potentials, times -1."""
        assert look.second is not None
        return (torch.diag(look.marginal) - look.second) / epsilon

    def leap(self, epsilon: float) -> float:
        """The farthest step that is tried at once."""
        return _LEAP * epsilon

    def error(self, look: Look) -> float:
        return float((look.marginal - self.target).abs().sum())

    def swept(self, look: Look, epsilon: float) -> Tensor:
        """Sinkhorn's answer to f."""
        return look.g + epsilon * self.lacking(look)

    def lacking(self, look: Look) -> Tensor:
        """The logarithm of how many times the marginals should be as large."""
        return (self.target / look.marginal.clamp(min=_SMALLEST)).log()

    def _shares(self, g: Tensor, epsilon: float) -> Iterator[tuple[slice, Tensor, Tensor, _Factor | None]]:
        """Rows, their f, shares kept or new, and by what they are to be scaled."""
        kept = self._kept
        if kept is not None and kept.epsilon == epsilon:
            moved = (g - kept.g) / epsilon
            middle = (moved.amax() + moved.amin()) / 2
            if float((moved - middle).abs().amax()) < _REACH:
                columns = (moved - middle).exp()
                for rows, shares in kept.blocks:
                    sums = shares @ columns.to(shares)
                    answer = kept.f[rows] - epsilon * (sums.double().log() + middle)
                    yield rows, answer, shares, _Factor(sums, columns.to(shares))
                return
        made: list[tuple[slice, Tensor]] = []
        f = torch.empty(self.costs.shape[0], dtype=torch.float64, device=g.device)
        self._kept = None
        for rows, answer, shares in self._exponentials(g, epsilon):
            f[rows] = answer
            if self.keeps:
                made.append((rows, shares))
            yield rows, answer, shares, None
        self._kept = _Kept(epsilon, g, f, made) if self.keeps else None

    def _exponentials(self, g: Tensor, epsilon: float) -> Iterator[tuple[slice, Tensor, Tensor]]:
        # Exponents lose what is below their size, and epsilon times their logarithms what is below epsilon's.
        small = torch.finfo(torch.float64).tiny
        rounding = torch.finfo(self.source.dtype).eps * max(self.spread / epsilon, epsilon / max(self.spread, small))
        dtype = self.source.dtype if rounding < self.tolerance else torch.float64
        offset = (g / epsilon + self.target.log()).to(dtype)
        for rows, block in self.costs.blocks():
            inside = torch.sub(offset, block.to(dtype), alpha=1 / epsilon)
            highest = inside.amax(1, keepdim=True)
            shares = inside.sub_(highest).exp_()
            sums = shares.sum(1, keepdim=True)
            shares.div_(sums)
            yield rows, -epsilon * (highest.double() + sums.double().log())[:, 0], shares


class _Factor(NamedTuple):
    """Kept shares times columns over rows are those of the moved potentials."""

    rows: Tensor
    columns: Tensor


def _spreads(costs: Costs) -> tuple[float, int]:
    parts = [(float((block.amax(1) - block.amin(1)).sum()), block.shape[0]) for _, block in costs.blocks()]
    return sum(part for part, _ in parts), sum(count for _, count in parts)


def _slices(count: int, rows: int) -> Iterator[slice]:
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))
