"""What is left of a tune that fails, and memory or disk that runs out in the middle of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from alignkeep.checkpoint.files import machine_errors, says_full_disk, says_no_memory
from alignkeep.checkpoint.folders import OutputFolder, discard, leads
from alignkeep.errors import AlignkeepError, MachineError

Result = TypeVar("Result")


@contextmanager
def machine_failures(out: Path, stage: str, remedy: str) -> Iterator[None]:
    """Memory or disk that ran out, whichever library noticed; the checkpoints so far are kept. `remedy` is the stage's
    way to need less memory."""
    import torch
    from safetensors import SafetensorError

    try:
        with machine_errors(out):
            yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError, SafetensorError) as error:
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or says_no_memory(error)
        if not (memory or says_full_disk(error)):
            raise
        raise MachineError(
            f"{stage}, --out {out}",
            seen="out of memory" if memory else "a checkpoint that could not be written",
            expected="room for the tune",
            remedy=remedy if memory else "free some space and run it again",
        ) from error


def train_from(checkpoint: str | None, trainer: Any, stage: str) -> None:
    """All steps. Raises MachineError, so that checkpoints are kept, for a package that is only looked for now (an
    optimiser's)."""
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except ImportError as error:
        raise MachineError(
            f"{stage}.trainer", seen=str(error)[:400], expected="that package installed",
            remedy="install it and give the same command again, or change the setting",
        ) from error  # fmt: skip


def done_in(
    folder: OutputFolder,
    stage: str,
    work: Callable[[], None],
    result_of: Callable[[], Result | None],
    is_worth_keeping: Callable[[AlignkeepError], bool],
    *,
    less_memory: str,
) -> Result:
    """Do the work in the folder unless it is done, close it, and give its result. After an error what was begun stays
    where it is worth continuing. `less_memory` is what to do where memory runs out."""
    try:
        if not folder.finished:
            with machine_failures(folder.out, stage, less_memory):
                work()
        result = result_of()
    except AlignkeepError as error:
        if leads() and not is_worth_keeping(error):
            discard(folder.work)
        raise
    finally:
        folder.close()
    if result is None:
        raise MachineError(
            str(folder.out), seen="no finished record", expected="the one just written", remedy="run it again"
        )
    return result
