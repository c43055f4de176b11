"""What so many prompts can show: the change of a rate that a paired test finds, and the prompts that a change needs.

Source
    Duffy, Asymptotic and exact power for the McNemar test, Biometrics 40 (1984) 1007-1015: the exact power.

Symbols
    down, up      shares of the prompts on which only the base, only the model did it
    discordance   down + up: the share on which the two differ
    d             how many of n prompts that are
    power         how likely a change of this size is found (80 % unless said otherwise)

Say the change that could have been found beside every "no difference": not to have looked closely is no finding.
"""

# SciPy brings no type stubs:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from alignkeep.judging.statistics import LEVEL
from alignkeep.types import Estimate, PairedTest

POWER = 0.8
_MANY = 1_000_000  # prompts; beyond this no number is told (chosen: nobody asks so many)


def paired_power(n: int, down: float, up: float, *, level: float = LEVEL) -> float:
    """How likely `mcnemar` on n prompts finds a fall (p < `level`, and downwards), where the model stops doing it on a
    share `down` of the prompts and begins to on a share `up`, down + up <= 1. Exact, in [0, 1]; 0 for n < 6, as five
    prompts that all differ one way have p = 0.0625.

    Sum over d of Binomial(d; n, down + up) P(Binomial(d, down / (down + up)) >= d - k), with k the largest count of
    heads in d fair coins whose two-sided p-value is below `level` (Duffy 1984).
    """
    moved = min(down + up, 1.0)
    if n == 0 or moved <= 0:
        return 0.0
    # All but 1e-12 of the counts d lies between these two.
    first, last = (int(stats.binom.ppf(share, n, moved)) for share in (1e-12, 1 - 1e-12))
    counts = np.arange(max(first, 0), last + 1)
    few = stats.binom.ppf(level / 2, counts, 0.5)
    few = np.where(2 * stats.binom.cdf(few, counts, 0.5) < level, few, few - 1)
    finds = np.where(few < 0, 0.0, stats.binom.sf(counts - few - 1, counts, down / (down + up)))
    return float((stats.binom.pmf(counts, n, moved) * finds).sum())


def detectable_change(n: int, discordance: float = 0.0, *, power: float = POWER, level: float = LEVEL) -> float | None:
    """The smallest fall (equally: rise) of a rate, in (0, 1], that `mcnemar` on n prompts finds with this `power`,
    where the two models differ on a share `discordance` of the prompts: the fall is what more of them fall than rise.
    0, the best case, is for models that differ by the fall alone. None where not even a fall to nothing is found.

    It falls with n and rises with the discordance. To 1e-4; a fall larger than the discordance is all of it.
    """

    def finds(fall: float) -> bool:
        moved = max(discordance, fall)
        return paired_power(n, (moved + fall) / 2, (moved - fall) / 2, level=level) >= power

    if not finds(1.0):
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if finds(middle) else (middle, high)
    return high


def prompts_to_detect(
    change: float, discordance: float = 0.0, *, power: float = POWER, level: float = LEVEL
) -> int | None:
    """About how many prompts find this change of a rate with this power (see `detectable_change`), to one part in a
    hundred; None where a million would not do. Raises ValueError for a change outside (0, 1]."""
    if not 0 < change <= 1:
        raise ValueError(f"a change to be found lies in (0, 1], got {change}")
    moved = max(discordance, change)

    def finds(count: int) -> bool:
        return paired_power(count, (moved + change) / 2, (moved - change) / 2, level=level) >= power

    few, enough = 0, 1
    while not finds(enough):
        few, enough = enough, 2 * enough
        if enough > _MANY:
            return None
    while enough - few > max(1, enough // 100):
        middle = (few + enough) // 2
        few, enough = (few, middle) if finds(middle) else (middle, enough)
    return enough


def detectable_by(test: PairedTest) -> float | None:
    """The change that a test of as many prompts as this one's, with as many that differ, finds with a power of 80 %;
    None where no change would be. For yes/no answers; for shares see `detectable_within`."""
    n = test.difference.n
    return None if n == 0 else detectable_change(n, min((test.only_model + test.only_base) / n, 1.0))


def detectable_within(difference: Estimate, *, power: float = POWER, confidence: float = 0.95) -> float | None:
    """The mean difference that is found with this power where its interval is as wide as this one, by the normal
    approximation: width / 2 * (1 + z_power / z_confidence). None for fewer than two prompts."""
    if difference.n < 2:
        return None
    z = float(stats.norm.ppf((1 + confidence) / 2))
    return (difference.high - difference.low) / 2 * (1 + float(stats.norm.ppf(power)) / z)


def reach(n: int, confidence: float = 0.95) -> float:
    """How far the ends of Wilson's interval of one rate on n prompts lie from its middle, at most (a rate of one half):
    z / (2 sqrt(n + z^2)). 1/2 for n = 0, where it is all of [0, 1]."""
    z = float(stats.norm.ppf((1 + confidence) / 2))
    return z / (2 * math.sqrt(n + z * z))
