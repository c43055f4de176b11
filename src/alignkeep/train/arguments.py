"""The tune in the words of TRL: `SFTConfig`, and which of its fields are the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkeep.errors import RecipeError
from alignkeep.trainers.arguments import (
    check_trainer_fields,
    has_bfloat16,
    refused_by_trl,
    uses_accelerator,
    world_size,
)

if TYPE_CHECKING:
    from trl.trainer.sft_config import SFTConfig

    from alignkeep.train.config import TrainConfig

# Fields of SFTConfig that have a name of ours.
_NAMED = {
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulate",
    "max_length": "max_length",
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
    "assistant_only_loss": "every assistant turn is learned, and nothing else",
    "auto_find_batch_size": "the batch size is part of the result",
    "chat_template_path": "the base's own chat template is used",
    "completion_only_loss": "every assistant turn is learned, and nothing else",
    "dataset_kwargs": "the examples come encoded",
    "dataset_num_proc": "the examples come encoded",
    "dataset_text_field": "the examples come encoded",
    "do_eval": "`alignkeep evaluate` measures the result",
    "eos_token": "the base's own tokenizer is used",
    "eval_on_start": "`alignkeep evaluate` measures the result",
    "eval_strategy": "`alignkeep evaluate` measures the result",
    "ignore_data_skip": "a killed tune continues where it was",
    "label_smoothing_factor": "the example weights multiply the plain token loss",
    "load_best_model_at_end": "`alignkeep evaluate` measures the result",
    "logging_nan_inf_filter": "a loss that is not finite is an error",
    "loss_type": "the example weights multiply the plain token loss",
    "pad_token": "the base's own tokenizer is used",
    "remove_unused_columns": "the examples come encoded",
    "save_only_model": "a killed tune continues where it was",
    "truncation_mode": "an example is cut at its end",
}


def training_dtype(config: TrainConfig) -> str:
    """In which numbers the weights are held while training: "auto" is the checkpoint's own.

    A full tune keeps float32 weights (a bfloat16 weight swallows updates below 1/256 of it); a frozen base under an
    adapter stays as it is, except on the CPU, where float32 is faster. The result is saved in the base's dtype, an
    adapter in float32.
    """
    if config.load.dtype != "auto":
        return config.load.dtype
    return "auto" if config.has_adapter and uses_accelerator(config.load) else "float32"


def sft_config(config: TrainConfig) -> SFTConfig:
    """The trainer's arguments; `output_dir` is set by the stage. Raises RecipeError for what SFTConfig refuses."""
    from trl.trainer.sft_config import SFTConfig

    check_trainer_fields(config.trainer, SFTConfig, _NAMED, _FIXED, "train")
    accelerator, processes = uses_accelerator(config.load), world_size()
    if config.batch_size % processes:
        raise RecipeError(
            "train.batch_size",
            seen=f"{config.batch_size} examples for {processes} processes",
            expected="a multiple of the processes: it counts the examples of all of them",
            remedy=f"use {-(-config.batch_size // processes) * processes}",
        )
    given = dict(config.trainer)
    if not {"gradient_checkpointing", "activation_checkpointing"} & given.keys():
        given["activation_checkpointing"] = accelerator
    settings = {
        "bf16": not given.get("fp16") and accelerator and config.load.dtype != "float32" and has_bfloat16(),
        "dataloader_pin_memory": accelerator,
        "logging_steps": 1,
        "report_to": "none",
        "save_steps": 0.1,
        "save_total_limit": 2,
        **given,
        "learning_rate": config.rate,
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size // processes,
        "gradient_accumulation_steps": config.accumulate,
        "seed": config.seed,
        "max_length": None,  # cut already, and an answer that is lost altogether was refused
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "use_cpu": not accelerator,
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
    }
    try:
        return SFTConfig(**settings)
    except (ValueError, TypeError, ImportError) as error:
        raise refused_by_trl(error, "train") from error
