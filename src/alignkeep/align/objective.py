"""The objective that imitates, explores and transcends.

Paper
    Wang et al., Learning to Align, Aligning to Learn, arXiv:2508.07750, section 3, eq. 2, to be maximised:

        J = (1/G) sum_i [ A_i E_i + beta A_y I + lambda A_i (E_i - I) ]

Symbols (paper -> here)
    E_i, "exploration"   sampled_log_prob     mean log-probability of the tokens of sample i
    I, "imitation"       reference_log_prob   mean log-probability of the tokens of the reference
    A_i, A_y             advantage            align/advantage.py
    beta, lambda         imitation, regulariser in `Strengths`; exploration is 1 in the paper, 0 for an ablation

One family
    A_i and A_y are constants and J is linear in E and I:

        J = sum_i c_i E_i + c_y I,   c_i = (e + lambda) A_i / G,   c_y = beta A_y - lambda mean_i A_i

    so it is computed (`coefficients`), and the three terms are for looking at (`terms`). With the reference inside the
    group, scored and without a floor, A_y = -sum_i A_i, hence c_y = (beta + lambda / G) A_y: up to a factor, which Adam
    (but for its epsilon and a clipped gradient) does not see, all of GRAO's strengths are one number, the weight
    (beta + lambda / G) / (e + lambda) of the reference against the samples: 0.36 for the paper's, 0.5 without the
    regulariser, 0.96 without exploration, 0.05 without imitation (G = 8).

What all answers share
    Words that the samples and their reference have in common get sum_i c_i + c_y = e mean_i A_i + beta A_y, with the
    reference inside the group (beta - e / G) A_y. So where beta G > e (the paper's: 4 > 1) they lose probability in
    every group whose reference is beaten by most, without bound, and with them what makes every answer one: the first
    words of a refusal. With a floor of 0 for A_y, and with no lower one, they never do.

    Samples lose a bounded amount: what has become improbable is not sampled any more. The reference is not sampled,
    and log p has no lower end. `boundedly_unlearned` puts p in the place of log p for its tokens where c_y < 0: then
    a token is pushed down by p (1 - p) at its logit, instead of 1 - p, and what is improbable is let be.

Departures from the paper
    1. Log-probabilities are those of the distribution that was sampled from, at its temperature, for the reference
       too, as TRL takes them.
    2. `boundedly_unlearned`, where it is asked for.

Shapes: B prompts, G sampled answers per prompt, T tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alignkeep.align.advantage import GroupAdvantage


class Strengths(NamedTuple):
    """Weights of the three terms; the defaults are the paper's."""

    imitation: float = 0.5
    exploration: float = 1.0
    regulariser: float = 0.6

    @property
    def of_reference(self) -> tuple[float, float]:
        """What multiplies A_y and mean_i A_i in the reference's coefficient."""
        return self.imitation, -self.regulariser

    @property
    def of_samples(self) -> float:
        """What multiplies A_i in a sample's coefficient, the mean over the group aside."""
        return self.exploration + self.regulariser


class Coefficients(NamedTuple):
    """What multiplies each mean log-probability in J; constants for the gradient."""

    sampled: Float[Tensor, "B G"]
    reference: Float[Tensor, " B"]


class Terms(NamedTuple):
    """The three terms of J, with their strengths, a number per prompt; J is their sum."""

    imitation: Float[Tensor, " B"]
    exploration: Float[Tensor, " B"]
    regulariser: Float[Tensor, " B"]


def coefficients(advantage: GroupAdvantage, strengths: Strengths) -> Coefficients:
    """c_i and c_y. Law: J = sum_i c_i E_i + c_y I. With lambda = e = 0 only the reference is learned; with
    beta = lambda = 0 and the reference outside the group it is GRPO's on-policy step.
    """
    of_advantage, of_mean = strengths.of_reference
    mean = advantage.sampled.mean(1)
    sampled = strengths.of_samples * advantage.sampled / advantage.sampled.shape[1]
    return Coefficients(sampled, of_advantage * advantage.reference + of_mean * mean)


def terms(
    sampled_log_prob: Float[Tensor, "B G"],
    reference_log_prob: Float[Tensor, " B"],
    advantage: GroupAdvantage,
    strengths: Strengths,
) -> Terms:
    """Eq. 2, term by term."""
    exploration = (advantage.sampled * sampled_log_prob).mean(1)
    gap = (advantage.sampled * (sampled_log_prob - reference_log_prob[:, None])).mean(1)
    return Terms(
        strengths.imitation * advantage.reference * reference_log_prob,
        strengths.exploration * exploration,
        strengths.regulariser * gap,
    )


def boundedly_unlearned(
    reference_log_probs: Float[Tensor, "B T"], coefficient: Float[Tensor, " B"]
) -> Float[Tensor, "B T"]:
    """The tokens' log-probabilities, to be averaged to I: as given where c_y >= 0, else times the token's own
    probability, a constant for the gradient. Law: the gradient there is that of p, so that its size is at most
    |c_y| / T for a token, and goes to 0 with p.
    """
    unlearned = (coefficient < 0)[:, None]
    return torch.where(unlearned, reference_log_probs.detach().exp() * reference_log_probs, reference_log_probs)
