"""The same prompt, before and after: the answers of all models side by side, and which of them to show first.

A prompt whose verdict changed comes before one whose did not, a refusal that became a harmful answer before all, and
the kinds of prompts and their categories take turns, so that the first rows show the breadth of what happened. What
does not fit on a page stays in `answers.jsonl`, and the page says how much that is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from alignkeep.charts.text import SHORT, shorten
from alignkeep.report.sources import Answered
from alignkeep.report.subjects import Key, Subject

# Chosen: a page of some 3 MB, which a phone opens in a second.
MOST_ANSWERS, MOST_LETTERS = 6000, 2_000_000


class Topic(NamedTuple):
    """A kind of prompts: which ones it takes, under attack or not, and how many of them stand in a row before the next
    kind has its turn."""

    title: str
    kinds: frozenset[str]
    attacked: bool
    turn: int


_TOPICS = (
    Topic("Harmful requests", frozenset({"harmful"}), False, 8),
    Topic("Harmful requests under attack", frozenset({"harmful"}), True, 4),
    Topic("Borderline and harmless requests", frozenset({"borderline", "harmless", "unknown"}), False, 4),
    Topic("Task and skills", frozenset({"task", "skill"}), False, 4),
)
FIRST = sum(topic.turn for topic in _TOPICS)  # what is shown before anybody asks for more
_VERDICTS = {
    "refusal": "refused",
    "compliance": "answered",
    "evasive": "evaded",
    "degenerate": "degenerate",
    "unscored": "not scored",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """One model's answer as shown. `hidden` means folded away: it is, or may be, harmful. `others` are judges that say
    something else, with their verdicts."""

    label: str
    series: int
    text: str | None
    verdict: str
    tone: str
    hidden: bool
    changed: bool
    truncated: bool = False
    others: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt and what every model answered; `order` is its place among those that were asked."""

    topic: str
    prompt: str
    tags: tuple[str, ...]
    expected: str | None
    answers: tuple[Shown, ...]
    order: int

    @property
    def changes(self) -> int:
        """How many models got another verdict than the base."""
        return sum(answer.changed for answer in self.answers)

    @property
    def differs(self) -> bool:
        """Whether several judges say something else of one of the answers."""
        return any(answer.others for answer in self.answers)

    @property
    def letters(self) -> int:
        return len(self.prompt) + sum(len(answer.text or "") for answer in self.answers)


class Count(NamedTuple):
    """How many prompts of a topic got another verdict after tuning, of how many."""

    topic: str
    changed: int
    total: int


@dataclass(frozen=True, slots=True)
class Section:
    """The prompts of a base and what was tuned from it, the most telling first; `left_out` of them are not shown."""

    title: str
    counts: tuple[Count, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def left_out(self) -> int:
        return sum(count.total for count in self.counts) - len(self.comparisons)


def sections_of(subjects: Sequence[Subject], *, full: bool = False) -> tuple[Section, ...]:
    """One section for every base with what was tuned from it, and for every model evaluated alone that has answers."""
    heads = [subject for subject in subjects if subject.base is None]
    groups = [
        [head, *(subject for subject in subjects if subject.base is not None and subject.base.label == head.label)]
        for head in heads
    ]
    groups = [group for group in groups if any(subject.answers for subject in group)]
    share = len(groups) or 1
    return tuple(
        _section(group, group[0].label if len(groups) > 1 else "", full, MOST_ANSWERS // share, MOST_LETTERS // share)
        for group in groups
    )


def _section(group: Sequence[Subject], title: str, full: bool, answers: int, letters: int) -> Section:
    rows = {key: row for subject in group for key, row in subject.answers.items()}
    ranks = {key: _rank(key, group) for key in rows}
    queues = {topic: _queue(topic, rows, ranks) for topic in _TOPICS}
    counts = tuple(
        Count(topic.title, sum(ranks[key][0] < _UNCHANGED for key in queue), len(queue))
        for topic, queue in queues.items() if queue
    )  # fmt: skip
    plain = {key[1]: key[2] for key in rows if key[0] is None}
    order = {key: place for place, key in enumerate(sorted(rows, key=lambda key: (key[1], key[0] or "", key[2])))}
    chosen: list[Comparison] = []
    for topic, key in _in_turns(queues):
        one = _comparison(topic, rows[key], key, group, plain, order[key], full)
        answers, letters = answers - len(group), letters - one.letters
        if min(answers, letters) < 0 and len(chosen) >= FIRST:
            break
        chosen.append(one)
    return Section(title, counts, tuple(chosen))


def _queue(topic: Topic, rows: Mapping[Key, Answered], ranks: Mapping[Key, tuple[int, int]]) -> list[Key]:
    """The topic's prompts, the most telling first; of equally telling ones the categories take turns."""
    keys = [key for key, row in rows.items() if row.kind in topic.kinds and (row.attack is not None) == topic.attacked]
    turns: Counter[tuple[int, str]] = Counter()
    order: list[tuple[int, int, int, Key]] = []
    for place, key in enumerate(sorted(keys, key=lambda key: (*ranks[key], key[1], key[0] or "", key[2]))):
        rank, category = ranks[key][0], rows[key].category or key[0] or ""
        order.append((rank, turns[rank, category], place, key))
        turns[rank, category] += 1
    return [key for *_, key in sorted(order)]


def _in_turns(queues: Mapping[Topic, Sequence[Key]]) -> Iterator[tuple[Topic, Key]]:
    """So many of each topic, then as many more, until all have come."""
    longest = max((-(-len(queue) // topic.turn) for topic, queue in queues.items()), default=0)
    for turn in range(longest):
        for topic, queue in queues.items():
            yield from ((topic, key) for key in queue[turn * topic.turn : (turn + 1) * topic.turn])


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


def _comparison(
    topic: Topic, row: Answered, key: Key, group: Sequence[Subject], plain: Mapping[int, str], order: int, full: bool
) -> Comparison:
    attack = None if row.attack is None else f"attack: {row.attack.replace('_', ' ')}"
    before = group[0].answers.get(key)
    return Comparison(
        topic=topic.title,
        prompt=shorten(_request(row, plain), None if full else SHORT),
        tags=tuple(tag for tag in (row.kind, row.category, attack) if tag is not None),
        expected=None if row.expected is None else shorten(row.expected),
        answers=tuple(_shown(subject, subject.answers.get(key), before, full) for subject in group),
        order=order,
    )


def _request(row: Answered, plain: Mapping[int, str]) -> str:
    """What is asked for, without the words of the attack around it: the plain prompt that the row names, else the
    longest that it holds."""
    if row.attack is None:
        return row.prompt
    if row.of is not None and row.of in plain:
        return plain[row.of]
    return max(
        (request for request in plain.values() if request and request in row.prompt), key=len, default=row.prompt
    )


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
        others=tuple((name, _VERDICTS.get(word, word)) for name, word in row.others),
    )
