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
from enum import Enum
from typing import Literal

from alignkeep.types import Estimate

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


def prompts_to_decide(estimate: Estimate, bound: float) -> int | None:
    """About how many prompts would decide the bound, were the value the same: intervals shrink with the root of n.

    None where the value lies on the bound, so that no number would, or where it is above a million. Never below
    `estimate.n` for a bound inside the interval.
    """
    if estimate.n == 0 or math.isnan(estimate.value) or estimate.value == bound:
        return None
    end = estimate.high if bound > estimate.value else estimate.low
    needed = estimate.n * ((end - estimate.value) / (bound - estimate.value)) ** 2
    return None if needed > _MANY else math.ceil(needed)


def together(answers: list[Answer]) -> Answer:
    """One answer for many bounds: fail where any is broken, else undecided where any is, else pass. No bound at all is
    a ValueError: a gate that looks at nothing must not open."""
    if not answers:
        raise ValueError("a gate without a single bound")
    for answer in (Answer.FAIL, Answer.UNDECIDED):
        if answer in answers:
            return answer
    return Answer.PASS
