"""Edited weights made again from the model and the stored factors, without writing them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from alignkeep.checkpoint.adapters import read_adapter
from alignkeep.checkpoint.manifest import (
    MANIFEST_NAME,
    MadeAgain,
    Manifest,
    inputs_are_not,
    made_otherwise,
    settings_of,
)
from alignkeep.checkpoint.numbers import Numbers
from alignkeep.checkpoint.rewrite import digests
from alignkeep.errors import AlignkeepError, CheckpointError
from alignkeep.inject.adapter_form import EDIT, FILE, joined
from alignkeep.inject.config import InjectConfig
from alignkeep.inject.injection import FACTORS_NAME, INJECTION_NAME, read_injection
from alignkeep.inject.output import DIRECTION, unpacked
from alignkeep.inject.prepare import fingerprints
from alignkeep.inject.writing import edits_of
from alignkeep.models.folders import base_of, localise, resolve, tensor_entries
from alignkeep.models.headers import load_json


def made_again(folder: Path, manifest: Manifest) -> MadeAgain:
    """See `stage.verify`. An adapter over a full model holds the factors themselves; nothing is to be made again."""
    config = settings_of(folder, manifest, InjectConfig, "an injection")
    recorded = {one.role: one.fingerprint for one in manifest.inputs}
    where = f"{folder / MANIFEST_NAME}: inputs"
    try:
        there = fingerprints(config)
        found = localise(resolve(config.model, config.load.revision))
        source = found.folder
        base = localise(resolve(*base_of(source))).folder if found.is_adapter and source is not None else source
        assert source is not None
        assert base is not None
        entries = tensor_entries(base, adapter=False)
    except AlignkeepError as error:
        raise inputs_are_not(where, f"not all there: {error.where}") from error
    changed = sorted(role for role in recorded.keys() | there.keys() if there.get(role) != recorded.get(role))
    if changed:
        raise inputs_are_not(where, f"changed since: {', '.join(changed)}")
    adapter = read_adapter(source, entries) if found.is_adapter else None
    silent = all(one.change == "copied" for one in manifest.tensors)
    _check_lefts(folder, config, is_joined=found.is_adapter)
    doubts = ["that the prompts give this direction and these vectors: the injection was not searched for again"]
    if config.form == "adapter" and adapter is not None:
        _compare(folder, manifest, _joined_again(folder, source))
        shown = (
            "the adapter and the stored factors, which run along the stored direction, give every tensor bit for bit"
        )
        return MadeAgain({"inputs": "unchanged", "made_again": True}, [shown], doubts)
    if config.form == "adapter":
        shown = "the factors run along the stored direction, as strong as injection.json says"
        return MadeAgain({"inputs": "unchanged", "made_again": False}, [shown], doubts)
    factors = {} if silent else unpacked(folder / FACTORS_NAME)
    made = digests(entries, edits_of(entries, factors, adapter))
    _compare(folder, manifest, made)
    shown = "the model and the stored factors, which run along the stored direction, give every tensor bit for bit"
    return MadeAgain({"inputs": "unchanged", "made_again": True}, [shown], doubts)


def _joined_again(folder: Path, source: Path) -> dict[str, str]:
    from safetensors.torch import load_file

    made = joined(load_json(source / "adapter_config.json"), load_file(source / FILE), load_file(folder / EDIT))
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in made.items()}


def _check_lefts(folder: Path, config: InjectConfig, *, is_joined: bool) -> None:
    """Every factor that is added to the stream is the stored direction, which is that of its layer, times an alpha of
    `injection.json`. Through a norm (`through_norm`) it is turned, and only its layer is looked at."""
    injection = read_injection(folder / INJECTION_NAME)
    stored = _tensors(folder / DIRECTION)
    direction, differences = stored["direction"].astype(np.float64), stored["differences"].astype(np.float64)
    length = np.linalg.norm(differences[injection.layer])
    if not np.allclose(direction * length, differences[injection.layer], atol=1e-5 * length):
        raise made_otherwise(folder / DIRECTION, "a direction that is not the difference of its layer")
    file = folder / (FACTORS_NAME if config.form == "model" else EDIT if is_joined else FILE)
    lefts = [column for name, one in _tensors(file).items() for column in _columns(name, one)] if file.exists() else []
    alphas = sorted(abs(matrix.alpha) for matrix in injection.matrices if matrix.alpha != 0)
    norms = sorted(float(np.linalg.norm(left)) for left in lefts)
    if config.edit.through_norm:
        return
    if len(norms) != len(alphas) or not np.allclose(norms, alphas, rtol=1e-4, atol=0):
        raise made_otherwise(file, f"factors that are not as strong as {INJECTION_NAME} says")
    if any(abs(left @ direction) < (1 - 1e-4) * np.linalg.norm(left) for left in lefts):
        raise made_otherwise(file, f"a factor that does not run along the direction in {DIRECTION}")


def _columns(name: str, one: Numbers) -> list[Numbers]:
    """The vectors that are added to the stream, of a factor file or an adapter; an expert that is not edited has 0."""
    columns = [one] if name.endswith("|left") else list(one.T) if ".lora_B." in name else []
    return [column.astype(np.float64) for column in columns if column.any()]


def _tensors(file: Path) -> dict[str, Numbers]:
    from safetensors.numpy import load_file

    return load_file(file)


def _compare(folder: Path, manifest: Manifest, made: Mapping[str, str]) -> None:
    if made.keys() != {tensor.name for tensor in manifest.tensors}:
        stray = sorted(made.keys() ^ {tensor.name for tensor in manifest.tensors})
        raise CheckpointError(
            f"{folder / manifest.tensors[0].file}",
            seen=f"other tensors than the model has, as {stray[0]}",
            expected="the model's",
            remedy="do not trust the folder",
        )
    for tensor in manifest.tensors:
        if made.get(tensor.name) != tensor.sha256:
            raise made_otherwise(
                f"{folder / tensor.file}: tensor {tensor.name}", f"other numbers than the model and {FACTORS_NAME} give"
            )
