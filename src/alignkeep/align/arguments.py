"""The alignment in the words of TRL: GRAOConfig or GRPOConfig, and which of their fields are the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkeep.align.config import AlignConfig, ObjectiveSettings
from alignkeep.errors import AlignkeepError, RecipeError
from alignkeep.trainers.arguments import NAMED, per_process, refused_by_trl, trainer_fields, trainer_settings

if TYPE_CHECKING:
    from trl.trainer.grpo_config import GRPOConfig

_NAMED = {
    **NAMED,
    "generation_batch_size": "batch_size",
    "steps_per_generation": "accumulate",
    "num_generations": "sampling.group",
    "temperature": "sampling.temperature",
    "max_completion_length": "sampling.max_new_tokens",
    **{name: f"objective.{name}" for name in ObjectiveSettings.model_fields},
}
# Fields that would break what the stage promises, and what they would break.
_FIXED = {
    "auto_find_batch_size": "the batch size is part of the result",
    "do_eval": "`held_out` measures while it learns, `alignkeep evaluate` the result",
    "eval_on_start": "`held_out` measures while it learns, `alignkeep evaluate` the result",
    "eval_strategy": "`held_out` measures while it learns, `alignkeep evaluate` the result",
    "ignore_data_skip": "a killed run continues where it was",
    "load_best_model_at_end": "`held_out` measures while it learns, `alignkeep evaluate` the result",
    "log_completions": "TRL prints them to stdout; held_out.jsonl keeps answers",
    "logging_nan_inf_filter": "a loss that is not finite is an error",
    "remove_unused_columns": "the rewards read the columns of the data",
    "save_only_model": "a killed run continues where it was",
}


def grpo_config(config: AlignConfig) -> GRPOConfig:
    """The trainer's arguments; `output_dir` is set by the stage. Raises RecipeError for what does not fit."""
    from trl.trainer.grpo_config import GRPOConfig

    from alignkeep.align.grao_config import GRAOConfig

    kind = GRAOConfig if config.method == "grao" else GRPOConfig
    given = {"weight_decay": 0.01, **trainer_fields(config.trainer, kind, _NAMED, _FIXED, "align")}
    own: dict[str, Any] = {
        "learning_rate": config.rate,
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": _per_device(config),
        "gradient_accumulation_steps": config.accumulate,
        "num_generations": config.sampling.group,
        "temperature": config.sampling.temperature,
        "max_completion_length": config.sampling.max_new_tokens,
        "seed": config.seed,
    }
    if config.method == "grao":
        own |= config.objective.model_dump()
    try:
        return kind(**trainer_settings(config.load, given, own))
    except AlignkeepError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise refused_by_trl(error, "align") from error


def _per_device(config: AlignConfig) -> int:
    """Samples per forward pass of one process. A process has whole groups."""
    samples = per_process(config.batch_size, "prompts", "align") * config.sampling.group
    if samples % config.accumulate:
        raise RecipeError(
            "align.accumulate",
            seen=f"{config.accumulate} passes for {samples} samples of a process",
            expected="a divisor of its prompts times sampling.group",
            remedy="change accumulate or batch_size",
        )
    return samples // config.accumulate
