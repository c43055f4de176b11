"""Group-relative advantages with the reference answer inside the group.

Paper
    Wang et al., Learning to Align, Aligning to Learn, arXiv:2508.07750, section 3, eqs. 3-4.

Symbols (paper -> here)
    R(o_i, y)   sampled_reward      one scalar per sampled answer
    R(y, y)     reference_reward    the same reward of the reference answer; 0 where answers are compared with it
    A_o, A_y    advantage           of the samples, of the reference

Departures from the paper
    1. The reference is a member of the group: mean and deviation are over G + 1 ("compute in one group"); the sums that
       are printed run over G (`reference_in_group=False`). Printed so, the samples' advantages add up to 0, the
       regulariser's reference term vanishes, and a group that loses every comparison has no deviation at all.
    2. A group of equal rewards has advantages of 0; the paper divides by 0. Equal is what lies within 1e-6 of the
       largest: a reward model that scores one text twice, in two batches, is that far from itself in float32.
    3. An answer that could not be scored (NaN) is no member of its group and has the advantage 0.

Shapes: B prompts, G sampled answers per prompt.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

EQUAL = 1e-6


class GroupAdvantage(NamedTuple):
    """Advantages of the samples and of the reference, in units of the group's deviation."""

    sampled: Float[Tensor, "B G"]
    reference: Float[Tensor, " B"]


def group_advantage(
    sampled_reward: Float[Tensor, "B G"],
    reference_reward: Float[Tensor, " B"],
    *,
    reference_in_group: bool = True,
    min_reference: float | None = None,
) -> GroupAdvantage:
    """Standardised rewards (population deviation), eq. 4. Never NaN, and within the range of their dtype.

    Laws: with the reference inside, a group's advantages add up to 0 and their squares to its scored members; a
    positive factor changes nothing, nor does a constant that is not a million times the rewards; a group of equal
    rewards is all 0. `min_reference` is a floor for the advantage of a reference that is scored, in a group that
    differs; it falls below 0 once most samples beat it.
    """
    # Halves, because the difference of two finite numbers may not be finite; float64 where the device has it.
    wide = torch.float32 if sampled_reward.device.type == "mps" else torch.float64
    halves = torch.cat([sampled_reward, reference_reward[:, None]], 1).to(wide) / 2
    group = halves if reference_in_group else halves[:, :-1]
    scored = ~group.isnan()
    least = group.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).amin(1, keepdim=True)
    most = group.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(1, keepdim=True)
    size = torch.maximum(most.abs(), least.abs())
    differs = most - least > EQUAL * size  # not so where nothing is scored
    span = torch.where(differs, most - least, 1.0)
    within = (group - least) / span  # in [0, 1]
    mean = within.nansum(1, keepdim=True) / scored.sum(1, keepdim=True)
    deviation = ((within - mean).square().nansum(1, keepdim=True) / scored.sum(1, keepdim=True)).sqrt()
    standard = torch.where(differs, ((halves - least) / span - mean) / deviation, 0.0).nan_to_num(nan=0.0)
    limit = torch.finfo(sampled_reward.dtype).max
    advantage = standard.clamp(-limit, limit).to(sampled_reward.dtype)
    reference = advantage[:, -1]
    if min_reference is not None:
        floored = differs[:, 0] & ~reference_reward.isnan()
        reference = torch.where(floored, reference.clamp(min=min_reference), reference)
    return GroupAdvantage(advantage[:, :-1], reference)
