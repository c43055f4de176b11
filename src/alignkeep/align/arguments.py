"""The alignment in the words of TRL: GRAOConfig or GRPOConfig, and which of their fields are the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkeep.align.config import AlignConfig
from alignkeep.errors import AlignkeepError, RecipeError
from alignkeep.trainers.arguments import (
    check_trainer_fields,
    has_bfloat16,
    refused_by_trl,
    uses_accelerator,
    world_size,
)

if TYPE_CHECKING:
    from trl.trainer.grpo_config import GRPOConfig

# Fields of GRPOConfig that have a name of ours.
_NAMED = {
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "generation_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulate",
    "steps_per_generation": "accumulate",
    "num_generations": "sampling.group",
    "temperature": "sampling.temperature",
    "max_completion_length": "sampling.max_new_tokens",
    "imitation": "objective.imitation",
    "exploration": "objective.exploration",
    "regulariser": "objective.regulariser",
    "reference_in_group": "objective.reference_in_group",
    "min_reference_advantage": "objective.min_reference_advantage",
    "seed": "seed",
    "output_dir": "--out",
    "use_cpu": "load.device",
    "trust_remote_code": "load.trust_remote_code",
    "model_init_kwargs": "load",
    "resume_from_checkpoint": "--resume",
    "disable_tqdm": "--quiet",
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


def training_dtype(config: AlignConfig) -> str:
    """In which numbers the weights are held while training; as for `train`."""
    if config.load.dtype != "auto":
        return config.load.dtype
    return "auto" if config.lora is not None and uses_accelerator(config.load) else "float32"


def grpo_config(config: AlignConfig) -> GRPOConfig:
    """The trainer's arguments; `output_dir` is set by the stage. Raises RecipeError for what does not fit."""
    from trl.trainer.grpo_config import GRPOConfig

    from alignkeep.align.grao_config import GRAOConfig

    kind = GRAOConfig if config.method == "grao" else GRPOConfig
    check_trainer_fields(config.trainer, kind, _NAMED, _FIXED, "align")
    accelerator, given = uses_accelerator(config.load), dict(config.trainer)
    if not {"gradient_checkpointing", "activation_checkpointing"} & given.keys():
        given["activation_checkpointing"] = accelerator
    settings: dict[str, Any] = {
        "bf16": not given.get("fp16") and accelerator and config.load.dtype != "float32" and has_bfloat16(),
        "dataloader_pin_memory": accelerator,
        "logging_steps": 1,
        "report_to": "none",
        "save_steps": 0.1,
        "save_total_limit": 2,
        "weight_decay": 0.01,
        **given,
        "learning_rate": config.rate,
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": _per_device(config),
        "gradient_accumulation_steps": config.accumulate,
        "num_generations": config.sampling.group,
        "temperature": config.sampling.temperature,
        "max_completion_length": config.sampling.max_new_tokens,
        "seed": config.seed,
        "use_cpu": not accelerator,
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
    }
    if config.method == "grao":
        settings |= config.objective.model_dump()
    try:
        return kind(**settings)
    except AlignkeepError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise refused_by_trl(error, "align") from error


def _per_device(config: AlignConfig) -> int:
    """Samples per forward pass of one process. A process has whole groups."""
    processes = world_size()
    if config.batch_size % processes:
        raise RecipeError(
            "align.batch_size",
            seen=f"{config.batch_size} prompts for {processes} processes",
            expected="a multiple of the processes: it counts the prompts of all of them",
            remedy=f"use {-(-config.batch_size // processes) * processes}",
        )
    samples = config.batch_size // processes * config.sampling.group
    if samples % config.accumulate:
        raise RecipeError(
            "align.accumulate",
            seen=f"{config.accumulate} passes for {samples} samples of a process",
            expected="a divisor of its prompts times sampling.group",
            remedy="change accumulate or batch_size",
        )
    return samples // config.accumulate
