"""What is done beside the steps: progress, a stop at a loss that is not a number, checkpoints known complete, and files
of ours in them, for callbacks of a tune that is continued."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkeep.checkpoint.parts import SEALED, is_whole, seal
from alignkeep.errors import CheckpointError, RecipeError
from alignkeep.progress import Progress


class Watch(TrainerCallback):
    """Reports each step, marks checkpoints as whole once they are, and raises RecipeError on a NaN or infinite loss."""

    def __init__(self, progress: Progress, stage: str) -> None:
        self._progress, self._stage = progress, stage

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._progress.start(self._stage, state.max_steps)
        if state.global_step:
            self._progress.advance(state.global_step, "continued")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress.advance(1)
        control.should_log = control.should_log or state.global_step >= state.max_steps  # a loss that is none shows

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        for name in ("loss", "grad_norm"):
            if not math.isfinite(float(logs.get(name, 0.0))):
                raise RecipeError(
                    f"{self._stage}, step {state.global_step}",
                    seen=f"{name} {logs[name]}",
                    expected="a finite number",
                    remedy="lower learning_rate, or use bf16 or float32 instead of fp16; nothing was written",
                )
        self._progress.advance(0, f"loss {float(logs['loss']):.3f}")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # every process has written its part
        if state.is_world_process_zero:
            seal(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._progress.done()


def last_checkpoint(folder: Path) -> str | None:
    """The latest checkpoint that is there as it was written, None where there is none. Others are deleted: those that a
    kill left half written, and those that were damaged since. One process looks, and tells the others."""
    latest = None
    for path in sorted(folder.glob("checkpoint-*"), key=_step):
        if is_whole(path):
            latest = str(path)
        else:
            shutil.rmtree(path)
    return latest


def has_checkpoint(folder: Path) -> bool:
    """Whether one was finished, without a look into it."""
    return any(folder.glob(f"checkpoint-*/{SEALED}"))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def file_in_checkpoint(args: TrainingArguments, state: TrainerState, name: str) -> Path:
    """In the checkpoint of this step."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / name


def kept_file(args: TrainingArguments, state: TrainerState, name: str, without: str) -> Path:
    """The same, written by the trainer that is continued. Raises CheckpointError where it is not there; `without` is
    the setting that does without it."""
    file = file_in_checkpoint(args, state, name)
    if not file.is_file():
        raise CheckpointError(
            str(file.parent),
            seen=f"a checkpoint without {name}",
            expected="what the trainer that is continued wrote into it",
            remedy=f"continue from a checkpoint in output_dir, or {without}",
        )
    return file
