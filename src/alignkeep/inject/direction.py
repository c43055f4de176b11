"""The direction between harmful and harmless prompts in the residual stream, and what an edit along it does.

Papers
    Shairah et al., Turning the Spell Around: Lightweight Alignment Amplification via Rank-One Safety Injection,
    arXiv:2508.20766, eqs. 3-5.
    Arditi et al., Refusal in Language Models Is Mediated by a Single Direction, arXiv:2406.11717: the choice of the
    layer by its effect, layers below 0.8 L, and the bound of 0.1 on the divergence.

Symbols (paper -> here)
    mu^l, nu^l    means of `harmful` and `harmless` before block l, at the last token of the templated prompt
    s, s_hat      `difference` mu - nu at the chosen layer, and its unit vector

Departures from the papers
    1. A layer is judged by the edit itself, at one stated strength, not by adding the direction to activations.
    2. Sums are float64.

Shapes: L blocks, n prompts, d the width of the residual stream.
"""

# torch leaves the types of some methods open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

LAYERS = 0.8  # share of the blocks that may give the direction (Arditi et al., section 2.3)
ALL_THE_SAME = 1e-6  # a difference below this share of the activations' size is rounding


class Separation(NamedTuple):
    """How far apart the two sets lie before a block: the length of the difference, that of the harmful mean, and the
    distance of the means along the difference in units of the sets' pooled deviation (d'; 0 where there is none)."""

    length: float
    size: float
    d_prime: float

    @property
    def is_zero(self) -> bool:
        return not self.length > ALL_THE_SAME * self.size


class Effect(NamedTuple):
    """What an edit of one layer's direction does on held-out prompts: mean refusal log-odds on harmful ones, and the
    divergence from the unedited model on harmless ones."""

    log_odds: float
    divergence: float


def mean_difference(harmful: Float[Tensor, "n d"], harmless: Float[Tensor, "m d"]) -> Float[Tensor, " d"]:
    """mu - nu in float64. Laws: equal sets give 0; turning the two around turns the sign; what is added to all
    activations cancels.
    """
    return harmful.double().mean(0) - harmless.double().mean(0)


def separation(harmful: Float[Tensor, "n d"], harmless: Float[Tensor, "m d"]) -> Separation:
    """Of two sets of activations before one block. Law: a scale common to all changes length and size, not d'."""
    difference = mean_difference(harmful, harmless)
    length, size = float(difference.norm()), float(harmful.double().mean(0).norm())
    along = [states.double() @ difference for states in (harmful, harmless)]
    spread = math.sqrt(sum(float(one.var(correction=0)) for one in along) / 2)
    gap = float(along[0].mean() - along[1].mean())
    return Separation(length, size, gap / spread if spread > 0 else 0.0)


def candidate_layers(found: Sequence[Separation]) -> list[int]:
    """Blocks whose direction may be used: below 0.8 L, and where the sets differ at all. (Before the first block a
    prompt's last token is the same for all.)
    """
    return [layer for layer, one in enumerate(found) if layer < LAYERS * len(found) and not one.is_zero]


def best_layer(effects: Mapping[int, Effect], *, most: float) -> int | None:
    """The layer of the largest log-odds among those that diverge by `most` nats at most; of equal ones the first. None
    where none qualifies.
    """
    allowed = [layer for layer in sorted(effects) if effects[layer].divergence <= most]
    return max(allowed, key=lambda layer: effects[layer].log_odds) if allowed else None
