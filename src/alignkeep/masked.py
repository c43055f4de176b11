"""Sums and means over the tokens of an answer, which is a row of a padded table.

Shapes: n answers, T tokens of the longest.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor


def sum_over_answer(values: Float[Tensor, "n T"], answer_mask: Bool[Tensor, "n T"] | Int[Tensor, "n T"]) -> Tensor:
    """Sum over the tokens of each answer, (n,). What stands under the mask never matters, NaN and infinity included;
    an answer without a token has the sum 0.
    """
    return values.masked_fill(answer_mask == 0, 0.0).sum(-1)


def mean_over_answer(values: Float[Tensor, "n T"], answer_mask: Bool[Tensor, "n T"] | Int[Tensor, "n T"]) -> Tensor:
    """Mean over the tokens of each answer, (n,). An answer without a token has no mean: NaN."""
    return sum_over_answer(values, answer_mask) / (answer_mask != 0).sum(-1)
