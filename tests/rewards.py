"""Reward functions that recipes of the tests name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignkeep.align.reward import Comparison


def overlap(*, completions: list[Any], reference: list[str], **columns: Any) -> list[float]:
    """Words of the reference that the answer has, minus others."""
    found = []
    for one, other in zip(completions, reference, strict=True):
        words, wanted = one[-1]["content"].split(), set(other.split())
        found.append(float(len(wanted & set(words)) - len([word for word in words if word not in wanted]) / 4))
    return found


def even(*, completions: list[Any], **columns: Any) -> list[float]:
    return [1.0] * len(completions)


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


class Shouting:
    """A judge that exaggerates."""

    def compare(self, pairs: Sequence[Comparison]) -> list[float | None]:
        return [2.0] * len(pairs)


constant = 3
