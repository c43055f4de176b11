"""Scores that choose examples one by one, to stand next to optimal transport. A higher score is kept first.

Sources
    LARF-like mean cosine: the limit of the push-pull weights for a large epsilon, where no plan matters.
    DSIR, Xie et al., Data selection for language models via importance resampling, arXiv:2302.03169, eq. 1 and sec. 4.
    Bidirectional anchoring, He et al., What is in your safe data?, arXiv:2404.01099.

Symbols (paper -> here)
    z                        data, safe, harmful      vectors of length 1
    f(x), p_hat, q_hat       counts of hashed n-grams; their shares in the target and in the data
    g_i, g_safe, g_harm      gradients                `models/gradients.py` gives their products

Departures
    DSIR resamples with Gumbel noise; here the largest ratios are taken, as all other scores have it.
    Bidirectional anchoring takes the ten first tokens of an answer and cosines; here all tokens and plain products.

Shapes: n examples, m safe and h harmful references, d wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

SMOOTHING = 1e-8  # as DSIR's code has it


class Scores(NamedTuple):
    """How near every example is to safe and to harmful data; None where a method does not ask."""

    safe: Float[Tensor, " n"] | None
    harmful: Float[Tensor, " n"] | None
    value: Float[Tensor, " n"]


def mean_cosine(data: Float[Tensor, "n d"], safe: Float[Tensor, "m d"], harmful: Float[Tensor, "h d"]) -> Scores:
    """Mean cosine to safe minus mean cosine to harmful references, of vectors of length 1."""
    near, far = data @ safe.mean(0), data @ harmful.mean(0)
    return Scores(near, far, near - far)


def importance_ratio(data: Sequence[Sequence[int]], target: Sequence[Sequence[int]], buckets: int) -> Scores:
    """DSIR's log-ratio: the sum over an example's n-grams, given by bucket, of log p_target - log p_data."""
    shares = [
        counts / counts.sum().clamp(min=1)
        for counts in (torch.bincount(_flat(texts), minlength=buckets).double() for texts in (target, data))
    ]
    logs = [(share + SMOOTHING).log() for share in shares]
    near, raw = (torch.stack([log[torch.tensor(text, dtype=torch.long)].sum() for text in data]) for log in logs)
    return Scores(near, None, near - raw)


def bidirectional(safe: Float[Tensor, " n"], harmful: Float[Tensor, " n"]) -> Scores:
    """The gradients' products with the mean safe one minus those with the mean harmful one."""
    return Scores(safe, harmful, safe - harmful)


def by_chance(count: int, seed: int) -> Scores:
    """An order that depends on the seed alone."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return Scores(None, None, order.double())


def _flat(texts: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([gram for text in texts for gram in text], dtype=torch.long)
