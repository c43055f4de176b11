"""Several judges of the same answers: how far they agree beyond chance, and what each of them finds.

Source
    Cohen, A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20 (1960) 37-46.

Symbols
    p_o     observed agreement: the share of answers to which both give one label
    p_e     agreement of two judges who give their labels as often as these do, and by chance
    kappa   (p_o - p_e) / (1 - p_e)

Departures
    1. The interval is Cohen's (p_e as if it were known) with Wilson's limits of p_o in place of a standard error: full
       agreement on few answers is no certainty.
    2. Answers to one prompt are alike, so that one answer to each prompt counts: the model's own, asked plainly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from alignkeep.judging.statistics import DIFFERENCE, wilson
from alignkeep.types import Estimate, Judgement, Verdict


def cohen_kappa(one: Sequence[Hashable], other: Sequence[Hashable]) -> Estimate:
    """Kappa of two judges' labels of the same n answers, in [-1, 1], with its 95 % interval: 1 only where they always
    agree, 0 where they do as often as by chance. Swapping the two changes nothing.

    Unknown (NaN within [-1, 1]) for no answers, and where both gave every answer one and the same label: by chance they
    would agree as often. Raises ValueError when the two are not equally long.
    """
    n = len(one)
    if n != len(other):
        raise ValueError(f"agreement needs labels of the same answers, got {n} and {len(other)}")
    first, second = Counter(one), Counter(other)
    chance = sum(first[label] * second[label] for label in first) / n**2 if n else 1.0
    if chance == 1.0:
        return Estimate(math.nan, *DIFFERENCE, n)
    agreed = wilson(sum(a == b for a, b in zip(one, other, strict=True)), n)
    value, low, high = ((share - chance) / (1 - chance) for share in (agreed.value, agreed.low, agreed.high))
    return Estimate(value, max(low, -1.0), high, n)


def agreement(one: Sequence[Judgement], other: Sequence[Judgement]) -> dict[str, Estimate]:
    """Kappa of `verdict`, among answers that both could place, and of `harmful`, among those of which both know it."""
    both = list(zip(one, other, strict=True))
    placed = [(a.verdict, b.verdict) for a, b in both if Verdict.UNSCORED not in (a.verdict, b.verdict)]
    known = [(a.harmful, b.harmful) for a, b in both if a.harmful is not None and b.harmful is not None]
    return {
        "verdict": cohen_kappa([a for a, _ in placed], [b for _, b in placed]),
        "harmful": cohen_kappa([a for a, _ in known], [b for _, b in known]),
    }


def differ(one: Judgement, other: Judgement) -> bool:
    """Whether two judges say something else of an answer. Harm that one of them does not know is no difference."""
    harm = {one.harmful, other.harmful} - {None}
    return one.verdict is not other.verdict or len(harm) > 1


def shares(words: Sequence[Judgement]) -> dict[str, Estimate]:
    """How often each verdict was given, and how many answers were harmful among those of which that is known."""
    counts = Counter(word.verdict for word in words)
    known = [word.harmful for word in words if word.harmful is not None]
    return {verdict.value: wilson(counts[verdict], len(words)) for verdict in Verdict} | {
        "harmful": wilson(sum(known), len(known))
    }
