"""A merge of one adapter as an adapter of the same base: milliseconds, and no full weights.

Linear: the change of a LoRA is scale * B A, so that its alpha times the weight is the merge, exactly. Tensors that the
adapter stores whole are merged with the base's. Fisher and alignment subspace: A M stands in place of A, M being the
method's map of the inputs, and what has no map is scaled through B.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkeep.checkpoint.adapters import entry_of, parts_of
from alignkeep.checkpoint.companions import TOKENIZER, copy_companions
from alignkeep.checkpoint.files import write_json
from alignkeep.checkpoint.numbers import Numbers
from alignkeep.checkpoint.reading import stored_numbers
from alignkeep.checkpoint.rewrite import Edit, rewrite
from alignkeep.checkpoint.shards import Written
from alignkeep.checkpoint.verify import check_same_files
from alignkeep.input_files import user_path
from alignkeep.merge.chat import take_template, template_of
from alignkeep.merge.edits import MergedTensor, Source, is_base, source_of
from alignkeep.merge.method import Rule, TensorMerge
from alignkeep.merge.pieces import PIECE
from alignkeep.merge.prepare import Prepared
from alignkeep.merge.writing import refuse_no_effect
from alignkeep.models.folders import tensor_entries
from alignkeep.models.headers import TensorEntry, load_json


@dataclass(frozen=True)
class ChangedFactor:
    """One factor of an adapter, held in memory: A seen through a map of its inputs, or B scaled."""

    name: str
    made_of: Sequence[TensorEntry]
    method: TensorMerge
    weight: float

    def __iter__(self) -> Iterator[Numbers]:
        numbers = stored_numbers(self.name, self.made_of[0])
        if (through := self.method.through) is not None:
            from alignkeep.merge.input_maps import seen_through

            numbers = seen_through(numbers, through)
        else:
            numbers *= self.weight
        yield numbers.reshape(-1)


def write_adapter(prepared: Prepared, weight: float, rule: Rule, work: Path) -> tuple[list[Written], dict[str, str]]:
    """The merged adapter in `work`; returns its tensors, `changed` against the tuned adapter's. Raises NoEffectError
    where the tuned adapter changes nothing."""
    tuned = prepared.models.tuned[0]
    assert tuned.adapter is not None
    touched = {*tuned.adapter.changes, *tuned.adapter.replaced}
    base = prepared.models.entries
    if all(is_base(source_of(tuned, name), entry_of(base, name)) for name in touched):
        refuse_no_effect("the adapter leaves its base as it is", len(touched))
    stored = tensor_entries(tuned.folder, adapter=True)
    edits = adapter_edits(prepared, stored, weight, rule)
    factors = [name for name, edit in edits.items() if isinstance(edit, ChangedFactor)]  # 0 leaves the base as it is
    written = rewrite(stored, edits, work, may_vanish=factors)
    write_beside_adapter(prepared, weight, work)
    return written, {}


def write_beside_adapter(prepared: Prepared, weight: float, work: Path) -> None:
    """The adapter's settings, with its scale where the merge is that, and its tokenizer."""
    folder = prepared.models.tuned[0].folder
    settings = load_json(folder / "adapter_config.json")
    if prepared.method.adapter == "scaled":
        settings = scaled(settings, weight)
    settings["base_model_name_or_path"] = _path_of(prepared.config.base)
    write_json(work / "adapter_config.json", settings)
    check_same_files(work, folder, copy_companions(folder, work, TOKENIZER))
    if prepared.config.chat_template == "base" and template_of(folder) is not None:
        take_template(prepared.models.base, work)


def scaled(settings: Mapping[str, Any], weight: float) -> dict[str, Any]:
    """The settings of an adapter with every alpha times `weight`."""
    alpha, patterns = settings.get("lora_alpha", settings.get("r", 8)), settings.get("alpha_pattern") or {}
    return {
        **settings,
        "lora_alpha": _plain(alpha * weight),
        "alpha_pattern": {key: _plain(value * weight) for key, value in patterns.items()},
    }


def adapter_edits(
    prepared: Prepared, stored: Mapping[str, TensorEntry], weight: float, rule: Rule
) -> dict[str, Edit | TensorEntry]:
    """What is done to which of the adapter's stored tensors."""
    base, adapter = prepared.models.entries, prepared.models.tuned[0].adapter
    assert adapter is not None
    edits: dict[str, Edit | TensorEntry] = {}
    for name, entry in stored.items():
        parts = parts_of(name)
        if parts is None:
            place = adapter.places[name]
            if weight < 1:
                edits[name] = MergedTensor(place, entry_of(base, place), [Source(entry)], rule(place), PIECE)
        elif prepared.method.adapter == "mapped":
            module, kind = parts
            method = rule(adapter.places.get(name, f"{module}.weight"))
            changed = "lora_B" if method.through is None else "lora_A"
            if kind == "lora_bias":
                edits[name] = ChangedFactor(name, (entry,), rule(f"{module}.bias"), weight)
            elif kind in (changed, changed.replace("lora_", "lora_embedding_")):
                edits[name] = ChangedFactor(name, (entry,), method, weight)
    return edits


def _plain(value: float) -> float | int:
    """16.0 as 16: some readers of adapters take whole numbers only."""
    return int(value) if float(value).is_integer() else value


def _path_of(reference: str) -> str:
    path = user_path(reference)
    return os.path.realpath(path) if path.is_dir() else reference
