"""A PEFT adapter put over its base, and proof that every tensor of its file is in use.

PEFT ignores tensors for modules it did not target (DeepSeek-like dense layers beside experts) and leaves modules that
have no tensors at their random start, with a warning at most.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from alignkeep.errors import CheckpointError
from alignkeep.models.finite import check_finite
from alignkeep.models.headers import load_json, read_headers

if TYPE_CHECKING:
    import torch

FILE = "adapter_model.safetensors"
# Values of `init_lora_weights` that take the adapter's start out of the base's weights, or quantise these (PEFT 0.21;
# eva, orthogonal, gaussian and mica leave them alone).
_STARTS_IN_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_DONE_AGAIN = ("pissa", "olora")  # by PEFT in loading, to the same numbers
_ADAPTER_NAME = re.compile(r"(\.lora_\w+|\.modules_to_save|\.trainable_tokens_delta)\.default(?=\.|$)")


def start_in_base(settings: Mapping[str, Any]) -> str | None:
    """The adapter's `init_lora_weights` where it changed the base's weights at the start; else None."""
    start = str(settings.get("init_lora_weights"))
    return start if start.lower().startswith(_STARTS_IN_BASE) else None


def check_experts(folder: Path, settings: Mapping[str, Any], *, loaded_by: str = "") -> None:
    """Raises CheckpointError for an adapter of fused experts (`target_parameters`) that PEFT 0.18 made, or would be
    `loaded_by`: there its factors are those of the matrices turned round, and no PEFT turns them back."""
    if not settings.get("target_parameters"):
        return
    for version, what in ((str(settings.get("peft_version") or ""), "made with"), (loaded_by, "to be loaded by")):
        numbers = re.match(r"(\d+)\.(\d+)", version)
        if numbers and (int(numbers[1]), int(numbers[2])) < (0, 19):
            raise CheckpointError(
                f"{folder / 'adapter_config.json'}: target_parameters",
                seen=f"an adapter of fused experts {what} PEFT {version}, which has their matrices turned round",
                expected="PEFT 0.19 or later",
                remedy="fold it in with the PEFT that made it (merge_and_unload), and give the merged model",
            )


def without_adapter_name(name: str) -> str:
    """A stored tensor's name without `default`, PEFT's name of the adapter, which some tools leave in it."""
    return _ADAPTER_NAME.sub(r"\1", name)


def attach_adapter(base: Any, folder: Path) -> Any:
    """The base with the adapter active and frozen. CheckpointError names the tensor that is not used as stored, and a
    start that PEFT cannot take out of the base again."""
    from peft import PeftModel
    from safetensors.torch import load_file

    settings = load_json(folder / "adapter_config.json")
    check_experts(folder, settings, loaded_by=metadata.version("peft"))
    start = start_in_base(settings)
    if start is not None and start not in _DONE_AGAIN:
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: init_lora_weights",
            seen=f"{start}, which changed the base at the start; loaded over the base as it is it is another model",
            expected="an adapter of the base as it is",
            remedy="convert it where it was trained: save_pretrained(path_initial_model_for_weight_conversion=...)",
        )
    file = folder / FILE
    read_headers([file])
    stored = load_file(file)
    check_finite(stored, {}, file)
    plain = {without_adapter_name(name): tensor for name, tensor in stored.items()}
    with _as_peft_names(folder, None if plain.keys() == stored.keys() else plain) as readable:
        model = PeftModel.from_pretrained(base, str(readable), is_trainable=False)
    _check_used(file, _as_loaded(file, plain, settings, model), model)
    return model


def fold_adapter(model: Any) -> bool:
    """Add a LoRA adapter onto its base's weights, for good, so that a step costs what one of the base costs.

    Only in float32, where it moves an output by no more than rounding does; in half precision, over quantised weights,
    for other kinds of adapter and where it would change more than the adapter does, nothing is done, and False is
    returned.
    """
    import torch

    if getattr(model, "peft_type", None) != "LORA" or getattr(model, "is_quantized", False):
        return False
    if any(tensor.dtype != torch.float32 for tensor in model.state_dict().values() if tensor.is_floating_point()):
        return False
    if not can_fold(model):
        return False
    model.merge_adapter(safe_merge=True)
    return True


def folded(model: Any, folder: Path) -> Any:
    """The base alone, with the adapter added onto its weights. CheckpointError where they cannot hold what it does."""
    if not can_fold(model):
        raise CheckpointError(
            f"{folder / FILE}",
            seen="an adapter over weights that serve two modules (tied embeddings), or a bias for a matrix without one",
            expected="an adapter that the weights of its base can hold",
            remedy="merge it first (alignkeep merge BASE ADAPTER --weight 1), and give the merged model",
        )
    return model.merge_and_unload()


def can_fold(model: Any) -> bool:
    """Whether the base's weights can hold what the adapter does: none of them serves a second module (tied embeddings,
    repeated layers), and a bias is added to a bias."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    serves = Counter(
        parameter.data_ptr()
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
        if parameter.numel()
    )
    for module in model.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        layer = module.get_base_layer()
        if any(serves[parameter.data_ptr()] > 1 for parameter in layer.parameters(recurse=False)):
            return False
        if any(getattr(module, "lora_bias", {}).values()) and getattr(layer, "bias", None) is None:
            return False
    return True


@contextmanager
def _as_peft_names(folder: Path, tensors: Mapping[str, torch.Tensor] | None) -> Iterator[Path]:
    """The folder, or a copy for the while with these tensors in place of its own."""
    from safetensors.torch import save_file

    if tensors is None:
        yield folder
        return
    with TemporaryDirectory() as scratch:
        save_file(dict(tensors), Path(scratch) / FILE)
        (Path(scratch) / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
        yield Path(scratch)


def _as_loaded(
    file: Path, stored: Mapping[str, torch.Tensor], settings: Mapping[str, Any], model: Any
) -> Mapping[str, torch.Tensor]:
    """The tensors by the names that PEFT loads them under: it fuses the experts of adapters made with older versions.

    Two factor pairs become one of twice the rank. PEFT doubles alpha for that, which is right for alpha / rank alone.
    """
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
    except ImportError:  # PEFT 0.18 has no other names
        return stored
    if stored.keys() <= model.state_dict().keys() | _saved_names(model):
        return stored
    made = convert_peft_adapter_state_dict_for_transformers(model, model.peft_config["default"], dict(stored))
    if made.keys() == stored.keys():
        return stored
    for key in ("use_rslora", "rank_pattern", "alpha_pattern"):
        if settings.get(key):
            raise CheckpointError(
                f"{file.parent / 'adapter_config.json'}: {key}",
                seen="single experts under the names of an older version, which PEFT fuses with another scale",
                expected="one rank and alpha for all, with scale alpha / rank",
                remedy="merge it instead (alignkeep merge BASE ADAPTER --weight 1), which adds it expert by expert",
            )
    lost = _squares(stored) - _squares(made)
    if abs(lost) > 1e-5 * _squares(stored):
        raise CheckpointError(
            f"{file}: tensor {next(name for name in stored if name not in made)}",
            seen="tensors of single experts that PEFT does not take over whole",
            expected="a pair of factors for every expert",
            remedy="merge it instead (alignkeep merge BASE ADAPTER --weight 1), which adds it expert by expert",
        )
    return made


def _saved_names(model: Any) -> set[str]:
    from peft import get_peft_model_state_dict

    return set(get_peft_model_state_dict(model, save_embedding_layers=False))


def _squares(tensors: Mapping[str, torch.Tensor]) -> float:
    return sum(tensor.double().pow(2).sum().item() for tensor in tensors.values())


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
