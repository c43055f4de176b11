"""Importance ratio of hashed n-grams: words that the target has more often than the data have.

Paper
    DSIR, Xie et al., Data selection for language models via importance resampling, arXiv:2302.03169, eq. 1 and sec. 4.

Symbols (paper -> here)
    f(x)                     hashed_ngrams      buckets of words and pairs of words
    p_hat, q_hat             share              of the target, of the data

Departures from the paper
    1. It resamples with Gumbel noise; here the largest ratios are taken, as all other scores have it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from itertools import pairwise

from alignkeep.curate.method import CurationMethod, Given, NoOptions, Scores

BUCKETS = 10_000  # as DSIR has it
SMOOTHING = 1e-8  # as DSIR's code has it
_WORD = re.compile(r"\w+|[^\w\s]")


def hashed_ngrams(text: str) -> Sequence[int]:
    """Buckets of all words and pairs of words, in lower case; the same on every machine."""
    words = _WORD.findall(text.lower())
    pairs = [f"{one} {other}" for one, other in pairwise(words)]
    return [zlib.crc32(gram.encode()) % BUCKETS for gram in (*words, *pairs)]


def importance_ratio(data: Sequence[Sequence[int]], target: Sequence[Sequence[int]], buckets: int) -> Scores:
    """The log-ratio: the sum over an example's n-grams, given by bucket, of log p_target - log p_data."""
    import torch

    counts = (
        torch.bincount(torch.tensor([gram for text in texts for gram in text], dtype=torch.long), minlength=buckets)
        for texts in (target, data)
    )
    logs = [(count.double() / count.sum().clamp(min=1) + SMOOTHING).log() for count in counts]
    near, raw = (torch.stack([log[torch.tensor(text, dtype=torch.long)].sum() for text in data]) for log in logs)
    return Scores(near - raw, near)


class ImportanceRatio(CurationMethod):
    name = "dsir"
    title = "Importance ratio of hashed n-grams"
    needs = "texts"
    reads = ("safe",)
    works = ("xie2023data",)
    departures = ("The largest ratios are taken, without the noise of resampling.",)

    def score(self, given: Given, options: NoOptions) -> Scores:
        assert given.texts is not None
        data, safe = ([hashed_ngrams(one) for one in some] for some in (given.texts.data, given.texts.safe))
        return importance_ratio(data, safe, BUCKETS)
