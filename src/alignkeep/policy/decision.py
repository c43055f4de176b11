"""One bound on one measured number: kept, broken, or not decided by these prompts.

Symbols
    value, low, high   the estimate and its interval
    bound              what the true number must not fall below (at least) or rise above (at most)

A bound is about the true number, of which an estimate is a sample. So it is kept where the whole interval keeps it,
broken where the whole interval breaks it, and not decided where the bound lies inside: more prompts would tell, fewer
would not, and neither "pass" nor "fail" would be honest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Literal

from alignkeep.judging.statistics import PairCounts, paired_difference, wilson
from alignkeep.types import Estimate

Interval = Callable[[int], Estimate]
Side = Literal["at_least", "at_most"]
Rule = Literal["interval", "strict", "value"]

_MANY = 1_000_000  # prompts; beyond this no number is told (chosen: nobody asks so many)


class Answer(str, Enum):
    """What became of one bound, or of all of them together."""

    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"


def decide(estimate: Estimate, side: Side, bound: float, rule: Rule = "interval") -> Answer:
    """Whether `estimate` keeps the bound; a number equal to the bound keeps it.

    `interval` has three answers, as above. `strict` passes only what `interval` passes and fails all else; `value`
    looks at the value alone, as if it rested on all prompts there are. Raises ValueError where nothing was measured.
    """
    if estimate.n == 0 or math.isnan(estimate.value):
        raise ValueError("a bound on what was not measured")
    sign = 1.0 if side == "at_least" else -1.0
    value, bound = sign * estimate.value, sign * bound
    worst, best = sorted((sign * estimate.low, sign * estimate.high))
    if rule == "value":
        return Answer.PASS if value >= bound else Answer.FAIL
    if worst >= bound:
        return Answer.PASS
    return Answer.FAIL if best < bound or rule == "strict" else Answer.UNDECIDED


def prompts_to_decide(interval: Interval, n: int, side: Side, bound: float) -> int | None:
    """About how many prompts would decide a bound that `n` do not, were the rates the same: to one part in a hundred.

    `interval(m)` is the estimate with its interval on m prompts (`rate_on`, `change_on`). None where a million would
    not do: the value lies on the bound, or nearly.
    """

    def is_decided(count: int) -> bool:
        return decide(interval(count), side, bound) is not Answer.UNDECIDED

    few = enough = max(n, 1)
    while not is_decided(enough):
        few, enough = enough, 2 * enough
        if enough > _MANY:
            return None
    while enough - few > max(1, enough // 100):
        middle = (few + enough) // 2
        few, enough = (few, middle) if is_decided(middle) else (middle, enough)
    return enough


def rate_on(rate: float) -> Interval:
    """The estimate of a rate on m prompts, with Wilson's interval."""
    return lambda count: wilson(round(rate * count), count)


def change_on(table: PairCounts) -> Interval:
    """The estimate of the change between two models on m prompts, of which the shares are those of `table`, with
    Newcombe's interval."""
    n = sum(table)
    return lambda count: paired_difference(PairCounts(*(round(part * count / n) for part in table)))


def together(answers: list[Answer]) -> Answer:
    """One answer for many bounds: fail where any is broken, else undecided where any is, else pass. No bound at all is
    a ValueError: a gate that looks at nothing must not open."""
    if not answers:
        raise ValueError("a gate without a single bound")
    for answer in (Answer.FAIL, Answer.UNDECIDED):
        if answer in answers:
            return answer
    return Answer.PASS
