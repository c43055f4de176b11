"""Files of our own in a trainer's checkpoint: what a callback has to know again when a tune is continued."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alignkeep.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import TrainerState, TrainingArguments


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
