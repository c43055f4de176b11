"""Settings that trl takes beside ours, and the machine that a tune runs on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from alignkeep.errors import RecipeError

if TYPE_CHECKING:
    from alignkeep.models.config import LoadConfig


# Fields of every trainer of trl's that have a name of ours.
NAMED = {
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulate",
    "seed": "seed",
    "output_dir": "--out",
    "use_cpu": "load.device",
    "trust_remote_code": "load.trust_remote_code",
    "model_init_kwargs": "load",
    "resume_from_checkpoint": "--resume",
    "disable_tqdm": "--quiet",
}


# Fields that a tune of ours does not look at: there is no evaluation of TRL's, and a result appears once it is whole.
OF_EVALUATION = (
    *("batch_eval_metrics", "bf16_full_eval", "do_eval", "do_predict", "do_train", "eval_accumulation_steps"),
    *("eval_delay", "eval_do_concat_batches", "eval_on_start", "eval_steps", "eval_strategy", "eval_use_gather_object"),
    *("fp16_full_eval", "greater_is_better", "include_for_metrics", "load_best_model_at_end", "metric_for_best_model"),
    *("per_device_eval_batch_size", "prediction_loss_only"),
)
_LARGEST = 1e18  # of any number; chosen: whoever writes more of anything means none
# The least and the most of numbers that trl takes as they come.
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("adam_beta1", "adam_beta2"), (0.0, 1.0)),
    **dict.fromkeys(("adam_epsilon", "max_grad_norm", "weight_decay"), (0.0, 1e6)),
    **dict.fromkeys(("dataloader_num_workers", "warmup_steps", "warmup_ratio"), (0, 1e6)),
    "dataloader_prefetch_factor": (1, 1e6),
    "neftune_noise_alpha": (0.0, 1e6),
    "ddp_timeout": (1, 1e9),
}
OF_THE_HUB = dict.fromkeys(
    ("hub_always_push", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_token", "push_to_hub"),
    "the result leaves this machine when you upload its folder, and not before it is checked",
)


def trainer_fields(
    given: Mapping[str, Any], settings: type, named: Mapping[str, str], fixed: Mapping[str, str], stage: str
) -> dict[str, Any]:
    """The user's fields, each of the type that `settings` (a configuration of trl's) says.

    Raises RecipeError for a key that `settings` does not have, with the nearest one; that has a name of ours (`named`:
    trl's -> ours); that would break what the stage promises (`fixed`: and why); and for a value of another type.
    """
    known = {field.name for field in fields(settings)}
    types = get_type_hints(settings)
    found = {}
    for key, value in given.items():
        where = f"{stage}.trainer.{key}"
        if key in named:
            raise RecipeError(
                where, seen="a field with a name of its own", expected=f"`{named[key]}`", remedy="set it there"
            )
        if key in fixed:
            raise RecipeError(where, seen="a field that is fixed here", expected=fixed[key], remedy="remove it")
        if key not in known:
            near = get_close_matches(key, known - named.keys() - fixed.keys(), n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else "remove it"
            raise RecipeError(where, seen="an unknown key", expected=f"a field of trl.{settings.__name__}", remedy=hint)
        if value is False and key.endswith("_strategy"):
            value = "no"  # YAML takes the word for false
        try:
            typed = TypeAdapter(types[key]).validate_python(value)
        except ValidationError as error:
            wanted = str(error.errors()[0]["msg"]).removeprefix("Input should be ")
            raise RecipeError(where, seen=repr(value)[:80], expected=wanted, remedy="correct the value") from error
        _check_range(key, typed, where)
        found[key] = value if typed == value else typed  # 5 steps stay 5, not 5.0
    _check_trackers(found.get("report_to"), stage)
    return found


def _check_range(key: str, value: object, where: str) -> None:
    """Raises RecipeError for a number that torch, or the first step, would trip over."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    least, most = _RANGES.get(key, (-_LARGEST, _LARGEST))
    if not (least <= value <= most) or (most == 1 and value == 1):
        expected = "a number in [0, 1)" if most == 1 else f"a number from {least:g} to {most:g}"
        raise RecipeError(where, seen=repr(value)[:80], expected=expected, remedy="correct the value")


def _check_trackers(given: str | list[str] | None, stage: str) -> None:
    """Raises RecipeError for a tracker whose package is not installed, which trl finds once the model is loaded."""
    if given is None:
        return
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    named = [given] if isinstance(given, str) else given
    missing = sorted(set(named) & INTEGRATION_TO_CALLBACK.keys() - set(get_available_reporting_integrations()))
    if missing:
        raise RecipeError(
            f"{stage}.trainer.report_to", seen=f"{missing[0]}, whose package is not installed",
            expected="a tracker that is there", remedy="install it, or leave it out",
        )  # fmt: skip


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
    if load.device == "mps" and not torch.backends.mps.is_available():
        raise RecipeError("load.device", seen="mps", expected="a machine that has it", remedy="use --device cpu")
    if load.device not in ("cpu", "mps", "cuda", "cuda:0"):
        raise RecipeError(
            "load.device",
            seen=load.device,
            expected="auto, cpu, mps or cuda (the trainer takes the first device it sees)",
            remedy=f"set CUDA_VISIBLE_DEVICES={load.device.partition(':')[2]} and use cuda",
        )
    return load.device != "cpu"


# What `accelerate launch` says by these variables, and the field of trl's with the same meaning.
_SHARDING = {
    "ACCELERATE_USE_FSDP": "fsdp",
    "ACCELERATE_USE_DEEPSPEED": "deepspeed",
    "ACCELERATE_USE_MEGATRON_LM": None,
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
}


def _refuse_sharding(given: Mapping[str, Any]) -> None:
    """On the CPU accelerate would leave the model whole, without a word."""
    for variable, field in _SHARDING.items():
        by_variable = os.environ.get(variable, "false").lower() in ("true", "1", "yes", "on", "y", "t")
        if by_variable or (field is not None and given.get(field)):
            raise RecipeError(
                variable if by_variable else f"trainer.{field}", seen="sharding, on the CPU",
                expected="accelerators: on a CPU accelerate shards nothing, and every process would hold it all",
                remedy="give --device cuda, or start it without (torchrun; unset the variable)",
            )  # fmt: skip


def has_bfloat16() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def refused_by_trl(error: Exception, stage: str) -> RecipeError:
    """TRL's own refusal of a combination of settings, in our form."""
    return RecipeError(
        f"{stage}.trainer", seen=str(error)[:400], expected="settings that trl takes together", remedy="change them"
    )


def training_dtype(load: LoadConfig, *, has_adapter: bool) -> str:
    """In which numbers the weights are held while training: "auto" is the checkpoint's own.

    A full tune keeps float32 weights (a bfloat16 weight swallows updates below 1/256 of it); a frozen base under an
    adapter stays as it is, except on the CPU, where float32 is faster. The result is saved in the base's dtype, an
    adapter in float32.
    """
    if load.dtype != "auto":
        return load.dtype
    return "auto" if has_adapter and uses_accelerator(load) else "float32"


def per_process(batch_size: int, counted: str, stage: str) -> int:
    """How many of a batch fall to one process. Raises RecipeError where it does not divide."""
    processes = world_size()
    if batch_size % processes:
        raise RecipeError(
            f"{stage}.batch_size",
            seen=f"{batch_size} {counted} for {processes} processes",
            expected=f"a multiple of the processes: it counts the {counted} of all of them",
            remedy=f"use {-(-batch_size // processes) * processes}",
        )
    return batch_size // processes


def checkpointing_setting() -> str:
    """What transformers calls activation checkpointing: since 5.23 by this name, before by that of gradients."""
    from transformers import TrainingArguments

    new = "activation_checkpointing"
    return new if hasattr(TrainingArguments, new) else "gradient_checkpointing"


def trainer_settings(load: LoadConfig, given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What trl is told: our defaults, over them what the user gave, over both what has a name of ours (`own`).

    Raises RecipeError where a device, or sharding, is asked for that is not there.
    """
    accelerator = uses_accelerator(load)
    if not accelerator:
        _refuse_sharding(given)
    checkpointing = {"gradient_checkpointing", "activation_checkpointing"} & given.keys()
    return {
        **({} if checkpointing else {checkpointing_setting(): accelerator}),
        "bf16": not given.get("fp16") and accelerator and load.dtype != "float32" and has_bfloat16(),
        "dataloader_pin_memory": accelerator,
        "logging_steps": 1,
        "report_to": "none",
        "save_steps": 0.1,
        "save_total_limit": 2,
        **given,
        **own,
        "use_cpu": not accelerator,
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
    }
