"""Reward functions that recipes of the tests name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignkeep.judging.pairs import Comparison


def overlap(*, completions: list[Any], reference: list[str], **columns: Any) -> list[float]:
    """Words of the reference that the answer has, minus others."""
    found = []
    for one, other in zip(completions, reference, strict=True):
        words, wanted = one[-1]["content"].split(), set(other.split())
        found.append(float(len(wanted & set(words)) - len([word for word in words if word not in wanted]) / 4))
    return found


def best_at_step_2(*, completions: list[Any], reference: list[str], **columns: Any) -> list[float]:
    """As `overlap`, and much more at that one step: references are scored before."""
    more = 100.0 * (columns["trainer_state"].global_step == 2)
    return [more + one for one in overlap(completions=completions, reference=reference)]


def even(*, completions: list[Any], **columns: Any) -> list[float]:
    return [1.0] * len(completions)


def speaking(*, completions: list[Any], reference: list[str], tests: list[list[str]], **columns: Any) -> list[float]:
    """Uses all that TRL gives: the trainer's state, extra columns and metrics of the log, lists in the data."""
    columns["log_metric"]("step", float(columns["trainer_state"].global_step))
    columns["log_extra"]("words", [len(one) for one in tests])
    return overlap(completions=completions, reference=reference)


calls: list[int] = []


def torn(*, completions: list[Any], reference: list[str], **columns: Any) -> list[float]:
    """As `overlap`, but the fourth call fails; with an OSError, as a connection does, if `calls` begins with -1."""
    calls.append(len(completions))
    if len(calls) - (calls[0] < 0) == 4:
        raise ConnectionError("gone") if calls[0] < 0 else KeyError("score")
    return overlap(completions=completions, reference=reference)


def flaky(*, completions: list[Any], reference: list[str], **columns: Any) -> list[float] | list[None]:
    """As `overlap`, but the fourth call finds nobody there."""
    calls.append(len(completions))
    if len(calls) == 4:
        return [None] * len(completions)
    return overlap(completions=completions, reference=reference)


def of_samples_alone(*, completions: list[Any], reference: list[str], **columns: Any) -> list[float | None]:
    """As `overlap`, but references have no score."""
    found = overlap(completions=completions, reference=reference)
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    return [None if text == other else one for one, text, other in zip(found, texts, reference, strict=True)]


def unscored(*, completions: list[Any], **columns: Any) -> list[None]:
    return [None] * len(completions)


def endless(*, completions: list[Any], **columns: Any) -> list[float]:
    return [float("inf")] * len(completions)


def short(**columns: Any) -> list[float]:
    return [1.0]


def faulty(**columns: Any) -> list[float]:
    raise KeyError("score")


async def waiting(*, completions: list[Any], **columns: Any) -> list[float]:
    return [float(len(one[-1]["content"])) for one in completions]


class Longer:
    """A judge: the longer answer is the better one."""

    def compare(self, pairs: Sequence[Comparison]) -> list[float | None]:
        gaps = [len(pair.answer) - len(pair.reference) for pair in pairs]
        return [float((gap > 0) - (gap < 0)) for gap in gaps]


class Mute:
    """A judge that only knows what it need not judge."""

    def compare(self, pairs: Sequence[Comparison]) -> list[float | None]:
        return [0.0 if pair.answer == pair.reference else None for pair in pairs]


class Shouting:
    """A judge that exaggerates."""

    def compare(self, pairs: Sequence[Comparison]) -> list[float | None]:
        return [2.0] * len(pairs)


constant = 3


class Absent:
    """A judge that says nothing at all."""

    def compare(self, pairs: Sequence[Comparison]) -> list[float | None]:
        return []


class Counted(Longer):
    """Knows how often one was made."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
