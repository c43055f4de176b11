"""Settings that trl takes beside ours, and the machine that a tune runs on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from alignkeep.errors import RecipeError

if TYPE_CHECKING:
    from alignkeep.models.config import LoadConfig


def check_trainer_fields(
    given: Mapping[str, Any], settings: type, named: Mapping[str, str], fixed: Mapping[str, str], stage: str
) -> None:
    """Raises RecipeError for a key that `settings` (a configuration of trl's) does not have, with the nearest one; that
    has a name of ours (`named`: trl's -> ours); or that would break what the stage promises (`fixed`: and why).
    """
    known = {field.name for field in fields(settings)}
    for key in given:
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


def has_bfloat16() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def refused_by_trl(error: Exception, stage: str) -> RecipeError:
    """TRL's own refusal of a combination of settings, in our form."""
    return RecipeError(
        f"{stage}.trainer", seen=str(error)[:400], expected="settings that trl takes together", remedy="change them"
    )
