"""The tune in the words of TRL: `SFTConfig`, and which of its fields are the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    from trl.trainer.sft_config import SFTConfig

    from alignkeep.train.config import TrainConfig

_NAMED = {**NAMED, "max_length": "max_length", "train_sampling_strategy": "group_by_length"}
# Fields that would break what the stage promises, and what they would break.
_FIXED = {
    "assistant_only_loss": "every assistant turn is learned, and nothing else",
    "auto_find_batch_size": "the batch size is part of the result",
    "chat_template_path": "the base's own chat template is used",
    "completion_only_loss": "every assistant turn is learned, and nothing else",
    "dataset_kwargs": "the examples come encoded",
    "dataset_num_proc": "the examples come encoded",
    "dataset_text_field": "the examples come encoded",
    **dict.fromkeys((*OF_EVALUATION, "eval_packing"), "`alignkeep evaluate` measures the result"),
    **OF_THE_HUB,
    "dataloader_drop_last": "every example counts; the last batch is filled up with blanks",
    "eos_token": "the base's own tokenizer is used",
    "ignore_data_skip": "a killed tune continues where it was",
    "label_smoothing_factor": "the example weights multiply the plain token loss",
    "logging_nan_inf_filter": "a loss that is not finite is an error",
    "loss_type": "the example weights multiply the plain token loss",
    "pad_token": "the base's own tokenizer is used",
    "remove_unused_columns": "the examples come encoded",
    "save_only_model": "a killed tune continues where it was",
    "truncation_mode": "an example is cut at its end",
}


def sft_config(config: TrainConfig) -> SFTConfig:
    """The trainer's arguments; `output_dir` is set by the stage. Raises RecipeError for what SFTConfig refuses, and
    without the extra."""
    require(TRAIN, "train")
    from trl.trainer.sft_config import SFTConfig

    given = trainer_fields(config.trainer, SFTConfig, _NAMED, _FIXED, "train")
    padded = not (config.trainer.get("packing") or config.trainer.get("padding_free"))
    own = {
        "train_sampling_strategy": "group_by_length" if config.group_by_length and padded else "random",
        "learning_rate": config.rate,
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": per_process(config.batch_size, "examples", "train"),
        "gradient_accumulation_steps": config.accumulate,
        "seed": config.seed,
        "max_length": None,  # cut already, and an answer that is lost altogether was refused
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    try:
        return SFTConfig(**trainer_settings(config.load, given, own))
    except (ValueError, TypeError, ImportError) as error:
        raise refused_by_trl(error, "train") from error
