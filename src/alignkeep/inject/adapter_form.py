"""The edit as a LoRA of rank 1 that PEFT loads: B = alpha s_hat, A = right^T, alpha / r = 1.

PEFT 0.21 takes the linear writers of a mixture of experts (dense first layers, shared experts) for the experts of the
same name and drops them without a word; given as parameters they arrive. Proof is in the loading: `attach_adapter`
compares every tensor, and the stage compares what the two models say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from alignkeep.checkpoint.companions import TOKENIZER, copy_companions
from alignkeep.checkpoint.files import write_json, write_tensors
from alignkeep.checkpoint.shards import Written, sha256_of
from alignkeep.checkpoint.verify import check_same_files
from alignkeep.errors import RecipeError
from alignkeep.inject.rank_one import RankOne
from alignkeep.models.architecture import Writer
from alignkeep.models.headers import read_headers

if TYPE_CHECKING:
    from torch import Tensor

FILE = "adapter_model.safetensors"


def write_adapter(
    base: Path, reference: str, writers: Sequence[Writer], edits: Mapping[str, RankOne], work: Path
) -> list[Written]:
    """The adapter in `work`, with its settings and the base's tokenizer; returns its tensors."""
    file = write_tensors(work / FILE, factors_of(writers, edits), {"format": "pt"})
    write_json(work / "adapter_config.json", settings_of(reference, writers, edits))
    check_same_files(work, base, copy_companions(base, work, TOKENIZER))
    return [
        Written(name, FILE, entry.dtype, entry.shape, sha256_of(entry), "changed")
        for name, entry in read_headers([file]).items()
    ]


def check_adaptable(model: Any, writers: Sequence[Writer]) -> None:
    """Raises RecipeError naming a matrix that PEFT adapts neither as a module nor as a parameter (Mamba's `out_proj`,
    whose kernels pass by both)."""
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    for writer in writers:
        try:
            _check_lora_target_modules_mamba(
                SimpleNamespace(peft_type="LORA"),  # pyright: ignore[reportArgumentType]  # all it looks at
                model,
                writer.place.rpartition(".")[2],
            )
        except ValueError as error:
            raise RecipeError(
                "form",
                seen=f"adapter, of {writer.place}, which PEFT does not adapt in this family",
                expected="matrices that can have an adapter",
                remedy="take --as model",
            ) from error


def factors_of(writers: Sequence[Writer], edits: Mapping[str, RankOne]) -> dict[str, Tensor]:
    """A and B by the names PEFT gives them. Of experts in one module A has a row and B a column each; of those without
    an edit they are 0."""
    import torch

    found: dict[str, Tensor] = {}
    mixture = any(writer.expert is not None for writer in writers)
    for place, some in _by_place(writers, edits).items():
        by_name = _is_by_name(some[0], mixture)
        count = 1 if some[0].expert is None else getattr(some[0].module, some[0].parameter).shape[0]
        rows, columns = (len(factor) for factor in _factors(some[0], edits, by_name))
        down, up = torch.zeros(count, rows), torch.zeros(columns, count)
        for writer in some:
            at = writer.expert or 0
            down[at], up[:, at] = _factors(writer, edits, by_name)
        found[f"base_model.model.{place}.lora_A.weight"] = down
        found[f"base_model.model.{place}.lora_B.weight"] = up
    return found


def _factors(writer: Writer, edits: Mapping[str, RankOne], by_name: bool) -> tuple[Tensor, Tensor]:
    """A's row and B's column. PEFT takes a tensor of experts for (experts, out, in) unless its module says otherwise,
    and a matrix that is named as a parameter for (out, in): of others the two change places."""
    edit = edits[writer.name]
    says_so = writer.expert is not None and bool(getattr(writer.module, "is_transposed", False))
    turned = by_name and writer.inputs_first and not says_so
    return (edit.left, edit.right) if turned else (edit.right, edit.left)


def _is_by_name(writer: Writer, mixture: bool) -> bool:
    """Whether PEFT is given the parameter instead of its module: beside experts, and where there is no layer."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if not writer.is_matrix:
        return False
    return mixture or not isinstance(writer.module, torch.nn.Linear | Conv1D)


def settings_of(reference: str, writers: Sequence[Writer], edits: Mapping[str, RankOne]) -> dict[str, object]:
    """The `adapter_config.json`, every module named in full."""
    places = _by_place(writers, edits)
    mixture = any(writer.expert is not None for writer in writers)
    modules: list[str] = []
    parameters: list[str] = []
    for place, some in places.items():
        if _is_by_name(some[0], mixture):
            parameters.append(f"{place}.{some[0].parameter}")
        else:
            modules.append(place)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": reference,
        "r": 1,
        "lora_alpha": 1,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(writer.inputs_first and writer.place in modules for writer in writers),
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": modules,
        **({"target_parameters": parameters} if parameters else {}),
    }


def _by_place(writers: Sequence[Writer], edits: Mapping[str, RankOne]) -> dict[str, list[Writer]]:
    found: dict[str, list[Writer]] = {}
    for writer in writers:
        if writer.name in edits:
            found.setdefault(writer.place, []).append(writer)
    return found
