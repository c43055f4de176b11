"""A scorecard held against a policy: a line for every bound on every metric that it names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from alignkeep.errors import DataError, RecipeError
from alignkeep.judging.drift import detectable
from alignkeep.judging.statistics import PairCounts
from alignkeep.policy.bounds import Bound, Policy
from alignkeep.policy.decision import Answer, Interval, change_on, decide, prompts_to_decide, rate_on
from alignkeep.types import Estimate, Scorecard


@dataclass(frozen=True, slots=True)
class Line:
    """One bound held against one metric. `estimate` is the rate, or the change against the base; `answer` is None
    where an optional bound found nothing measured; `needed` is about how many prompts would decide, `shows` the change
    that these would have shown with a power of 80 % (both only where they cannot decide)."""

    metric: str
    bound: str
    answer: Answer | None
    estimate: Estimate | None = None
    needed: int | None = None
    note: str = ""
    shows: float | None = None

    def as_json(self) -> dict[str, object]:
        return {
            "metric": self.metric,
            "bound": self.bound,
            "answer": "not measured" if self.answer is None else self.answer.value,
            "estimate": None if self.estimate is None else self.estimate.as_json(),
            "prompts_needed": self.needed,
            "detectable_change": self.shows,
            "note": self.note,
        }


def held(where: str, card: Scorecard, settings: Mapping[str, object], policy: Policy) -> tuple[Line, ...]:
    """The scorecard's line for every bound; `where` names the scorecard in errors.

    Raises RecipeError for a policy that was set for another suite or judge, DataError where a bound that is not
    optional names a metric that was not measured, or none of the metrics was: what nobody measured must not pass.
    """
    _check_meant_for(where, policy, card, settings)
    lines = tuple(line for bound in policy.bounds for line in _lines(where, bound, card))
    if all(line.answer is None for line in lines):
        raise DataError(
            where,
            seen="none of the policy's metrics was measured",
            expected="at least one bound that can be looked at",
            remedy="evaluate with a suite that asks for them, or change the policy",
        )
    return lines


def _check_meant_for(where: str, policy: Policy, card: Scorecard, settings: Mapping[str, object]) -> None:
    """A bound is set for the numbers of one suite and judge; those of another are other numbers."""
    judge = str(settings.get("judge", ""))
    for key, wanted, seen in (("suite", policy.suite, card.suite), ("judge", policy.judge, judge)):
        whole = seen.removesuffix("#report").removesuffix("#choose") if key == "suite" else seen  # a half is of it
        if wanted is not None and wanted not in (seen, whole):
            raise RecipeError(
                f"{where}: {key}",
                seen=seen or "none named",
                expected=f"{wanted}, which the policy {policy.name!r} was set for",
                remedy=f"evaluate with --{key} {wanted}, or give another --policy",
            )


def _lines(where: str, bound: Bound, card: Scorecard) -> list[Line]:
    _, is_change, _ = bound.limit
    names = [name for name in card.metrics if fnmatchcase(name, bound.metric)]
    known = {name: estimate for name in names if (estimate := _estimate(card, name, is_change)) is not None}
    if not known:
        if bound.optional:
            return [Line(bound.metric, bound.words, None, note=_why(card, bound, is_change))]
        raise DataError(
            f"{where}: {bound.metric}",
            seen=f"not measured ({_why(card, bound, is_change)})",
            expected="a number for every bound of the policy that is not optional",
            remedy="evaluate with what measures it, or mark the bound `optional: true`",
        )
    return [_line(name, bound, estimate, card) for name, estimate in known.items()]


def _line(name: str, bound: Bound, estimate: Estimate, card: Scorecard) -> Line:
    side, is_change, number = bound.limit
    answer = decide(estimate, side, number, bound.rule)
    if answer is not Answer.UNDECIDED:
        return Line(name, bound.words, answer, estimate)
    if _is_graded(name, card, estimate, is_change):
        needed = None  # scores between 0 and 1: how they spread a scorecard does not tell
    else:
        needed = prompts_to_decide(
            _change_on(name, card) if is_change else rate_on(estimate.value), estimate.n, side, number
        )
    shows = detectable(card.tests[name]) if is_change else None
    return Line(name, bound.words, answer, estimate, needed, shows=shows)


def _is_graded(name: str, card: Scorecard, estimate: Estimate, is_change: bool) -> bool:
    """Whether what is counted is no yes or no."""
    counted = estimate.value * estimate.n
    if not is_change:
        return not math.isclose(counted, round(counted), abs_tol=1e-6)
    test = card.tests[name]
    return not math.isclose(counted, test.only_model - test.only_base, abs_tol=1e-6)


def _change_on(name: str, card: Scorecard) -> Interval:
    """A scorecard tells on how many prompts only one of the two did it; on how many both did follows from the rate."""
    test = card.tests[name]
    n, differ = test.difference.n, test.only_model + test.only_base
    both = min(max(round(card.metrics[name].value * n) - test.only_model, 0), n - differ)
    return change_on(PairCounts(both, test.only_model, test.only_base, n - differ - both))


def _estimate(card: Scorecard, name: str, is_change: bool) -> Estimate | None:
    """The metric's rate, or its paired change against the base; None where it was not measured."""
    if not is_change:
        estimate = card.metrics[name]
        return estimate if estimate.n else None
    test = card.tests.get(name)
    return None if test is None or not test.difference.n else test.difference


def _why(card: Scorecard, bound: Bound, is_change: bool) -> str:
    if is_change and card.base is None:
        return "there is no base to compare with: evaluate with --base"
    return card.notes.get(bound.metric, "the scorecard has no such number")
