"""NaN and infinity in weights, found without a copy of the weights, in memory or on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from alignkeep.errors import CheckpointError
from alignkeep.models.headers import TensorEntry

if TYPE_CHECKING:
    import torch


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether there is neither NaN nor infinity; true for integers and for no numbers at all."""
    import torch

    if tensor.numel() == 0 or not tensor.is_floating_point() or tensor.is_meta:
        return True
    numbers = tensor if tensor.element_size() > 1 else tensor.float()  # 8-bit floats have no minimum
    low, high = torch.aminmax(numbers)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def check_finite(tensors: Mapping[str, torch.Tensor], files: Mapping[str, Path], folder: Path) -> None:
    """CheckpointError for the first tensor that is not finite, with its file where `files` has it, else the folder."""
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise CheckpointError(
                f"{files.get(name, folder)}: tensor {name}",
                seen=f"NaN or infinity (as {str(tensor.dtype).removeprefix('torch.')})",
                expected="finite numbers",
                remedy="copy or make the model again, or try --dtype float32 if the file itself is good",
            )


def check_stored_finite(entries: Mapping[str, TensorEntry]) -> None:
    """CheckpointError for the first stored tensor that is not finite; they are read one at a time."""
    from safetensors import safe_open

    by_file: dict[Path, list[str]] = {}
    for name, entry in entries.items():
        by_file.setdefault(entry.file, []).append(name)
    for file, names in by_file.items():
        with safe_open(file, framework="pt") as stored:
            for name in names:
                check_finite({name: stored.get_tensor(name)}, {name: file}, file.parent)
