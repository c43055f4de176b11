"""A PEFT adapter put over its base, and proof that every tensor of its file is in use.

PEFT ignores tensors for modules it did not target (DeepSeek-like dense layers beside experts) and leaves modules that
have no tensors at their random start, with a warning at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.errors import CheckpointError
from alignkeep.models.finite import check_finite
from alignkeep.models.headers import read_headers

if TYPE_CHECKING:
    import torch


def attach_adapter(base: Any, folder: Path) -> Any:
    """The base with the adapter active and frozen. CheckpointError names the tensor that is not used as stored."""
    from peft import PeftModel
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    read_headers([file])
    stored = load_file(file)
    check_finite(stored, {}, file)
    model = PeftModel.from_pretrained(base, str(folder), is_trainable=False)
    _check_used(file, stored, model)
    return model


def fold_adapter(model: Any) -> bool:
    """Add a LoRA adapter onto its base's weights, for good, so that a step costs what one of the base costs.

    Only in float32, where it moves an output by no more than rounding does; in half precision, over quantised weights
    and for other kinds of adapter nothing is done, and False is returned.
    """
    import torch

    if getattr(model, "peft_type", None) != "LORA" or getattr(model, "is_quantized", False):
        return False
    if any(tensor.dtype != torch.float32 for tensor in model.state_dict().values() if tensor.is_floating_point()):
        return False
    model.merge_adapter(safe_merge=True)
    return True


def _check_used(file: Path, stored: Mapping[str, torch.Tensor], model: Any) -> None:
    """Stored tensors and those in the model are the same, by name and by value.

    PEFT rewrites the names of some expert adapters while loading. Such tensors are compared as a whole: the same count
    of numbers with the same sum of squares.
    """
    from peft import get_peft_model_state_dict

    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    everything = model.state_dict()
    for name in stored:
        if name not in loaded and name in everything:  # embeddings saved along with a grown vocabulary
            loaded[name] = everything[name]
    unused = sorted(stored.keys() - loaded.keys())
    unfilled = sorted(loaded.keys() - stored.keys())
    if _mass(stored, unused) != _mass(loaded, unfilled):
        raise CheckpointError(
            f"{file}: tensor {(unused or unfilled)[0]}",
            seen="a tensor that PEFT does not put into the model"
            if unused
            else "a module without a tensor in the file",
            expected="every stored tensor in use, and one for every module of target_modules",
            remedy="name the modules in adapter_config.json as the base names them (target_parameters for experts)",
        )
    for name in sorted(stored.keys() & loaded.keys()):
        wanted, there = stored[name], loaded[name].cpu()
        if wanted.shape != there.shape or not wanted.to(there.dtype).equal(there):
            raise CheckpointError(
                f"{file}: tensor {name}",
                seen="other numbers in the loaded model than in the file",
                expected="the same",
                remedy="write the adapter again with the installed PEFT",
            )


def _mass(tensors: Mapping[str, torch.Tensor], names: list[str]) -> tuple[int, float]:
    """Count of numbers and sum of squares to six digits: alike for the same numbers in another arrangement."""
    count = sum(tensors[name].numel() for name in names)
    squares = sum(tensors[name].double().pow(2).sum().item() for name in names)
    return count, float(f"{squares:.6g}")
