"""Directional ablation as an edit of matrices: what one writes along a direction is taken out of it.

Paper
    Arditi et al., Refusal in Language Models Is Mediated by a Single Direction, arXiv:2406.11717, section 4.1: weight
    orthogonalisation, W' = W - r r^T W, and section 2.3: the choice of the layer.

Symbols (paper -> here)
    W_out         weight        (d_out, d_in), a matrix that writes to the residual stream
    r             direction     a unit vector

Departures from the paper
    1. A layer is judged by the answers to held-out prompts, the paper's by the log-odds of a refusal's first token and
       the divergence on harmless prompts. A model that begins other answers with that word too shows nothing there: on
       a merge of the testbed the log-odds took a block that leaves 95 % of the refusals, the answers one that leaves
       47 % (40 prompts).
    2. The paper also wants that adding the direction to harmless prompts makes the model refuse.
    3. Where every layer costs too much help with harmless prompts, the one that costs least is taken; the paper then
       has none.
"""

# torch leaves the types of some methods open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from alignkeep.inject.rank_one import RankOne


class Left(NamedTuple):
    """What an ablation leaves on held-out prompts: the shares of harmful ones refused, of harmless ones answered."""

    refusal: float
    compliance: float


def projected_out(weight: Float[Tensor, "d_out d_in"], direction: Float[Tensor, " d_out"]) -> RankOne:
    """The edit -r (r^T W). Laws: the edited matrix writes nothing along r and everything across it as before; editing
    it once more changes nothing. `direction` is a unit vector.
    """
    unit = direction.to(device=weight.device).float()
    return RankOne((-unit).cpu(), (weight.mT.float() @ unit).cpu())


def bypass_layer(left: Mapping[int, Left], before: Left, *, loss: float) -> int:
    """The layer whose ablation leaves the fewest refusals, among those that cost at most the share `loss` of harmless
    prompts answered; where none does, the one that costs least. Of equal ones the most helpful, then the first. A layer
    whose answers could not be judged (NaN) is none. Raises ValueError for no layer."""
    left = {layer: one for layer, one in left.items() if not any(map(math.isnan, one))}
    if not left:
        raise ValueError("no layer with answers that could be judged")
    allowed = [layer for layer, one in left.items() if before.compliance - one.compliance <= loss]
    if not allowed:
        return min(sorted(left), key=lambda layer: (-left[layer].compliance, left[layer].refusal))
    return min(sorted(allowed), key=lambda layer: (left[layer].refusal, -left[layer].compliance))
