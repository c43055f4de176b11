"""What the page says, as plain values: the template only lays it out.

`page_of` is a pure function of what the files hold, so that equal files give an equal page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from alignkeep.charts.figures import Figure
from alignkeep.charts.svg import key
from alignkeep.citations import Cited, bibtex, cite
from alignkeep.judging.metrics import ATTACK_SUCCESS, METRICS, RATES, Metric
from alignkeep.policy.bounds import DEFAULT, Policy, read_policy
from alignkeep.report.examples import Section, sections_of
from alignkeep.report.panels import Paired, across_of, figures_of, in_words, plane
from alignkeep.report.shipping import TONES, WORDS, Advice, Ruling, advise, bound_words, reason, ruled
from alignkeep.report.sources import Sources
from alignkeep.report.subjects import Subject, made_from, series_of, subjects_of
from alignkeep.report.verdict import Finding, findings
from alignkeep.stage import Finished
from alignkeep.stages import STAGES, methods_of
from alignkeep.types import Estimate
from alignkeep.works import Citation

_MEASURING = [stage.name for stage in STAGES if stage.measures]  # their scorecards say what was measured


class Cell(NamedTuple):
    """One rate in the table, and its paired change where there is a base."""

    estimate: Estimate
    paired: Paired | None


class Row(NamedTuple):
    label: str
    series: int
    reference: str
    key: Markup
    cells: tuple[Cell, ...]


class Judged(NamedTuple):
    """One model of the first table: what happened to it, what the policy says, and every bound in words."""

    finding: Finding
    key: Markup
    answer: str
    tone: str
    reason: str
    bounds: tuple[str, ...]


class Choices(NamedTuple):
    """What the answers on the page can be filtered by, each in the order of its first appearance."""

    topics: tuple[str, ...]
    models: tuple[str, ...]
    verdicts: tuple[str, ...]
    judges_differ: bool


class Facts(NamedTuple):
    """A named list of settings or versions."""

    title: str
    summary: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Page:
    title: str
    about: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]
    advice: Advice | None
    plane: Figure | None
    judged: tuple[Judged, ...]
    policy: str
    cautions: tuple[str, ...]
    columns: tuple[Metric, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    figures: tuple[Figure, ...]
    sections: tuple[Section, ...]
    choices: Choices
    full_answers: bool
    records: tuple[Facts, ...]
    versions: tuple[Facts, ...]
    methods: tuple[Citation, ...]
    bibtex: str


def page_of(
    sources: Sources, *, policy: Policy | None = None, title: str | None = None, full_answers: bool = False
) -> Page:
    """The whole page. Bases stand before what was tuned from them, the largest loss of harm refusal first. Without a
    policy the default one says which model may ship; raises RecipeError for one of another suite or judge."""
    subjects = subjects_of(sources.evaluations)
    methods, policy = _methods(sources), policy or read_policy(DEFAULT)
    rulings = {one.label: ruled(one, policy) for one in subjects if one.series > 0}
    advice = advise(subjects, rulings, across_of(subjects), policy.name) if subjects else None
    found, sections = findings(subjects), sections_of(subjects, full=full_answers)
    return Page(
        title=title or "Safety before and after tuning",
        about=_about(subjects),
        findings=found,
        advice=advice,
        plane=plane(subjects, policy, advice.pick if advice else None, made_from(subjects, sources.finished)),
        judged=tuple(_judged(one, rulings[one.label]) for one in found),
        policy=policy.name,
        cautions=_page_cautions(subjects),
        columns=tuple(RATES.values()),
        rows=tuple(_table_row(subject) for subject in subjects),
        notes=_notes(subjects),
        figures=(*(figures_of(subjects) if subjects else ()), *_of_stages(sources, subjects)),
        sections=sections,
        choices=_choices(sections),
        full_answers=full_answers,
        records=tuple(_record(record) for record in sources.records),
        versions=_versions(sources.records),
        methods=methods,
        bibtex=bibtex(methods),
    )


def _judged(finding: Finding, ruling: Ruling) -> Judged:
    bounds = tuple(bound_words(line) for line in ruling.lines) or (ruling.why,)
    return Judged(finding, key(finding.series), WORDS[ruling.answer], TONES[ruling.answer], reason(ruling), bounds)


def _choices(sections: Sequence[Section]) -> Choices:
    shown = [one for section in sections for one in section.comparisons]
    answers = [answer for one in shown for answer in one.answers]
    return Choices(
        tuple(dict.fromkeys(one.topic for one in shown)),
        tuple(dict.fromkeys(answer.label for answer in answers)),
        tuple(dict.fromkeys(answer.verdict for answer in answers)),
        any(one.differs for one in shown),
    )


def _of_stages(sources: Sources, subjects: Sequence[Subject]) -> list[Figure]:
    """What the stages show of themselves, in the order of a tune's life."""

    def series(labels: Iterable[str]) -> Mapping[str, int]:
        return series_of(labels, subjects)

    return [figure for stage in STAGES for figure in stage.figures(sources.finished, series)]


def _about(subjects: Sequence[Subject]) -> tuple[tuple[str, str], ...]:
    suites = sorted({subject.suite for subject in subjects if subject.suite})
    judges = sorted({str(subject.settings["judge"]) for subject in subjects if subject.settings.get("judge")})
    # The file's name, not where it lies: pages are passed on, and the record below has the whole path.
    tasks = sorted({Path(str(s.settings["task"])).name for s in subjects if s.settings.get("task")})
    facts = [("Models", str(len(subjects) or "")), ("Suite", ", ".join(suites)), ("Task", ", ".join(tasks))]
    return tuple((name, value) for name, value in [*facts, ("Judge", ", ".join(judges))] if value)


def _page_cautions(subjects: Sequence[Subject]) -> tuple[str, ...]:
    words = []
    if not subjects:
        words.append("No model was evaluated in these folders: the figures below are all that was measured.")
    suites = {subject.suite for subject in subjects}
    if len(suites) > 1:
        words.append("The models answered different suites: only models of one suite can be compared.")
    if sum(subject.series > 0 for subject in subjects) > 1:
        words.append("Every interval and test stands by itself: they are not corrected for the number of comparisons.")
    return tuple(words)


def _table_row(subject: Subject) -> Row:
    cells = tuple(Cell(subject.rate(name), in_words(subject.test(name))) for name in RATES)
    return Row(subject.label, subject.series, subject.reference, key(subject.series), cells)


def _notes(subjects: Sequence[Subject]) -> tuple[str, ...]:
    """Notes of the scorecards, each once with the models it holds for."""
    found: dict[str, list[str]] = {}
    for subject in subjects:
        for name, text in subject.notes.items():
            if not ATTACK_SUCCESS.parts_in([name]):
                title = METRICS[name].title if name in METRICS else name.replace("_", " ").capitalize()
                found.setdefault(f"{title}: {text}", []).append(subject.label)
    return tuple(f"{text} ({', '.join(dict.fromkeys(labels))})" for text, labels in found.items())


def _record(record: Finished) -> Facts:
    facts = record.facts
    seconds = facts.get("seconds")
    summary = [f"seed {facts['seed']}"] if facts.get("seed") is not None else []
    if isinstance(seconds, (int, float)):
        summary.append(f"{seconds:.1f} s")
    pairs = [("identity", str(facts.get("identity", "")))]
    # What an evaluation found is the page itself.
    for group in ("inputs", "config") if facts["stage"] in _MEASURING else ("inputs", "config", "result"):
        pairs += [(f"{group}: {name}", value) for name, value in _flat(facts.get(group))]
    return Facts(_titled(record), ", ".join(summary), tuple(pairs))


def _titled(record: Finished) -> str:
    return f"{record.label}: {record.facts['stage']}"


def _versions(records: Sequence[Finished]) -> tuple[Facts, ...]:
    """The versions of every record, records with the same versions together."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for record in records:
        pairs = tuple(sorted(_flat(record.facts.get("versions"))))
        if pairs:
            groups.setdefault(pairs, []).append(_titled(record))
    if len(groups) == 1:
        return tuple(Facts("Versions", "the same for every stage", pairs) for pairs in groups)
    return tuple(Facts("Versions", "; ".join(stages), pairs) for pairs, stages in groups.items())


def _flat(value: object, name: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names and words: `load.dtype`, `auto`."""
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{name}.{key}" if name else str(key))]
    if value is None:
        return [(name, "none")] if name else []
    if isinstance(value, bool):
        return [(name, "yes" if value else "no")]
    if isinstance(value, (list, tuple)):
        return [(name, ", ".join(str(inner) for inner in value) or "none")]
    return [(name, f"{value:.6g}" if isinstance(value, float) else str(value))]


def _methods(sources: Sources) -> tuple[Citation, ...]:
    names: list[Cited] = []
    for record in sources.records:
        config = record.facts.get("config")
        if record.facts["stage"] not in _MEASURING and isinstance(config, Mapping):
            names += methods_of(str(record.facts["stage"]), config)
    for evaluation in sources.evaluations:
        card, judge = evaluation.scorecard, evaluation.settings.get("judge")
        measured = [name for name, estimate in card.metrics.items() if estimate.n]
        for stage in _MEASURING:
            names += methods_of(stage, {"suite": card.suite, "base": card.base, "judge": judge}, measured)
    return cite(names)
