"""The smallest tau that leaves an effective sample size.

Symbols
    w                mass              on the simplex
    tau              tau               of w ~ exp(-phi / tau)
    1 / sum w^2      sample size       n for equal masses, 1 for a single one

For fixed phi the sample size grows with tau, and `temperature` finds it by halving. Where phi answers to w
(curate/weighting.py) a tau takes a whole descent, whose end may leap as tau moves: `FloorSearch` tries few of them, and
at a leap takes the upper side.

Shapes: n examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

BAND = 2e-3  # of the sample size: so much more than the floor is the floor (chosen)
LEAST = 1e-3  # tau, of the slopes' spread at equal masses: what differs by less is equal (chosen; above rounding)
_NARROW = 2e-3  # of ln tau: between so near ones the sample size leaps (chosen)
_FARTHEST = 2.0  # of ln tau, at once (chosen)
_FLAT = -0.1  # ln variance over ln tau: above it nothing is to be guessed from (chosen)
_HALVINGS, _RANGE = 60, 20.0  # of ln tau, around that of the slopes' spread


def effective_sample_size(mass: Float[Tensor, " n"]) -> float:
    """1 / sum w^2: n for equal masses, 1 for a single one."""
    return 1 / float(mass.double().square().sum())


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


@dataclass
class FloorSearch:
    """For the smallest tau, of at least `least`, whose sample size is `floor` of the examples. The variance of n w
    falls about as 1 / tau^2, which the first guesses go by."""

    floor: float
    least: float
    tau: float
    _tried: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])  # ln tau, ln variance
    _low: float = -math.inf
    _high: float = math.inf

    def __post_init__(self) -> None:
        self.tau = max(self.tau, self.least)

    def ends(self, share: float) -> bool:
        """Whether `tau`, at which the sample size is this share of the examples, is the one; if not, it is another."""
        at = math.log(self.tau)
        if self.floor * (1 - 1e-6) <= share <= self.floor + BAND:
            return True
        if share > self.floor and (self.tau <= self.least or at - self._low < _NARROW):
            return True
        found, wanted = (math.log(max(1 / one - 1, 1e-300)) for one in (share, self.floor + BAND / 2))
        if share > self.floor:
            self._high = at
        else:
            self._low, self._high = at, self._high if self._high > at else math.inf
        step = self._guess(at, found, wanted)
        self._tried.append((at, found))
        aim = at + min(max(step, -_FARTHEST), _FARTHEST)
        if self._high - self._low < _NARROW:
            aim = self._high
        elif math.isfinite(self._high - self._low) and (
            not self._low < aim < self._high or (len(self._tried) > 4 and len(self._tried) % 2 == 0)
        ):
            aim = (self._low + self._high) / 2
        self.tau = max(math.exp(aim), self.least)
        return False

    def _guess(self, at: float, found: float, wanted: float) -> float:
        """By how much ln tau is to grow."""
        fall = -2.0
        if self._tried and abs(at - self._tried[-1][0]) > 1e-9:
            fall = (found - self._tried[-1][1]) / (at - self._tried[-1][0])
        # Where the sample size is that of a group of equals it hardly changes with tau.
        return (wanted - found) / fall if fall < _FLAT else math.copysign(_FARTHEST, found - wanted)
