"""How likely a refusal is, read from the first token of an answer: no generation, one forward pass a prompt.

Source
    Arditi et al., Refusal in Language Models Is Mediated by a Single Direction, arXiv:2406.11717, section 2.3: the
    log-odds of refusal tokens, and the KL divergence on harmless prompts.

Departure
    1. The tokens are found from the model's own refusals (`opening_tokens`); the paper lists them by hand.

Shapes: n prompts, V tokens, k of them open a refusal.
"""

# torch leaves the types of some methods open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def refusal_log_odds(log_probs: Float[Tensor, "n V"], tokens: Int[Tensor, " k"]) -> Float[Tensor, " n"]:
    """log p / (1 - p), p the probability that the answer begins with one of these tokens, in nats. Law: the tokens that
    are left over have the opposite log-odds.
    """
    chosen = torch.zeros(log_probs.shape[-1], dtype=torch.bool)
    chosen[tokens] = True
    wide = log_probs.double()
    return wide[:, chosen].logsumexp(-1) - wide[:, ~chosen].logsumexp(-1)


def mean_divergence(base: Float[Tensor, "n V"], edited: Float[Tensor, "n V"]) -> float:
    """Mean KL(base || edited) over the rows of two tables of log-probabilities, in nats. Laws: >= 0 up to rounding, 0
    for equal tables.
    """
    wide = base.double()
    terms = wide.exp() * (wide - edited.double())
    return float(terms.masked_fill(wide == -math.inf, 0.0).sum(-1).mean())  # 0 log 0 is 0


def opening_tokens(refusals: Sequence[int], others: Sequence[int], *, share: float = 0.05) -> list[int]:
    """First tokens that tell a refusal: those of at least this share of the refusals that are at least twice as
    frequent there as among other answers. Sorted; empty for no refusals.
    """
    often = {token: refusals.count(token) / len(refusals) for token in set(refusals)}
    elsewhere = {token: others.count(token) / len(others) if others else 0.0 for token in often}
    return sorted(token for token, rate in often.items() if rate >= share and rate >= 2 * elsewhere[token])
