"""The stage `gate`: scorecards read, held against a policy, and one verdict for continuous integration."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from alignkeep.checkpoint.records import Record
from alignkeep.errors import DataError, RecipeError
from alignkeep.gate.decision import Answer, Interval, change_on, decide, prompts_to_decide, rate_on, together
from alignkeep.gate.policy import DEFAULT, Bound, Policy, read_policy
from alignkeep.judging.drift import detectable
from alignkeep.judging.scorecards import read_scorecard
from alignkeep.judging.statistics import PairCounts
from alignkeep.types import Estimate, Scorecard

SCORECARD = "scorecard.json"


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


@dataclass(frozen=True, slots=True)
class Gated:
    """One scorecard's verdict, with a line for every bound."""

    folder: Path
    model: str
    base: str | None
    suite: str
    answer: Answer
    lines: tuple[Line, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "folder": str(self.folder),
            "model": self.model,
            "base": self.base,
            "suite": self.suite,
            "answer": self.answer.value,
            "bounds": [line.as_json() for line in self.lines],
        }


@dataclass(frozen=True, slots=True)
class GateResult:
    """The verdict on all scorecards of a folder: the worst of them."""

    policy: str
    answer: Answer
    models: tuple[Gated, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "policy": self.policy,
            "answer": self.answer.value,
            "models": [gated.as_json() for gated in self.models],
        }


def gate(folder: str | Path, *, policy: str | Policy = DEFAULT) -> GateResult:
    """Hold every scorecard in `folder` (or below it) against a policy: `default`, a YAML file, or a Policy.

    Raises DataError where there is no scorecard, or a bound names a metric that was not measured: what nobody measured
    must not pass. Raises RecipeError for a policy that cannot be read or was set for another suite or judge.
    """
    rules = policy if isinstance(policy, Policy) else read_policy(policy)
    found = tuple(_gated(path, rules) for path in _scorecards(Path(folder)))
    return GateResult(rules.name, together([gated.answer for gated in found]), found)


def _scorecards(folder: Path) -> list[Path]:
    """All scorecards of finished evaluations in `folder`, in the order of their paths; the one alone that the folder's
    record names as that of the model to ship."""
    found = _shipped(folder) or (sorted(_walk(folder)) if folder.is_dir() else [])
    if not found:
        raise DataError(
            str(folder),
            seen=f"no {SCORECARD} in it" if folder.is_dir() else "no such folder",
            expected="the --out folder of a finished `alignkeep evaluate` (or of a run, or demo)",
            remedy="evaluate the model first",
        )
    return found


def _shipped(folder: Path) -> list[Path]:
    try:
        named = Record.read(folder).result.get("scorecard")
    except DataError:
        return []
    return [folder / named / SCORECARD] if isinstance(named, str) and (folder / named / SCORECARD).is_file() else []


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # killed stages, not finished ones
        if SCORECARD in names:
            yield Path(root) / SCORECARD


def _gated(path: Path, policy: Policy) -> Gated:
    card, settings = read_scorecard(path)
    _check_meant_for(path, policy, card, settings)
    lines = tuple(line for bound in policy.bounds for line in _lines(path, bound, card))
    answers = [line.answer for line in lines if line.answer is not None]
    if not answers:
        raise DataError(
            str(path),
            seen="none of the policy's metrics was measured",
            expected="at least one bound that can be looked at",
            remedy="evaluate with a suite that asks for them, or change the policy",
        )
    return Gated(path.parent, card.model, card.base, card.suite, together(answers), lines)


def _check_meant_for(path: Path, policy: Policy, card: Scorecard, settings: Mapping[str, object]) -> None:
    """A bound is set for the numbers of one suite and judge; those of another are other numbers."""
    judge = str(settings.get("judge", ""))
    for key, wanted, seen in (("suite", policy.suite, card.suite), ("judge", policy.judge, judge)):
        if wanted is not None and wanted != seen:
            raise RecipeError(
                f"{path}: {key}",
                seen=seen or "none named",
                expected=f"{wanted}, which the policy {policy.name!r} was set for",
                remedy=f"evaluate with --{key} {wanted}, or give another --policy",
            )


def _lines(path: Path, bound: Bound, card: Scorecard) -> list[Line]:
    _, is_change, _ = bound.limit
    names = [name for name in card.metrics if fnmatchcase(name, bound.metric)]
    known = {name: estimate for name in names if (estimate := _estimate(card, name, is_change)) is not None}
    if not known:
        if bound.optional:
            return [Line(bound.metric, bound.words, None, note=_why(card, bound, is_change))]
        raise DataError(
            f"{path}: {bound.metric}",
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
    interval = _change_on(name, card) if is_change else rate_on(estimate.value)
    needed = prompts_to_decide(interval, estimate.n, side, number)
    shows = detectable(card.tests[name]) if is_change else None
    return Line(name, bound.words, answer, estimate, needed, shows=shows)


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
