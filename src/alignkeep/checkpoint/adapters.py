"""LoRA adapters as changes to the tensors of a checkpoint, read from their file without loading a model.

    W_tuned = W + scale * left @ right

PEFT names modules as they are in memory; what a checkpoint has on disk can be laid out otherwise (experts are fused in
memory and stored one by one). Every tensor of the adapter has to find its place, or it is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkeep.checkpoint.experts import expert_changes
from alignkeep.checkpoint.low_rank import LowRank
from alignkeep.checkpoint.reading import stored_numbers
from alignkeep.errors import CheckpointError
from alignkeep.models.folders import tensor_entries
from alignkeep.models.headers import TensorEntry, load_json

HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.*)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.weight)?")
# Forms whose change to the weights is not scale * B A.
_OTHER_FORMS = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "alora_invocation_tokens", "trainable_token_indices"),
    *("layer_replication", "arrow_config", "monteclora_config", "kasa_config", "velora_config"),
)


@dataclass(frozen=True)
class Adapter:
    """Changes by the base's tensor names; `replaced` are tensors stored whole (modules_to_save, biases)."""

    folder: Path
    changes: Mapping[str, LowRank]
    replaced: Mapping[str, TensorEntry]
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_adapter(folder: Path, base: Mapping[str, TensorEntry]) -> Adapter:
    """The adapter's changes to this base. Raises CheckpointError naming the tensor that has no place in it, and for
    forms that are not LoRA (DoRA, prompt tuning, ...)."""
    settings = load_json(folder / "adapter_config.json")
    _refuse_other_forms(folder, settings)
    entries = tensor_entries(folder, adapter=True)
    factors: dict[str, dict[str, str]] = {}
    replaced: dict[str, TensorEntry] = {}
    for name, entry in entries.items():
        parts = parts_of(name)
        if parts is not None:
            factors.setdefault(parts[0], {})[parts[1]] = name
            continue
        place = place_of(name)
        if place not in base or base[place].shape != entry.shape:
            raise _no_place(folder, name, f"no {place} of shape {list(entry.shape)} in the base")
        if _is_shared(name, place, base) and not settings.get("ensure_weight_tying"):
            raise _no_place(folder, name, "an embedding of its own, which in the base is the head as well")
        replaced[place] = entry
    changes: dict[str, LowRank] = {}
    for module, names in factors.items():
        for place, change in _changes_of(folder, module, names, entries, settings, base).items():
            if place in changes:
                raise _no_place(folder, next(iter(names.values())), f"a second change to {place}")
            changes[place] = change
    return Adapter(folder, changes, replaced, settings)


def parts_of(name: str) -> tuple[str, str] | None:
    """Module and kind (`lora_A`, ...) of a factor's tensor; None for a tensor that is stored whole."""
    match = _FACTOR.fullmatch(name.removeprefix(_PREFIX))
    return None if match is None else (match["module"], match["kind"])


def place_of(name: str) -> str:
    """The base's tensor that a tensor stored whole stands for."""
    return name.removeprefix(_PREFIX).replace(".base_layer", "").replace(".modules_to_save.default", "")


def _is_shared(name: str, place: str, base: Mapping[str, TensorEntry]) -> bool:
    """Whether it replaces an embedding that the base's head shares (what a LoRA stands on is only kept along)."""
    return place.endswith(EMBEDDINGS) and ".base_layer" not in name and not any(key.endswith(HEADS) for key in base)


def _changes_of(
    folder: Path,
    module: str,
    names: Mapping[str, str],
    stored: Mapping[str, TensorEntry],
    settings: Mapping[str, Any],
    base: Mapping[str, TensorEntry],
) -> dict[str, LowRank]:
    """What one pair of factors does to which tensors."""
    some = next(iter(names.values()))
    if set(names) not in ({"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"}):
        raise _no_place(folder, some, f"{' and '.join(names)} without its partner")
    down, up = (stored_numbers(names[kind], stored[names[kind]]) for kind in sorted(names))
    place = f"{module}.weight"
    if place not in base:
        changes = expert_changes(module, down, up, base, lambda name, rank: scale_of(settings, name, rank))
        if changes is None:
            raise _no_place(folder, some, f"no tensor {place} in the base")
        return changes
    scale = scale_of(settings, module, down.shape[0])
    turned = "lora_embedding_A" in names or bool(settings.get("fan_in_fan_out"))
    change = LowRank(down.T, up.T, scale) if turned else LowRank(up, down, scale)
    if change.shape != base[place].shape:
        raise _no_place(folder, some, f"a change of shape {list(change.shape)} to {list(base[place].shape)}")
    return {place: change}


def scale_of(settings: Mapping[str, Any], name: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) with rsLoRA, alpha being the pattern's that fits the module or parameter."""
    alpha = settings.get("lora_alpha", rank)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _refuse_other_forms(folder: Path, settings: Mapping[str, Any]) -> None:
    kind = settings.get("peft_type")
    odd = next((key for key in _OTHER_FORMS if settings.get(key)), None)
    if kind == "LORA" and odd is None:
        return
    raise CheckpointError(
        f"{folder / 'adapter_config.json'}: {'peft_type' if odd is None else odd}",
        seen=repr(kind if odd is None else settings[odd]),
        expected="a plain or rank-stabilised LoRA, whose change is a product of two factors",
        remedy="fold it into its base with PEFT (merge_and_unload) and merge the full model",
    )


def _no_place(folder: Path, name: str, seen: str) -> CheckpointError:
    return CheckpointError(
        f"{folder / 'adapter_model.safetensors'}: tensor {name}",
        seen=seen,
        expected="a place in the base for every tensor of the adapter",
        remedy="give the base that it was trained on, or fold it in with PEFT and merge the full model",
    )
