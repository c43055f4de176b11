"""The alignment in the words of TRL: GRAOConfig or GRPOConfig, and which of their fields are the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkeep.align.config import AlignConfig, ObjectiveSettings
from alignkeep.errors import AlignkeepError, RecipeError
from alignkeep.extras import TRAIN, require
from alignkeep.trainers.arguments import (
    NAMED,
    OF_EVALUATION,
    OF_THE_HUB,
    per_process,
    refused_by_trl,
    trainer_fields,
    trainer_settings,
)

if TYPE_CHECKING:
    from trl.trainer.grpo_config import GRPOConfig

_PATIENCE = 4 * 60 * 60  # seconds

_NAMED = {
    **NAMED,
    "generation_batch_size": "batch_size",
    "steps_per_generation": "accumulate",
    "num_generations": "sampling.group",
    "temperature": "sampling.temperature",
    "max_completion_length": "sampling.max_new_tokens",
    **{name: f"objective.{name}" for name in ObjectiveSettings.model_fields},
}
_OF_GENERATION = {
    "temperature": "sampling.temperature",
    "max_new_tokens": "sampling.max_new_tokens",
    "max_tokens": "sampling.max_new_tokens",
    "max_length": "sampling.max_new_tokens",
    "num_return_sequences": "sampling.group",
    "n": "sampling.group",
    "do_sample": "sampling.temperature",
}
_LOOKS = "`held_out` measures while it learns, `alignkeep evaluate` the result"
_ORDER = "every step has whole groups of prompts, in an order that follows from seed and epoch"
_ONE_STEP = "a rollout is learned from in one step, so that a killed run continues where it was"
_NOTHING = "a setting that does something here"
# Fields that would break what the stage promises, or do nothing in it, and why.
_FIXED = {
    "auto_find_batch_size": "the batch size is part of the result",
    **dict.fromkeys((*OF_EVALUATION, "num_generations_eval"), _LOOKS),
    **OF_THE_HUB,
    **dict.fromkeys(("data_seed", "dataloader_drop_last", "train_sampling_strategy"), _ORDER),
    **dict.fromkeys(("num_iterations", "ref_model_mixup_alpha", "ref_model_sync_steps", "sync_ref_model"), _ONE_STEP),
    **dict.fromkeys(("label_smoothing_factor", "max_tool_calling_iterations", "num_completions_to_print"), _NOTHING),
    "ignore_data_skip": "a killed run continues where it was",
    "log_completions": "TRL prints them to stdout; held_out.jsonl keeps answers",
    "logging_nan_inf_filter": "a loss that is not finite is an error",
    "remove_unused_columns": "the rewards read the columns of the data",
    "save_only_model": "a killed run continues where it was",
}


def grpo_config(config: AlignConfig) -> GRPOConfig:
    """The trainer's arguments; `output_dir` is set by the stage. Raises RecipeError for what does not fit, and
    without the extra."""
    require(TRAIN, "align")
    from trl.trainer.grpo_config import GRPOConfig

    from alignkeep.align.grao_config import GRAOConfig

    kind = GRAOConfig if config.method == "grao" else GRPOConfig
    # The others wait while the first process answers and judges the held-out prompts.
    given = {
        "weight_decay": 0.01,
        "ddp_timeout": _PATIENCE,
        **trainer_fields(config.trainer, kind, _NAMED, _FIXED, "align"),
    }
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
        settings = kind(**trainer_settings(config.load, given, own))
    except AlignkeepError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise refused_by_trl(error, "align") from error
    _check_generation(settings.generation_kwargs)  # read from JSON by then, if it was given so
    return settings


def _check_generation(given: Any) -> None:
    """Raises RecipeError for what TRL would lay over settings of ours without a word."""
    for key in given or ():
        if key in _OF_GENERATION:
            raise RecipeError(
                f"align.trainer.generation_kwargs.{key}", seen="a setting with a name of its own",
                expected=f"`{_OF_GENERATION[key]}`", remedy="set it there",
            )  # fmt: skip


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
