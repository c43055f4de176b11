"""Edited weights made again from the model and the stored factors, without writing them."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from alignkeep.checkpoint.adapters import read_adapter
from alignkeep.checkpoint.injections import FACTORS_NAME
from alignkeep.checkpoint.manifest import MANIFEST_NAME, Manifest
from alignkeep.checkpoint.rewrite import digests
from alignkeep.errors import AlignkeepError, CheckpointError
from alignkeep.inject.config import InjectConfig
from alignkeep.inject.output import unpacked
from alignkeep.inject.writing import edits_of
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.models.folders import base_of, localise, resolve, tensor_entries


def made_again(folder: Path, manifest: Manifest) -> dict[str, object]:
    """See `stage.verify`. An adapter holds the factors themselves; there is nothing to make again."""
    config = _config(folder, manifest)
    recorded = next(one.fingerprint for one in manifest.inputs if one.role == "model")
    try:
        there = fingerprint_model(config.model, config.load.revision)
        found = localise(resolve(config.model, config.load.revision))
        source = found.folder
        base = localise(resolve(*base_of(source))).folder if found.is_adapter and source is not None else source
        assert source is not None
        assert base is not None
        entries = tensor_entries(base, adapter=False)
    except AlignkeepError as error:
        return {"inputs": f"not all there: {error.where}", "made_again": False}
    if there != recorded:
        return {"inputs": "changed since: model", "made_again": False}
    if config.form == "adapter":
        return {"inputs": "unchanged", "made_again": False}
    factors = {} if all(one.change == "copied" for one in manifest.tensors) else unpacked(folder / FACTORS_NAME)
    adapter = read_adapter(source, entries) if found.is_adapter else None
    made = digests(entries, edits_of(entries, factors, adapter))
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
            raise CheckpointError(
                f"{folder / tensor.file}: tensor {tensor.name}",
                seen=f"other numbers than the model and {FACTORS_NAME} give",
                expected="the same bit for bit",
                remedy="was it made by another version? (record.json) If not, do not trust the folder",
            )
    return {"inputs": "unchanged", "made_again": True}


def _config(folder: Path, manifest: Manifest) -> InjectConfig:
    try:
        return InjectConfig.model_validate(manifest.settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"{folder / MANIFEST_NAME}: settings.{'.'.join(map(str, first['loc']))}",
            seen=first["msg"],
            expected="the settings of an injection",
            remedy="make the folder again, or verify it with the version that made it",
        ) from error
