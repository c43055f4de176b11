"""The models of a report: which evaluation is whose base, in which order and colour they are shown.

A base may have an evaluation of its own, or be known only from the `base_metrics` of what was tuned from it; either
way it is one model on the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from alignkeep.judging.metrics import DRIFT, HARM_REFUSAL
from alignkeep.report.sources import Answered, Evaluation
from alignkeep.stage import Finished
from alignkeep.types import Estimate, Opinion, PairedTest

UNKNOWN = Estimate(float("nan"), 0.0, 1.0, 0)
Identity = tuple[str, ...]
Key = tuple[str | None, int, str]  # attack, index, prompt: the same question put to every model


@dataclass(frozen=True)
class Subject:
    """One model on the page. `series` chooses its colour and mark, 0 for a base.

    `base` is the model it is compared with, None for a base and for a model evaluated alone.
    """

    label: str
    reference: str
    suite: str
    metrics: Mapping[str, Estimate]
    notes: Mapping[str, str]
    settings: Mapping[str, object]
    answers: Mapping[Key, Answered]
    series: int = 0
    base: Subject | None = None
    tests: Mapping[str, PairedTest] = field(default_factory=dict)
    judges: tuple[Opinion, ...] = ()  # what each of several judges found of this model
    fingerprint: str = ""  # of its files, where the evaluation's record has it

    def rate(self, metric: str) -> Estimate:
        """The metric's estimate; a metric that is not there is unknown."""
        return self.metrics.get(metric, UNKNOWN)

    def test(self, metric: str) -> PairedTest | None:
        """The paired test of a metric against the base: the model minus the base. Drift is the one of harm refusal."""
        found = self.tests.get(metric)
        if found is None and metric == HARM_REFUSAL.name and DRIFT.name in self.tests:
            found = _turned(self.tests[DRIFT.name])
        return found if found is not None and found.difference.n > 0 else None

    def why_absent(self, metric: str) -> str:
        """The reason given for a metric that was not measured, or nothing."""
        return self.notes.get(metric, "")


def _turned(drift: PairedTest) -> PairedTest:
    """The test of the drift, which counts what was lost, as one of model minus base."""
    lost = drift.difference
    return replace(drift, difference=Estimate(-lost.value, -lost.high, -lost.low, lost.n))


def subjects_of(evaluations: Sequence[Evaluation]) -> tuple[Subject, ...]:
    """Each base followed by what was tuned from it, the largest loss of harm refusal first."""
    bases: dict[Identity, Subject] = {}
    followers: dict[Identity, list[Subject]] = {}
    alone: list[Subject] = []
    labels: set[str] = set()
    standing = {_identity(evaluation, "model"): evaluation for evaluation in evaluations if not _has_base(evaluation)}
    for evaluation in evaluations:
        if not _has_base(evaluation):
            continue
        key = _identity(evaluation, "base")
        if key not in bases:
            bases[key] = _base(evaluation, standing.get(key), labels)
        followers.setdefault(key, []).append(_tuned(evaluation, bases[key], labels))
    for key, evaluation in standing.items():
        if key not in bases:
            alone.append(_own(evaluation, _free(evaluation.label, labels)))
    ordered: list[Subject] = []
    series = 0
    for key, base in bases.items():
        ordered.append(base)
        for tuned in sorted(followers[key], key=_loss):
            series += 1
            ordered.append(replace(tuned, series=series))
    for subject in alone:
        series += 1
        ordered.append(replace(subject, series=series))
    return tuple(ordered)


def series_of(labels: Iterable[str], subjects: Sequence[Subject]) -> dict[str, int]:
    """The series of every label: a model's own where it was evaluated, the next free one where not."""
    found = {subject.label: subject.series for subject in subjects}
    free = max(found.values(), default=0)
    for label in labels:
        if label not in found:
            free += 1
            found[label] = free
    return found


def made_from(subjects: Sequence[Subject], finished: Iterable[Finished]) -> dict[str, tuple[str, ...]]:
    """Of a model that was made from other models here, such as a repair of a tune, their labels: those whose
    fingerprints the record beside it names among what went in. A base is not told again."""
    known = {one.fingerprint: one.label for one in subjects if one.series > 0 and one.fingerprint}
    parents: dict[str, dict[str, None]] = {}
    for one in finished:
        inputs = one.facts.get("inputs")
        for value in inputs.values() if isinstance(inputs, Mapping) else ():
            parent = known.get(str(value), one.label)
            if parent != one.label:
                parents.setdefault(one.label, {})[parent] = None
    return {label: tuple(found) for label, found in parents.items()}


def _has_base(evaluation: Evaluation) -> bool:
    return evaluation.scorecard.base is not None


def _identity(evaluation: Evaluation, role: str) -> Identity:
    """Which model (by fingerprint where the record has one), and which questions it was asked."""
    reference = evaluation.scorecard.model if role == "model" else str(evaluation.scorecard.base)
    asked = evaluation.inputs.get("questions") or str(evaluation.settings.get("task"))
    judged = str(evaluation.settings.get("judge"))
    return evaluation.inputs.get(role) or reference, evaluation.scorecard.suite, asked, judged


def _loss(subject: Subject) -> tuple[bool, float, str]:
    base = subject.base or subject
    change = subject.rate(HARM_REFUSAL.name).value - base.rate(HARM_REFUSAL.name).value
    return (change != change, change if change == change else 0.0, subject.label)


def _base(evaluation: Evaluation, own: Evaluation | None, labels: set[str]) -> Subject:
    if own is not None:
        return _own(own, _free(own.label, labels))
    card = evaluation.scorecard
    return Subject(
        label=_free("base", labels),
        reference=str(card.base),
        suite=card.suite,
        metrics=card.base_metrics,
        notes={name: text for name, text in card.notes.items() if name not in card.metrics},
        settings=evaluation.settings,
        answers=_answers(evaluation, "base"),
        judges=tuple(replace(one, metrics=one.base_metrics, agreement={}) for one in card.judges),
    )


def _tuned(evaluation: Evaluation, base: Subject, labels: set[str]) -> Subject:
    return replace(
        _own(evaluation, _free(evaluation.label, labels)),
        answers=_answers(evaluation, "tuned"),
        base=base,
        tests=evaluation.scorecard.tests,
    )


def _own(evaluation: Evaluation, label: str) -> Subject:
    card = evaluation.scorecard
    return Subject(
        label=label,
        reference=card.model,
        suite=card.suite,
        metrics=card.metrics,
        notes=card.notes,
        settings=evaluation.settings,
        answers={_key(row): row for row in evaluation.answers},
        judges=card.judges,
        fingerprint=evaluation.inputs.get("model", ""),
    )


def _answers(evaluation: Evaluation, role: str) -> dict[Key, Answered]:
    return {_key(row): row for row in evaluation.answers if row.model == role}


def _key(row: Answered) -> Key:
    return row.attack, row.index, row.prompt


def _free(label: str, taken: set[str]) -> str:
    """The label, numbered where another model has it already."""
    candidate, number = label, 2
    while candidate in taken:
        candidate, number = f"{label} ({number})", number + 1
    taken.add(candidate)
    return candidate
