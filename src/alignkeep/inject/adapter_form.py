"""The edit as a LoRA of rank 1 that PEFT loads: B = alpha s_hat, A = right^T, alpha / r = 1.

Into a model that is itself a LoRA the edit goes as one row of A and one column of B more, so that one adapter of the
same base is both: [s B, b] [A; a] = s B A + b a, with the adapter's scale s folded into B and a scale of 1 throughout.

PEFT 0.21 takes the linear writers of a mixture of experts (dense first layers, shared experts) for the experts of the
same name and drops them without a word; given as parameters they arrive. Proof is in the loading: `attach_adapter`
compares every tensor, and the stage compares what the two models say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from alignkeep.checkpoint.adapters import parts_of, scale_of
from alignkeep.checkpoint.companions import TOKENIZER, copy_companions
from alignkeep.checkpoint.files import write_json, write_tensors
from alignkeep.checkpoint.shards import Written, sha256_of
from alignkeep.checkpoint.verify import check_same_files
from alignkeep.errors import RecipeError
from alignkeep.inject.rank_one import RankOne
from alignkeep.models.adapters import start_in_base, without_adapter_name
from alignkeep.models.architecture import Writer
from alignkeep.models.headers import load_json, read_headers

if TYPE_CHECKING:
    from torch import Tensor

FILE = "adapter_model.safetensors"
EDIT = "rank_one.safetensors"  # the edit alone, where an adapter of somebody's is in the other file too
_DOWN, _UP = ("lora_A", "lora_embedding_A"), ("lora_B", "lora_embedding_B")
_FIXED = ("use_dora", "lora_bias", "target_parameters")  # not one more rank, or not a pair of factors of a module


def write_adapter(
    base: Path, reference: str, writers: Sequence[Writer], edits: Mapping[str, RankOne], work: Path
) -> list[Written]:
    """The adapter in `work`, with its settings and the base's tokenizer; returns its tensors."""
    file = write_tensors(work / FILE, factors_of(writers, edits), {"format": "pt"})
    write_json(work / "adapter_config.json", settings_of(reference, writers, edits))
    check_same_files(work, base, copy_companions(base, work, TOKENIZER))
    return _written(file)


def _written(file: Path) -> list[Written]:
    return [
        Written(name, FILE, entry.dtype, entry.shape, sha256_of(entry), "changed")
        for name, entry in read_headers([file]).items()
    ]


def write_joined(
    adapter: Path, base: Path, reference: str, writers: Sequence[Writer], edits: Mapping[str, RankOne], work: Path
) -> list[Written]:
    """The adapter in the folder `adapter` and the edit as one, in `work`, and the edit alone in EDIT; returns the
    tensors of both together."""
    from safetensors.torch import load_file

    edit, settings = factors_of(writers, edits), load_json(adapter / "adapter_config.json")
    write_tensors(work / EDIT, edit, {"format": "pt"})
    tensors = joined(settings, load_file(adapter / FILE), edit)
    file = write_tensors(work / FILE, tensors, {"format": "pt"})
    write_json(
        work / "adapter_config.json", {**joined_settings(settings, tensors), "base_model_name_or_path": reference}
    )
    own = copy_companions(adapter, work, TOKENIZER)
    check_same_files(work, adapter if own else base, own or copy_companions(base, work, TOKENIZER))
    return _written(file)


def joined(settings: Mapping[str, Any], adapter: Mapping[str, Tensor], edit: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapter with those of a rank-one edit as one more rank, by PEFT's names; the scale is 1, and
    the rank the same everywhere (filled up with 0: other readers take one rank and one alpha for all)."""
    import torch

    found = {without_adapter_name(name): tensor for name, tensor in adapter.items()}
    ranks = ranks_of(found)
    for name, tensor in found.items():
        place, kind = parts_of(name) or ("", "")
        if kind in _UP:
            found[name] = tensor.float() * scale_of(settings, place, ranks[place])
        elif place in ranks:
            found[name] = tensor.float()
    for name, tensor in edit.items():
        joint = [found[name], tensor] if name in found else [tensor]
        found[name] = torch.cat(joint, 1 if ".lora_B." in name else 0)
    most = max(ranks_of(found).values())
    for name, tensor in found.items():
        kind = (parts_of(name) or ("", ""))[1]
        missing = (0, 0, 0, most - tensor.shape[0]) if kind in _DOWN else (0, most - tensor.shape[-1])
        if kind in (*_DOWN, *_UP):
            found[name] = torch.nn.functional.pad(tensor, missing).contiguous()
    return found


def ranks_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The rank of every module that an adapter's tensors have factors for."""
    named = [(parts_of(name), tensor) for name, tensor in tensors.items()]
    return {parts[0]: tensor.shape[0] for parts, tensor in named if parts is not None and parts[1] in _DOWN}


def joined_settings(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """The adapter's settings with every module named in full, and alpha equal to the rank."""
    ranks = ranks_of(tensors)
    rank = max(ranks.values())
    return {
        **settings, "r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {},
        "target_modules": sorted(ranks), "exclude_modules": None, "layers_to_transform": None, "layers_pattern": None,
        "use_rslora": False, "init_lora_weights": True, "inference_mode": True,
    }  # fmt: skip


def check_joinable(folder: Path, writers: Sequence[Writer] = ()) -> None:
    """Raises RecipeError for an adapter to which a rank cannot be added, or an edit that is no LoRA of modules."""
    settings: dict[str, Any] = load_json(folder / "adapter_config.json")
    odd = [f"an adapter with {key}" for key in _FIXED if settings.get(key)]
    odd += ["an adapter with init_lora_weights"] if start_in_base(settings) is not None else []
    odd += ["an adapter with biases"] if settings.get("bias", "none") != "none" else []
    saved = settings.get("modules_to_save") or ()
    odd += [f"{one.place}, which the adapter stores whole" for one in writers if one.place.rpartition(".")[2] in saved]
    mixture = any(writer.expert is not None for writer in writers)
    odd += [f"{one.place}, which PEFT adapts as a parameter" for one in writers if _is_by_name(one, mixture)]
    if odd:
        raise RecipeError(
            "form",
            seen=f"adapter, over {odd[0]}",
            expected="a plain or rank-stabilised LoRA of linear layers under it",
            remedy="take --as model, which folds both into the base, or merge first (alignkeep merge ... --weight 1)",
        )


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
