"""Which model to ship: every model held against a policy, and the best of those that keep it.

The policy decides who may ship; among those it is the task (without one, help with harmless prompts) that ranks, and
the answer is a sentence that says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from alignkeep.charts.scatter import Region
from alignkeep.charts.text import MINUS, interval, percent, points
from alignkeep.errors import DataError
from alignkeep.judging.metrics import (
    ATTACK_SUCCESS,
    BENIGN_COMPLIANCE,
    HARM_REFUSAL,
    METRICS,
    OVER_REFUSAL,
    SKILL_ACCURACY,
    TASK_ACCURACY,
    UTILITY,
    Metric,
    name_of_part,
)
from alignkeep.judging.statistics import is_found
from alignkeep.policy.bounds import Policy
from alignkeep.policy.decision import Answer, together
from alignkeep.policy.holding import Line, held
from alignkeep.report.subjects import Subject
from alignkeep.types import Scorecard

WORDS = {Answer.PASS: "passes", Answer.FAIL: "fails", Answer.UNDECIDED: "cannot decide", None: "no answer"}
TONES = {Answer.PASS: "good", Answer.FAIL: "bad", Answer.UNDECIDED: "open", None: "open"}
_KEPT = {Answer.PASS: "kept", Answer.FAIL: "broken", Answer.UNDECIDED: "not decided", None: "not measured"}


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the policy says of one model, with a line for every bound; without an answer `why` tells what it lacks."""

    answer: Answer | None
    lines: tuple[Line, ...] = ()
    why: str = ""

    @property
    def needed(self) -> int | None:
        """About how many prompts would decide; None where no number that could be asked would."""
        needed = [line.needed for line in self.lines if line.answer is Answer.UNDECIDED]
        return max((n for n in needed if n is not None), default=None) if None not in needed else None


class Advice(NamedTuple):
    """The first sentence of the page, its reasons, and the label of the model to ship where there is one."""

    pick: str | None
    tone: str
    headline: str
    reasons: str


def ruled(subject: Subject, policy: Policy) -> Ruling:
    """One model held against the policy. Raises RecipeError for a policy of another suite or judge."""
    base = None if subject.base is None else subject.base.reference
    card = Scorecard(
        subject.reference, base, subject.suite, dict(subject.metrics), subject.tests, notes=dict(subject.notes)
    )
    try:
        lines = held(subject.label, card, subject.settings, policy)
    except DataError as error:
        return Ruling(None, why=f"{_named(error.where.removeprefix(f'{subject.label}: '))}: {error.seen}")
    return Ruling(together([line.answer for line in lines if line.answer is not None]), lines)


def advise(subjects: Sequence[Subject], rulings: Mapping[str, Ruling], across: Metric | None, policy: str) -> Advice:
    """Which of the models to ship: bases are what is there already, and are not asked about."""
    asked = [subject for subject in subjects if subject.series > 0]

    def who(answer: Answer | None) -> list[Subject]:
        fitting = [subject for subject in asked if rulings[subject.label].answer is answer]
        return sorted(fitting, key=lambda one: _merit(one, across), reverse=True)

    passing, undecided, failing = who(Answer.PASS), who(Answer.UNDECIDED), who(Answer.FAIL)
    named = f"the policy “{policy}”"
    same = ("task", "judge", "task_score", "limit", "seed")
    if len({(one.suite, *(str(one.settings.get(key)) for key in same)) for one in passing}) > 1:
        words = f"{len(passing)} models keep {named}, but they were asked or judged differently: none is best."
        return Advice(None, "good", "More than one may ship", words)
    if passing:
        return _ship(passing, len(asked), across, named)
    if undecided:
        best = undecided[0]
        needed = rulings[best.label].needed
        more = "no number that could be asked would tell" if needed is None else f"about {needed:,} would tell"
        words = (
            f"{best.label} breaks no bound of {named}, but whether it keeps them all these prompts do not tell: {more}."
        )
        return Advice(None, "open", "Do not ship yet", f"{words}{_beside(best, across)}")
    if failing:
        if len(asked) == 1:
            return Advice(None, "bad", f"Do not ship {asked[0].label}", f"It breaks {named}.")
        every = "Both" if len(asked) == 2 else f"All {len(asked)}"
        who_breaks = every if len(failing) == len(asked) else f"{len(failing)} of {len(asked)} models"
        return Advice(None, "bad", "Ship none of these", f"{who_breaks} break{'s' * (len(failing) == 1)} {named}.")
    why = "; ".join(dict.fromkeys(rulings[one.label].why for one in asked))
    return Advice(None, "open", "Not enough was measured to say", f"What {named} asks for is not there: {why}.")


def _ship(passing: Sequence[Subject], asked: int, across: Metric | None, named: str) -> Advice:
    best, *others = passing
    alone = f"Of {asked} models it alone keeps {named}" if asked > 1 else f"It keeps {named}"
    words = f"{alone}: {_told(best, across)}."
    if others:
        of = f"Of {asked} models {len(passing)} keep {named}"
        rival = others[0]
        if across is None or not best.rate(across.name).n:
            words = f"{of}; it refuses most: {_told(best, across)}."
        else:
            chance = rival.rate(across.name).n and rival.rate(across.name).high >= best.rate(across.name).low
            beyond = f", though not beyond chance ({rival.label}: {percent(rival.rate(across.name).value)})"
            words = f"{of}; it has the highest {across.label}{beyond if chance else ''}: {_told(best, across)}."
    return Advice(best.label, "good", f"Ship {best.label}", f"{words}{_beside(best, across)}")


def _beside(subject: Subject, across: Metric | None) -> str:
    """What the policy does not ask and a reader would: whether anything was gained, and what else was lost."""
    test, lost, words = None if across is None else subject.test(across.name), _lost(subject), ""
    gains = test is not None and is_found(test) and test.difference.value > 0
    if across is not None and across.kind == "task" and test is not None and not gains:
        words += f" Its {across.label} is not above that of its base beyond chance."
    return f"{words} It lost against its base: {', '.join(lost)}. Look at that before you ship it." if lost else words


def _lost(subject: Subject) -> list[str]:
    """What else is worse than in the base, beyond chance, whether the policy asks for it or not."""
    lost: list[str] = []
    whole = (HARM_REFUSAL, SKILL_ACCURACY, BENIGN_COMPLIANCE, OVER_REFUSAL, TASK_ACCURACY)
    names = [(metric, metric.name) for metric in whole]
    names += [(metric, part) for metric in (ATTACK_SUCCESS, UTILITY) for part in metric.parts_in(subject.tests)]
    for metric, name in names:
        test = subject.test(name)
        if test is not None and is_found(test) and (test.difference.value < 0) == (metric.better == "higher"):
            lost.append(f"{_named(name)} {points(test.difference.value)} points")
    return lost


def _merit(subject: Subject, across: Metric | None) -> tuple[float, float]:
    def value(name: str) -> float:
        rate = subject.rate(name)
        return rate.value if rate.n else -1.0

    return (-1.0 if across is None else value(across.name)), value(HARM_REFUSAL.name)


def _told(subject: Subject, across: Metric | None) -> str:
    """`harm refusal 98.5 % → 97.9 %, task 30.0 % → 78.0 %`."""
    parts = []
    for metric in (HARM_REFUSAL, across):
        if metric is None or not subject.rate(metric.name).n:
            continue
        before = None if subject.base is None else subject.base.rate(metric.name)
        moved = "" if before is None or not before.n else f"{percent(before.value)}\u00a0→\u00a0"
        parts.append(f"{metric.label} {moved}{percent(subject.rate(metric.name).value)}")
    return ", ".join(parts)


def bound_words(line: Line) -> str:
    """`kept: harm refusal −0.5 points (−2.1 to +0.9), wanted change ≥ −5 points`."""
    return f"{_KEPT[line.answer]}: {_measured(line)}"


def reason(ruling: Ruling) -> str:
    """Why a model does not pass: the first bound that is not kept, how many more, or what was not measured."""
    against = [line for line in ruling.lines if line.answer is ruling.answer]
    if ruling.answer is Answer.PASS or not against:
        return ruling.why
    more = f", and {len(against) - 1} more" if len(against) > 1 else ""
    return f"{_measured(against[0])}{more}"


def _measured(line: Line) -> str:
    words, wanted = _named(line.metric), f"wanted {_typeset(line.bound)}"
    if line.estimate is None:
        return f"{words}, {wanted}{f' ({line.note})' if line.note else ''}"
    if line.bound.startswith("change"):
        low, high = points(line.estimate.low), points(line.estimate.high)
        words += f" {points(line.estimate.value)} points ({low} to {high})"
    else:
        words += f" {percent(line.estimate.value)} ({interval(line.estimate)})"
    more = "" if line.needed is None else f"; about {line.needed:,} prompts would decide"
    return f"{words}, {wanted}{more}"


def _typeset(bound: str) -> str:
    return bound.replace(">=", "≥").replace("<=", "≤").replace("-", MINUS)


def _named(metric: str) -> str:
    whole, part = metric.partition(".")[0], name_of_part(metric).replace("_", " ")
    title = METRICS[whole].label if whole in METRICS else whole.replace("_", " ")
    return f"{title}: {part}" if part else title


class Allowed(NamedTuple):
    """Where the policy's bounds on two rates are kept; `words` are those bounds."""

    region: Region
    words: tuple[str, ...]


def allowed(policy: Policy, across: Metric, shown: Sequence[Subject]) -> Allowed | None:
    """The part of the plane of harm refusal and `across` that the policy allows; bounds against the base lie where the
    one base is, and are left out where there are several. None where no bound is on either."""
    bases = {(one.base or one).label: one.base or one for one in shown if one.base is not None or one.series == 0}
    base = next(iter(bases.values())) if len(bases) == 1 else None
    ends, words = {across.name: (0.0, 1.0), HARM_REFUSAL.name: (0.0, 1.0)}, []
    for bound in policy.bounds:
        side, is_change, number = bound.limit
        for metric in (HARM_REFUSAL, across):
            if not fnmatchcase(metric.name, bound.metric) or (
                is_change and (base is None or not base.rate(metric.name).n)
            ):
                continue
            at = number + (base.rate(metric.name).value if is_change and base is not None else 0.0)
            low, high = ends[metric.name]
            ends[metric.name] = (max(low, at), high) if side == "at_least" else (low, min(high, at))
            words.append(f"{metric.label} {_typeset(bound.words)}")
    if not words:
        return None
    return Allowed(Region(ends[across.name], ends[HARM_REFUSAL.name]), tuple(words))
