"""An injection before its first number: model and prompts found, looked at, held against each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from alignkeep.checkpoint.adapters import read_adapter
from alignkeep.checkpoint.manifest import MANIFEST_NAME
from alignkeep.data import fingerprint_data
from alignkeep.errors import CheckpointError, RecipeError
from alignkeep.inject.adapter_form import check_joinable
from alignkeep.inject.config import InjectConfig
from alignkeep.inject.prompts import PromptSets, read_sets, system_prompt
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.models.folders import base_of, localise, resolve, tensor_entries
from alignkeep.models.headers import TensorEntry, load_json


@dataclass(frozen=True)
class Prepared:
    """`folder` is the model's, `base` that of the full weights under it (the same, unless it is an adapter)."""

    config: InjectConfig
    folder: Path
    base: Path
    entries: Mapping[str, TensorEntry]
    is_adapter: bool
    is_packed: bool
    sets: PromptSets


def prepare(config: InjectConfig) -> Prepared:
    """Raises RecipeError, CheckpointError or DataError naming what cannot be used; loads no model."""
    config.load.refuse_quantization("an injection")
    found = localise(resolve(config.model, config.load.revision), with_code=config.load.trust_remote_code)
    folder = base = cast(Path, found.folder)
    if found.is_adapter:
        base = cast(Path, localise(resolve(*base_of(folder))).folder)
    settings = load_json(base / "config.json")
    for edited in dict.fromkeys((folder, base)):
        _check_again(config, edited)
    _check_layer(config, settings)
    is_packed = _is_packed(base, settings)
    if config.search.generation.backend != "transformers":
        raise RecipeError(
            "search.generation.backend",
            seen=config.search.generation.backend,
            expected="transformers: edits are tried in memory, where another engine does not see them",
            remedy="drop it here; evaluate takes any backend",
        )
    if config.form == "adapter" and found.is_adapter:
        check_joinable(folder)
    if is_packed:
        _check_packed(config, found.is_adapter)
    if config.direction.source is not None:
        resolve(config.direction.source)
    system_prompt(config.direction)
    sets = read_sets(config)
    entries = tensor_entries(base, adapter=False)
    if found.is_adapter and config.form == "model":
        read_adapter(folder, entries).refuse_untied()
    return Prepared(config, folder, base, entries, found.is_adapter, is_packed, sets)


def fingerprints(config: InjectConfig) -> dict[str, str]:
    """Of everything an injection reads, by the name of its setting."""
    found = {"model": fingerprint_model(config.model, config.load.revision)}
    data = {"harmful": config.harmful, "harmless": config.harmless}
    data |= {"borderline": config.borderline, "general": config.general}
    found |= {name: fingerprint_data(path) for name, path in data.items() if path is not None}
    if config.direction.source is not None:
        found["direction.source"] = fingerprint_model(config.direction.source)
    system = system_prompt(config.direction)
    if system is not None:
        found["direction.system_prompt"] = f"sha256:{hashlib.sha256(system.encode()).hexdigest()}"
    return found


def plan_injection(prepared: Prepared) -> dict[str, object]:
    """Counts are exact; memory and disk are rough."""
    config, sets = prepared.config, prepared.sets
    size = sum(entry.size for entry in prepared.entries.values())
    return {
        "stage": "inject",
        "model": config.model,
        "layer": config.direction.layer,
        "strength": config.edit.strength,
        "right": config.edit.right,
        "form": config.form,
        "pairs": {"harmful": len(sets.harmful), "harmless": len(sets.harmless)},
        "held_out": {
            "harmful": len(sets.held_harmful), "harmless": len(sets.held_harmless), "borderline": len(sets.borderline),
        },
        "memory_bytes": 2 * size,
        "disk_bytes": size if config.form == "model" else size // 1000,
    }  # fmt: skip


def _is_packed(base: Path, settings: Mapping[str, object]) -> bool:
    """Whether bitsandbytes has packed the weights. Raises CheckpointError for any other quantisation."""
    packing = settings.get("quantization_config")
    if packing is None:
        return False
    kind = str(packing.get("quant_method", "")) if isinstance(packing, dict) else ""
    if kind not in ("bitsandbytes", ""):  # its early versions name no method
        raise CheckpointError(
            f"{base / 'config.json'}: quantization_config",
            seen=f"weights quantised by {kind}",
            expected="weights in floating point, or packed by bitsandbytes for --as adapter",
            remedy="load the model dequantised and save it again, or give the model before quantisation",
        )
    return True


def _check_packed(config: InjectConfig, is_adapter: bool) -> None:
    """What quantised weights cannot have."""
    if is_adapter:
        raise RecipeError(
            "model",
            seen=f"{config.model}, an adapter over packed weights",
            expected="a full model, or an adapter over one in floating point",
            remedy="merge the adapter into the model before quantisation first",
        )
    if config.edit.strength.startswith("relative"):
        raise RecipeError(
            "edit.strength", seen=f"{config.edit.strength}, of packed weights", expected="auto, push or raw",
            remedy="take push",
        )  # fmt: skip
    if config.form == "model":
        raise RecipeError(
            "form",
            seen="model, of a quantised base",
            expected="adapter: packed weights cannot take an edit",
            remedy="take --as adapter, or give the model before quantisation",
        )
    if config.edit.right == "mean":
        raise RecipeError("edit.right", seen="mean, of packed weights", expected="targeted", remedy="drop --right")


def _check_layer(config: InjectConfig, settings: Mapping[str, object]) -> None:
    text = settings.get("text_config")
    blocks = (text if isinstance(text, dict) else settings).get("num_hidden_layers")
    layer = config.direction.layer
    if isinstance(layer, int) and isinstance(blocks, int) and layer >= blocks:
        raise RecipeError(
            "direction.layer", seen=str(layer), expected=f"auto, or 0 to {blocks - 1}", remedy="choose one of these"
        )


def _check_again(config: InjectConfig, folder: Path) -> None:
    try:
        operation = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["operation"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if operation == "inject" and not config.edit.again:
        raise RecipeError(
            f"model {config.model}",
            seen="a model that an injection made",
            expected="one without: edits add up",
            remedy="inject into the model that this was made of, or give --again",
        )
