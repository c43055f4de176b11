"""Directional ablation as an edit of matrices: what one writes along a direction is taken out of it.

Paper
    Arditi et al., Refusal in Language Models Is Mediated by a Single Direction, arXiv:2406.11717, section 4.1: weight
    orthogonalisation, W' = W - r r^T W, and section 2.3: the choice of the layer.

Symbols (paper -> here)
    W_out         weight        (d_out, d_in), a matrix that writes to the residual stream
    r             direction     a unit vector

Departures from the paper
    1. A layer is taken by its log-odds of refusal and its divergence alone; the paper also wants that adding the
       direction to harmless prompts makes the model refuse.
    2. Where no layer diverges by little enough the gentlest is taken; the paper then has none.
"""

# torch leaves the types of some methods open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from alignkeep.inject.direction import Effect, best_layer
from alignkeep.inject.rank_one import RankOne


def projected_out(weight: Float[Tensor, "d_out d_in"], direction: Float[Tensor, " d_out"]) -> RankOne:
    """The edit -r (r^T W). Laws: the edited matrix writes nothing along r and everything across it as before; editing
    it once more changes nothing. `direction` is a unit vector.
    """
    unit = direction.to(device=weight.device).float()
    return RankOne((-unit).cpu(), (weight.mT.float() @ unit).cpu())


def bypass_layer(effects: Mapping[int, Effect], *, most: float) -> int:
    """The layer whose ablation leaves the lowest log-odds of refusal, among those that diverge by `most` nats at most;
    where none does, the one that diverges least. Of equal ones the first. Raises ValueError for no layer."""
    turned = {layer: Effect(-one.log_odds, one.divergence) for layer, one in effects.items()}
    found = best_layer(turned, most=most)
    return min(sorted(effects), key=lambda layer: effects[layer].divergence) if found is None else found
