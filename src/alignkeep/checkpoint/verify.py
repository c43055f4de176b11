"""Saved tensors, opened again and held against what should be there.

A stage that writes weights ends here: every planned tensor is there in its shape and dtype, finite, nothing else is,
and at least one of them differs from what the stage began with. Tensors are read one at a time, so memory stays flat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.errors import CheckpointError, NoEffectError
from alignkeep.models.finite import is_finite
from alignkeep.models.folders import tensor_entries
from alignkeep.models.headers import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

TensorPlan = tuple[tuple[int, ...], str]  # shape, and dtype in safetensors' words ("F32", "BF16", ...)


def planned(tensors: Mapping[str, Tensor]) -> dict[str, TensorPlan]:
    """The plan that these tensors in memory make."""
    import torch

    words = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
    return {name: (tuple(tensor.shape), words.get(tensor.dtype, str(tensor.dtype))) for name, tensor in tensors.items()}


def check_saved(folder: Path, expected: Mapping[str, TensorPlan], *, adapter: bool = False) -> None:
    """The folder holds just the expected tensors, in their shapes and dtypes, all finite. Raises CheckpointError naming
    the file and the tensor."""
    entries = tensor_entries(folder, adapter=adapter)
    for name, (shape, dtype) in expected.items():
        if name not in entries:
            raise _fault(f"{folder}: tensor {name}", "no such tensor", "it, as planned")
        entry = entries[name]
        if (entry.shape, entry.dtype) != (shape, dtype):
            raise _fault(f"{entry.file}: tensor {name}", f"{entry.dtype} {list(entry.shape)}", f"{dtype} {list(shape)}")
    for name, entry in entries.items():
        if name not in expected:
            raise _fault(f"{entry.file}: tensor {name}", "a tensor that was not planned", "the planned ones only")
    _check_finite(entries)


def check_adapter(folder: Path, expected: Mapping[str, TensorPlan]) -> list[str]:
    """`check_saved` for a LoRA adapter that must change its base; returns the `lora_B` that stayed 0.

    B starts at 0, so an adapter of which every B is 0 is the base: NoEffectError.
    """
    check_saved(folder, expected, adapter=True)
    entries = tensor_entries(folder, adapter=True)
    ups = [name for name in entries if ".lora_B." in name]
    silent = [name for name, tensor in _read({name: entries[name] for name in ups}) if not tensor.any()]
    _refuse_no_effect(len(silent) == len(ups), f"every one of the {len(ups)} lora_B is 0")
    return silent


def check_tuned(folder: Path, base: Path) -> list[str]:
    """`check_saved` for a full model against its base: the same names, shapes and dtypes; returns the equal tensors.

    Raises NoEffectError where every tensor equals the base's, CheckpointError where one became all 0.
    """
    before = tensor_entries(base, adapter=False)
    expected = {name: (entry.shape, entry.dtype) for name, entry in before.items()}
    check_saved(folder, expected)
    after = tensor_entries(folder, adapter=False)
    old = _read({name: before[name] for name in after})
    equal = []
    for (name, tuned), (_, tensor) in zip(_read(after), old, strict=True):
        if tuned.equal(tensor):
            equal.append(name)
        elif not tuned.any():
            raise _fault(f"{after[name].file}: tensor {name}", "nothing but 0, where the base has numbers", "a tune")
    _refuse_no_effect(len(equal) == len(after), f"all {len(after)} tensors equal the base's")
    return equal


def check_same_files(folder: Path, base: Path, names: Iterable[str]) -> None:
    """These files are the base's, byte for byte. Raises CheckpointError naming the first that is not."""
    for name in names:
        if not (folder / name).is_file() or (folder / name).read_bytes() != (base / name).read_bytes():
            raise _fault(str(folder / name), "a file that is missing or differs from the base's", "the base's bytes")


def _check_finite(entries: Mapping[str, TensorEntry]) -> None:
    for name, tensor in _read(entries):
        if not is_finite(tensor):
            raise _fault(f"{entries[name].file}: tensor {name}", "NaN or infinity", "finite numbers")


def _read(entries: Mapping[str, TensorEntry]) -> Iterator[tuple[str, Any]]:
    """The tensors in the order of `entries`, one at a time; the files stay mapped meanwhile."""
    from safetensors import safe_open

    with ExitStack() as stack:
        files = {
            file: stack.enter_context(safe_open(file, framework="pt"))
            for file in {entry.file for entry in entries.values()}
        }
        for name, entry in entries.items():
            yield name, files[entry.file].get_tensor(name)


def _refuse_no_effect(is_equal: bool, seen: str) -> None:
    if is_equal:
        raise NoEffectError(
            "tuned weights",
            seen=seen,
            expected="a tune that changes the model",
            remedy="raise learning_rate or the number of steps, or look for a warm-up longer than the tune",
        )


def _fault(where: str, seen: str, expected: str) -> CheckpointError:
    return CheckpointError(where, seen=seen, expected=expected, remedy="give the same command with --fresh")
