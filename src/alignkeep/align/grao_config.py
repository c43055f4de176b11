"""GRAOConfig: trl's GRPOConfig with the paper's defaults, and without what GRAO has no place for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from trl.trainer.grpo_config import GRPOConfig

from alignkeep.errors import NoEffectError, RecipeError

# Settings of GRPO's own loss: in GRAO they would change nothing, or not what they say.
_OF_GRPO = (
    *("beta", "num_iterations", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "loss_type"),
    *("scale_rewards", "multi_objective_aggregation", "mask_truncated_completions", "sync_ref_model"),
    *("top_entropy_quantile", "entropy_coef", "use_adaptive_entropy", "off_policy_mask_threshold"),
    *("use_bias_correction_kl", "ref_model_mixup_alpha", "ref_model_sync_steps", "sapo_temperature_neg"),
    *("sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
    *("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
)


@dataclass
class GRAOConfig(GRPOConfig):
    """Strengths of the three terms (align/objective.py): `imitation` is the paper's beta (TRL's `beta` is a divergence
    that GRAO does not have), `regulariser` its lambda, `exploration` 1 but for an ablation. `reference_in_group` and
    `min_reference_advantage` are those of `group_advantage`; `bounded` unlearns a beaten reference by its probability
    and not by the logarithm of it (`boundedly_unlearned`). Rollouts are learned from in one step, as in the paper.

    Raises RecipeError for settings of GRPO's own loss, NoEffectError where all strengths are 0.
    """

    learning_rate: float = field(default=1e-6, metadata={"help": "The paper's, of a full tune."})
    weight_decay: float = field(default=0.01, metadata={"help": "The paper's."})
    max_completion_length: int | None = field(default=2048, metadata={"help": "The paper's."})
    temperature: float = field(default=0.7, metadata={"help": "The paper's."})
    imitation: float = field(default=0.5, metadata={"help": "Strength of the reference (the paper's beta)."})
    exploration: float = field(default=1.0, metadata={"help": "Strength of the samples."})
    regulariser: float = field(default=0.6, metadata={"help": "Strength of the gap (the paper's lambda)."})
    reference_in_group: bool = field(default=True, metadata={"help": "Mean and deviation over samples and reference."})
    min_reference_advantage: float | None = field(default=None, metadata={"help": "Floor of the reference's."})
    bounded: bool = field(default=False, metadata={"help": "Unlearn a beaten reference by p, not by log p."})

    def __post_init__(self) -> None:
        super().__post_init__()
        defaults = {one.name: one.default for one in fields(GRPOConfig)}
        for name in _OF_GRPO:
            value = getattr(self, name)
            if value != defaults[name]:
                raise RecipeError(
                    f"GRAOConfig.{name}",
                    seen=repr(value),
                    expected="a setting of GRAO: this one is of GRPO's loss, which is not computed",
                    remedy="leave it out, or use trl's GRPOTrainer",
                )
        if self.steps_per_generation != self.gradient_accumulation_steps:
            raise RecipeError(
                "GRAOConfig.steps_per_generation",
                seen=f"{self.steps_per_generation} with gradient_accumulation_steps {self.gradient_accumulation_steps}",
                expected="the two equal: GRAO has no importance weights, so a rollout is learned from in one step",
                remedy="set gradient_accumulation_steps alone",
            )
        strengths = (self.imitation, self.exploration, self.regulariser)
        if any(one < 0 or not math.isfinite(one) for one in strengths):
            raise RecipeError(
                "GRAOConfig", seen=f"strengths {strengths}", expected="finite numbers, 0 or more", remedy="mend them"
            )
        floor = self.min_reference_advantage
        if floor is not None and not math.isfinite(floor):
            raise RecipeError(
                "GRAOConfig.min_reference_advantage", seen=f"{floor}", expected="a finite number, or None",
                remedy="mend it",
            )  # fmt: skip
        if not any(strengths):
            raise NoEffectError(
                "GRAOConfig", seen="imitation, exploration and regulariser all 0", expected="a term to learn from",
                remedy="set one of them",
            )  # fmt: skip
