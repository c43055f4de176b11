"""A found edit as files: the edited weights or the adapter, the direction, and proof that they say what was tried."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkeep.checkpoint.adapters import read_adapter
from alignkeep.checkpoint.files import write_tensors
from alignkeep.checkpoint.parts import is_whole, seal
from alignkeep.checkpoint.shards import JOURNAL, Written
from alignkeep.errors import CheckpointError
from alignkeep.inject.adapter_form import write_adapter, write_joined
from alignkeep.inject.edit import FoundEdit
from alignkeep.inject.in_memory import edited
from alignkeep.inject.injection import FACTORS_NAME
from alignkeep.inject.prepare import Prepared
from alignkeep.inject.writing import Factors, edits_of, write_model
from alignkeep.judging.log_odds import mean_divergence
from alignkeep.models.activations import last_tokens, next_token_log_probs
from alignkeep.models.adapters import attach_adapter
from alignkeep.models.folders import base_of
from alignkeep.models.loading import load_model
from alignkeep.progress import Progress

DIRECTION = "direction.safetensors"
_PROOF = 16  # prompts on which adapter and edited model are compared
# Nats of divergence: what rounding alone may give, and the share of the edit's own that a lost matrix exceeds (chosen).
_ROUNDING, _LOST = {"float32": 1e-6, "float16": 1e-4, "bfloat16": 1e-3}, 1e-3


def write_edit(
    prepared: Prepared, edit: FoundEdit, work: Path, progress: Progress
) -> tuple[list[Written], dict[str, str]]:
    """Everything but the notes for people; returns the tensors and why some came out equal."""
    _write_direction(prepared, edit, work)
    if prepared.config.form == "adapter":
        found = (prepared.base, _reference(prepared), edit.writers, edit.edits, work)
        written = write_joined(prepared.folder, *found) if prepared.is_adapter else write_adapter(*found)
        _prove_adapter(prepared, edit, work)
        return written, {}
    factors = stored_factors(edit)
    if not _are_stored(factors, work / FACTORS_NAME):  # shards of a killed run carry what it found
        (work / JOURNAL).unlink(missing_ok=True)
    seal(write_tensors(work / FACTORS_NAME, *packed(factors)))
    adapter = read_adapter(prepared.folder, prepared.entries) if prepared.is_adapter else None
    edits = {} if _is_identity(edit) and adapter is None else edits_of(prepared.entries, factors, adapter)
    tokenizer = prepared.folder if prepared.is_adapter else None
    return write_model(prepared.base, prepared.entries, edits, work, tokenizer=tokenizer, progress=progress)


def _reference(prepared: Prepared) -> str:
    """The base as PEFT finds it again: a folder by its full path, a model of the hub by its name."""
    if prepared.is_adapter:
        return base_of(prepared.folder)[0]
    return str(prepared.base.resolve()) if Path(prepared.config.model).exists() else prepared.config.model


def stored_factors(edit: FoundEdit) -> dict[str, dict[int, Factors]]:
    """The edits by stored tensor, and by expert within it (0 where it holds one matrix)."""
    found: dict[str, dict[int, Factors]] = {}
    for writer in edit.writers:
        if writer.name in edit.edits:
            left, right = (factor.numpy() for factor in edit.edits[writer.name])
            place = edit.stored[writer.name]
            found.setdefault(place.tensor, {})[place.expert or 0] = Factors(left, right, place.inputs_first)
    return found


def packed(factors: Mapping[str, Mapping[int, Factors]]) -> tuple[dict[str, Any], dict[str, str]]:
    """The factors as named tensors and the file's metadata, for `unpacked`."""
    import torch

    tensors: dict[str, Any] = {}
    turned: list[str] = []
    for name, experts in factors.items():
        for expert, one in experts.items():
            tensors[f"{name}|{expert}|left"] = torch.from_numpy(one.left)
            tensors[f"{name}|{expert}|right"] = torch.from_numpy(one.right)
            turned += [f"{name}|{expert}"] if one.inputs_first else []
    return tensors, {"inputs_first": json.dumps(turned)}


def unpacked(path: Path) -> dict[str, dict[int, Factors]]:
    """The factors in a file."""
    from safetensors import safe_open

    found: dict[str, dict[int, Factors]] = {}
    with safe_open(path, framework="np") as file:
        turned = set(json.loads(file.metadata()["inputs_first"]))
        for key in file.keys():  # noqa: SIM118  # no mapping
            name, expert, side = key.split("|")
            if side == "left":
                left, right = (file.get_tensor(f"{name}|{expert}|{one}") for one in ("left", "right"))
                found.setdefault(name, {})[int(expert)] = Factors(left, right, f"{name}|{expert}" in turned)
    return found


def _are_stored(factors: Mapping[str, Mapping[int, Factors]], path: Path) -> bool:
    import torch

    if not is_whole(path):
        return False
    (one, _), (other, _) = packed(unpacked(path)), packed(factors)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _is_identity(edit: FoundEdit) -> bool:
    """Asked for by name: every alpha is 0."""
    return all(matrix.alpha == 0 for matrix in edit.injection.matrices)


def _write_direction(prepared: Prepared, edit: FoundEdit, work: Path) -> None:
    """Every layer's difference of means and the chosen unit vector, with what they are of."""
    found, directions = edit.injection, edit.extracted.directions
    direction, length = directions.unit(found.layer)
    facts = {"layer": found.layer, "length": length, "source": found.source, "seed": prepared.config.seed}
    tensors = {"direction": direction.float(), "differences": directions.differences.float()}
    write_tensors(work / DIRECTION, tensors, {key: str(value) for key, value in facts.items()})


def _prove_adapter(prepared: Prepared, edit: FoundEdit, work: Path) -> None:
    """Loaded back over the model, the adapter says what the edited model says. Raises CheckpointError where not."""
    texts = last_tokens(edit.loaded, prepared.sets.held[:_PROOF])
    before = next_token_log_probs(edit.loaded, texts)
    with edited(edit.writers, edit.edits):
        wanted = next_token_log_probs(edit.loaded, texts)
    rounding = _ROUNDING[str(edit.loaded.model.dtype).removeprefix("torch.")]
    if prepared.is_adapter:  # folded in memory, beside its base on disk: rounded at every matrix
        loaded, rounding = (
            load_model(str(work), prepared.config.load.model_copy(update={"revision": None})),
            10 * rounding,
        )
    else:
        loaded = edit.loaded
        loaded.model = attach_adapter(loaded.model, work)
    gap = mean_divergence(wanted, next_token_log_probs(loaded, texts))
    allowed = max(rounding, _LOST * mean_divergence(wanted, before))
    if not gap <= allowed:
        raise CheckpointError(
            str(work / "adapter_model.safetensors"),
            seen=f"answers that diverge by {gap:.3g} nats from those of the edited model",
            expected=f"at most {allowed:g}",
            remedy="take --as model; the installed PEFT leaves a matrix of this family out",
        )
