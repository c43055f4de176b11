"""The tune in the words of TRL and PEFT: `SFTConfig` and `LoraConfig`, and which of their fields are the user's."""

from __future__ import annotations

import os
from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from alignkeep.errors import RecipeError, ShapeError

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn
    from trl.trainer.sft_config import SFTConfig

    from alignkeep.models.config import LoadConfig
    from alignkeep.train.config import LoraSettings, TrainConfig

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


def check_trainer_fields(given: dict[str, Any]) -> None:
    """Raises RecipeError for a key that SFTConfig does not have (with the nearest one), or that is not the user's."""
    from trl.trainer.sft_config import SFTConfig

    known = {field.name for field in fields(SFTConfig)}
    for key in given:
        where = f"train.trainer.{key}"
        if key in _NAMED:
            raise RecipeError(
                where, seen="a field with a name of its own", expected=f"`{_NAMED[key]}`", remedy="set it there"
            )
        if key in _FIXED:
            raise RecipeError(where, seen="a field that is fixed here", expected=_FIXED[key], remedy="remove it")
        if key not in known:
            near = get_close_matches(key, known - _NAMED.keys() - _FIXED.keys(), n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else "remove it"
            raise RecipeError(where, seen="an unknown key", expected="a field of trl.SFTConfig", remedy=hint)


def world_size() -> int:
    """Processes that torchrun or accelerate started for this tune."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def uses_accelerator(load: LoadConfig) -> bool:
    """Whether the tune runs on an accelerator. Raises RecipeError for a cuda that is not there."""
    import torch

    if load.device == "auto":
        return torch.accelerator.is_available()
    if load.device.startswith("cuda") and not torch.cuda.is_available():
        raise RecipeError(
            "load.device", seen=load.device, expected="a CUDA device", remedy="use --device cpu, or mend the driver"
        )
    if load.device not in ("cpu", "mps", "cuda", "cuda:0"):
        raise RecipeError(
            "load.device",
            seen=load.device,
            expected="auto, cpu, mps or cuda (the trainer takes the first device it sees)",
            remedy=f"set CUDA_VISIBLE_DEVICES={load.device.partition(':')[2]} and use cuda",
        )
    return load.device != "cpu"


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

    check_trainer_fields(config.trainer)
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
        "bf16": not given.get("fp16") and accelerator and config.load.dtype != "float32" and _has_bfloat16(),
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
        raise refused_by_trl(error) from error


def refused_by_trl(error: Exception) -> RecipeError:
    """TRL's own refusal of a combination of settings, in our form."""
    return RecipeError(
        "train.trainer", seen=str(error)[:400], expected="settings that trl takes together", remedy="change them"
    )


def lora_config(settings: LoraSettings, model: nn.Module) -> LoraConfig:
    """PEFT's settings of the adapter. Raises RecipeError where a target module matches nothing in `model`.

    PEFT by itself is content with a list of which one name matches, and leaves the others untrained in silence.
    """
    from peft import LoraConfig

    targets: str | list[str] = settings.target_modules
    if isinstance(targets, list):
        _check_targets(targets, model)
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]  (PEFT divides it; any number works)
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


def check_adapted(settings: LoraSettings, model: Any) -> None:
    """Every linear layer that was named has an adapter now; raises ShapeError naming those PEFT passed over."""
    if not isinstance(settings.target_modules, list):
        return
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    base = model.get_base_model()
    missed = [
        name
        for name in linear_names(base)
        if _matches(name.replace(".base_layer", ""), settings.target_modules)
        and not any(done.endswith(name.replace(".base_layer", "")) for done in adapted)
    ]
    if missed:
        raise ShapeError(
            "train.lora.target_modules",
            seen=f"no adapter on {', '.join(missed[:5])} ({len(missed)} in all)",
            expected="an adapter on every linear layer that was named",
            remedy="PEFT moves these names to the fused experts of this architecture; name other modules",
        )


def linear_names(model: nn.Module) -> list[str]:
    """Full names of the linear layers, in the model's order."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def _check_targets(targets: list[str], model: nn.Module) -> None:
    names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
    missing = [target for target in targets if not any(_matches(name, [target]) for name in names)]
    if missing or not targets:
        parts = dict.fromkeys(name.rpartition(".")[2] for name in linear_names(model))
        raise RecipeError(
            "train.lora.target_modules",
            seen=", ".join(missing) or "an empty list",
            expected=f"names of linear layers: {', '.join(parts)}",
            remedy="name some of these, or all-linear",
        )


def _matches(name: str, targets: list[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _has_bfloat16() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
