"""The same prompt, before and after: which answers to show side by side, and how much of them.

A prompt whose verdict changed comes before one whose did not, a refusal that became a harmful answer before all, and
the categories take turns, so that a few rows show the breadth of what happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from alignkeep.charts.text import SHORT, shorten
from alignkeep.report.sources import Answered
from alignkeep.report.subjects import Key, Subject


class Topic(NamedTuple):
    """A section of the examples: which kinds of prompts it takes, under attack or not, and how many at most."""

    title: str
    kinds: frozenset[str]
    attacked: bool
    most: int


_TOPICS = (
    Topic("Harmful requests", frozenset({"harmful"}), False, 8),
    Topic("Harmful requests under attack", frozenset({"harmful"}), True, 4),
    Topic("Borderline and harmless requests", frozenset({"borderline", "harmless", "unknown"}), False, 4),
    Topic("Task and skills", frozenset({"task", "skill"}), False, 4),
)
_VERDICTS = {
    "refusal": "refused",
    "compliance": "answered",
    "evasive": "evaded",
    "degenerate": "degenerate",
    "unscored": "not scored",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """One model's answer as shown. `hidden` means folded away: it is, or may be, harmful."""

    label: str
    series: int
    text: str | None
    verdict: str
    tone: str
    hidden: bool
    changed: bool
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt and what every model answered."""

    prompt: str
    tags: tuple[str, ...]
    expected: str | None
    answers: tuple[Shown, ...]
    changed: bool


@dataclass(frozen=True, slots=True)
class Section:
    """The comparisons of one topic: `changed` of the `total` prompts got another verdict after tuning."""

    title: str
    changed: int
    total: int
    comparisons: tuple[Comparison, ...]


def sections_of(subjects: Sequence[Subject], *, full: bool = False) -> tuple[Section, ...]:
    """Examples for every base and what was tuned from it, and for models evaluated alone; empty topics are left out."""
    sections = []
    heads = [subject for subject in subjects if subject.base is None]
    for head in heads:
        group = [head, *(subject for subject in subjects if subject.base is not None and _same(subject.base, head))]
        suffix = f" ({head.label})" if len(heads) > 1 else ""
        sections += [section for topic in _TOPICS if (section := _section(topic, group, suffix, full)).total]
    return tuple(sections)


def _same(one: Subject, other: Subject) -> bool:
    return one.label == other.label


def _section(topic: Topic, group: Sequence[Subject], suffix: str, full: bool) -> Section:
    keys = {
        key: row
        for subject in group
        for key, row in subject.answers.items()
        if row.kind in topic.kinds and (row.attack is not None) == topic.attacked
    }
    ranks = {key: _rank(key, group) for key in keys}
    turns: Counter[tuple[int, str]] = Counter()
    order = []
    for place, key in enumerate(sorted(keys, key=lambda key: (*ranks[key], key[1], key[0] or "", key[2]))):
        rank, category = ranks[key][0], keys[key].category or key[0] or ""
        order.append((rank, turns[rank, category], place, key))
        turns[rank, category] += 1
    chosen = [key for *_, key in sorted(order)[: topic.most]]
    changed = sum(rank < _UNCHANGED for rank, _ in ranks.values())
    requests = [key[2] for subject in group[:1] for key in subject.answers if key[0] is None]
    comparisons = tuple(_comparison(keys[key], key, group, requests, full) for key in chosen)
    return Section(topic.title + suffix, changed, len(keys), comparisons)


_UNCHANGED = 3


def _rank(key: Key, group: Sequence[Subject]) -> tuple[int, int]:
    """How telling a prompt is (0: a refusal turned into harm, 3: nothing changed), then how many models changed."""
    before = group[0].answers.get(key)
    after = [row for subject in group[1:] if (row := subject.answers.get(key)) is not None]
    if before is None or not after:
        return _UNCHANGED, 0
    moved = [row for row in after if _changed(before, row)]
    if any(before.verdict == "refusal" and _harmful(row) for row in moved):
        return 0, -len(moved)
    if any(before.correct != row.correct for row in moved):
        return 1, -len(moved)
    return (2, -len(moved)) if moved else (_UNCHANGED, 0)


def _changed(before: Answered, after: Answered) -> bool:
    if before.expected is not None and before.correct is not None and after.correct is not None:
        return before.correct != after.correct
    return before.verdict != after.verdict


def _harmful(row: Answered) -> bool:
    """Harmful, or not known to be harmless: what answers a harmful prompt without refusing."""
    return row.harmful is True or (row.harmful is None and row.kind == "harmful" and row.verdict != "refusal")


def _comparison(row: Answered, key: Key, group: Sequence[Subject], requests: Sequence[str], full: bool) -> Comparison:
    attack = None if row.attack is None else f"attack: {row.attack.replace('_', ' ')}"
    before = group[0].answers.get(key)
    answers = tuple(_shown(subject, subject.answers.get(key), before, full) for subject in group)
    return Comparison(
        prompt=shorten(_request(row, requests), None if full else SHORT),
        tags=tuple(tag for tag in (row.kind, row.category, attack) if tag is not None),
        expected=None if row.expected is None else shorten(row.expected),
        answers=answers,
        changed=any(answer.changed for answer in answers),
    )


def _request(row: Answered, requests: Sequence[str]) -> str:
    """What is asked for, without the words of the attack around it: the longest plain prompt it holds."""
    held = [] if row.attack is None else [request for request in requests if request and request in row.prompt]
    return max(held, key=len, default=row.prompt)


def _shown(subject: Subject, row: Answered | None, before: Answered | None, full: bool) -> Shown:
    if row is None:
        return Shown(subject.label, subject.series, None, "no answer stored", "plain", False, False)
    verdict, tone = _VERDICTS.get(row.verdict, row.verdict), "plain"
    if row.expected is not None and row.correct is not None:
        verdict, tone = ("right", "good") if row.correct else ("wrong", "bad")
    elif row.kind == "harmful":
        tone = "good" if row.verdict == "refusal" else "bad" if _harmful(row) else "plain"
    elif row.kind in {"borderline", "harmless"}:
        tone = "good" if row.verdict == "compliance" else "bad" if row.verdict == "refusal" else "plain"
    return Shown(
        label=subject.label,
        series=subject.series,
        text=shorten(row.answer, None if full else SHORT),
        verdict=verdict,
        tone=tone,
        hidden=_harmful(row) and not full,
        changed=before is not None and before is not row and _changed(before, row),
        truncated=row.truncated,
    )
