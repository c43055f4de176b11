"""Memory or disk that runs out in the middle of a tune."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignkeep.checkpoint.files import machine_errors, says_full_disk, says_no_memory
from alignkeep.errors import MachineError


@contextmanager
def machine_failures(out: Path, stage: str) -> Iterator[None]:
    """Memory or disk that ran out, whichever library noticed; the checkpoints so far are kept."""
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
            remedy="halve batch_size and double accumulate" if memory else "free some space and run it again",
        ) from error
