"""A finished merge made again from its inputs, without writing it: the strongest proof that it is what it says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from alignkeep.checkpoint.companions import sha256_of_header
from alignkeep.checkpoint.manifest import (
    MANIFEST_NAME,
    MadeAgain,
    Manifest,
    inputs_are_not,
    made_otherwise,
    settings_of,
)
from alignkeep.checkpoint.rewrite import Edit, digests
from alignkeep.errors import AlignkeepError, CheckpointError
from alignkeep.input_files import user_path
from alignkeep.merge.adapter_form import adapter_edits, write_beside_adapter
from alignkeep.merge.config import MergeConfig
from alignkeep.merge.edits import edits_of
from alignkeep.merge.method import Space
from alignkeep.merge.prepare import Prepared, fingerprints, prepare
from alignkeep.merge.spaces import SUBSPACE, read_spaces
from alignkeep.merge.writing import write_beside
from alignkeep.models.folders import tensor_entries
from alignkeep.models.headers import TensorEntry


def made_again(folder: Path, manifest: Manifest) -> MadeAgain:
    """See `stage.verify`."""
    config = settings_of(folder, manifest, MergeConfig, "a merge")
    recorded = {item.role: item.fingerprint for item in manifest.inputs if not item.role.startswith("sweep.")}
    where = f"{folder / MANIFEST_NAME}: inputs"
    try:
        prepared = prepare(config)
        there = fingerprints(prepared.config)
    except AlignkeepError as error:
        raise inputs_are_not(where, f"not all there: {error.where}") from error
    # What other methods of a sweep were given does not make this one.
    idle = {role for role in ("alignment_data", "tuning_data") if getattr(config, role) is None}
    changed = sorted(role for role in recorded if role not in idle and there.get(role) != recorded[role])
    if changed:
        raise inputs_are_not(where, f"changed since: {', '.join(changed)}")
    config = prepared.config
    spaces: Mapping[str, Space] = read_spaces(folder / SUBSPACE) if (folder / SUBSPACE).exists() else {}
    rule = prepared.rule(config.weight, spaces)
    if config.form == "adapter":
        base = tensor_entries(prepared.models.tuned[0].folder, adapter=True)
        edits = adapter_edits(prepared, base, config.weight, rule)
    else:
        base = prepared.models.entries
        edits = edits_of(prepared.models, rule)
    headers = {entry.file.name: sha256_of_header(entry.file) for entry in base.values()}
    for name in sorted(headers.keys() | manifest.headers.keys()):
        if headers.get(name) != manifest.headers.get(name):
            raise _not_the_same(f"{folder / name}", "other tensors, types or places")
    found = digests(base, edits)
    for tensor in manifest.tensors:
        if found.get(tensor.name) != tensor.sha256:
            raise _not_the_same(f"{folder / tensor.file}: tensor {tensor.name}", "other numbers")
    _check_changes(folder, manifest, base, edits)
    _compare_beside(folder, prepared)
    doubts = (
        ["that this weight is the best: the sweep was not run again"]
        if any(one.role.startswith("sweep.") for one in manifest.inputs)
        else []
    )
    doubts += ["that the subspaces are those of the data: they were not measured again"] if spaces else []
    shown = "inputs and settings give every tensor, config, tokenizer and template again, bit for bit"
    return MadeAgain({"inputs": "unchanged", "made_again": True}, [shown], doubts)


def _check_changes(
    folder: Path, manifest: Manifest, base: Mapping[str, TensorEntry], edits: Mapping[str, Edit | TensorEntry]
) -> None:
    """What the manifest says became of a tensor is what became of it."""
    before = digests({name: base[name] for name in edits}, {})
    for tensor in manifest.tensors:
        edited = "equal" if before.get(tensor.name) == tensor.sha256 else "changed"
        expected = edited if tensor.name in edits else "copied"
        if tensor.change != expected:
            raise _not_the_same(f"{folder / MANIFEST_NAME}: tensor {tensor.name}", f"{tensor.change}: other changes")


def _compare_beside(folder: Path, prepared: Prepared) -> None:
    """Settings, tokenizer and template are what the inputs give: of an adapter's merge its alpha is the weight."""
    with TemporaryDirectory() as scratch:
        if prepared.config.form == "adapter":
            write_beside_adapter(prepared, prepared.config.weight, Path(scratch))
        else:
            write_beside(prepared, Path(scratch))
        for path in sorted(Path(scratch).iterdir()):
            if not (folder / path.name).is_file() or (folder / path.name).read_bytes() != path.read_bytes():
                raise _not_the_same(str(folder / path.name), "other settings or words")


def _not_the_same(where: str, seen: str) -> CheckpointError:
    return made_otherwise(where, f"{seen} than the inputs and settings of the manifest give")


def settings_to_repeat(config: MergeConfig, weight: float | None) -> dict[str, object]:
    """What makes the same merge again: the settings that were given, paths from everywhere the same, and the weight
    that was chosen in place of the sweep. A mergekit file names models, method and weights itself."""
    given = config.model_dump(mode="json", exclude_unset=True, exclude={"sweep", "weight"})
    if config.mergekit is not None:
        given = {key: value for key, value in given.items() if key in ("mergekit", "form", "chat_template", "seed")}
        return {**given, "mergekit": _absolute(config.mergekit)}
    given = {key: value for key, value in given.items() if value is not None}
    kept = {**given, "base": _absolute(config.base), "tuned": [_absolute(tuned) for tuned in config.tuned]}
    data = {key: getattr(config, key) for key in ("alignment_data", "tuning_data")}
    kept |= {key: _absolute(path) for key, path in data.items() if path is not None}
    return kept if weight is None else {**kept, "weight": weight}


def _absolute(reference: str) -> str:
    path = user_path(reference)
    return os.path.realpath(path) if path.exists() else reference
