"""Which directions of every matrix's input alignment rests on, and which the tune: measured once, and kept in a file
beside the merge (`subspace.safetensors`), which is enough to make it again.

The base is asked with alignment data, and the tuned model with its own where a method takes that too.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.checkpoint.files import write_tensors
from alignkeep.checkpoint.parts import is_whole, seal
from alignkeep.errors import NoEffectError
from alignkeep.merge.config import MergeConfig
from alignkeep.merge.method import Space, Spectrum
from alignkeep.models.config import LoadConfig
from alignkeep.progress import Progress

if TYPE_CHECKING:
    from alignkeep.subspace.eigenbasis import Eigenbasis

SUBSPACE = "subspace.safetensors"


def read_spaces(path: Path) -> dict[str, Space]:
    """The spaces of a `subspace.safetensors`."""
    from safetensors import safe_open

    from alignkeep.subspace.eigenbasis import Eigenbasis

    with safe_open(path, framework="pt") as file:
        facts: Mapping[str, Any] = json.loads(file.metadata()["spaces"])

        def side(name: str, which: str) -> Eigenbasis | None:
            if which not in facts[name]:
                return None
            vectors, values = (file.get_tensor(f"{name} {which} {part}") for part in ("vectors", "eigenvalues"))
            return Eigenbasis(vectors, values, **facts[name][which])

        spaces = ((name, side(name, "alignment"), side(name, "tuning")) for name in facts)
        return {
            name: Space(alignment, tuning, int(facts[name]["input_axis"]))
            for name, alignment, tuning in spaces
            if alignment is not None
        }


def write_spaces(spaces: Mapping[str, Space], path: Path) -> None:
    """Put them into a file (atomically)."""
    tensors: dict[str, Any] = {}
    facts: dict[str, dict[str, object]] = {}
    for name, space in spaces.items():
        facts[name] = {"input_axis": space.input_axis}
        for which, basis in (("alignment", space.alignment), ("tuning", space.tuning)):
            if basis is not None:
                tensors[f"{name} {which} vectors"] = basis.vectors.float().cpu().contiguous()
                tensors[f"{name} {which} eigenvalues"] = basis.eigenvalues.cpu().contiguous()
                numbers = {key: getattr(basis, key) for key in ("largest", "trace", "captured", "capped")}
                facts[name][which] = numbers
    write_tensors(path, tensors, {"spaces": json.dumps(facts)})


def measured_spaces(
    config: MergeConfig, spectrum: Spectrum, names: Sequence[str], work: Path, progress: Progress
) -> dict[str, Space]:
    """The spaces by the base's tensor names; those found before a kill are read back.

    Matrices that are stored otherwise than they are in memory (single experts) have none. Raises NoEffectError where
    the alignment data touches nothing at all.
    """
    path = work / SUBSPACE
    if not is_whole(path):
        found = _measure(config, spectrum, set(names), progress)
        if not any(space.alignment.rank for space in found.values()):
            raise NoEffectError(
                f"alignment_data {config.alignment_data}",
                seen="examples that give no matrix of the base a gradient",
                expected="prompts with the aligned model's own answers",
                remedy="give the alignment set of this model",
            )
        write_spaces(found, path)
        seal(path)
    return read_spaces(path)


def _measure(config: MergeConfig, spectrum: Spectrum, names: set[str], progress: Progress) -> dict[str, Space]:
    alignment, axes = _bases(config, spectrum, config.base, str(config.alignment_data), config.load, names, progress)
    tuning: dict[str, Eigenbasis] = {}
    if config.tuning_data is not None:
        load = config.load.model_copy(update={"revision": None})  # a revision is the base's
        tuning, _ = _bases(config, spectrum, config.tuned[0], config.tuning_data, load, names, progress)
    return {name: Space(basis, tuning.get(name), axes[name]) for name, basis in alignment.items()}


def _bases(
    config: MergeConfig,
    spectrum: Spectrum,
    model: str,
    data: str,
    load: LoadConfig,
    names: set[str],
    progress: Progress,
) -> tuple[dict[str, Eigenbasis], dict[str, int]]:
    """Eigenbases by tensor name, and along which axis the inputs run."""
    import torch

    from alignkeep.data import read_examples
    from alignkeep.models.collectors import collect_factors
    from alignkeep.models.loading import load_model
    from alignkeep.models.matrices import matrices, passes, under_adapter
    from alignkeep.subspace.eigenbasis import eigenbasis

    examples = read_examples(data)
    if len(examples) > spectrum.examples:
        examples = random.Random(config.seed).sample(examples, spectrum.examples)
    loaded = load_model(model, load)
    modules = matrices(under_adapter(loaded.model)).modules
    stored = _stored_as([f"{module}.weight" for module in modules], names, config)
    found: dict[str, Eigenbasis] = {}
    for group in passes(modules):
        for module, factor in collect_factors(loaded, examples, modules=group, progress=progress).items():
            if f"{module}.weight" in stored:
                found[stored[f"{module}.weight"]] = eigenbasis(factor, spectrum.share, spectrum.most)
    # y = W x has its inputs along the last axis; Conv1D stores its weight (in, out).
    axes = {
        stored[f"{name}.weight"]: -1 if isinstance(part, torch.nn.Linear) else 0
        for name, part in modules.items()
        if f"{name}.weight" in stored
    }
    return found, axes


def _stored_as(names: Sequence[str], stored: set[str], config: MergeConfig) -> dict[str, str]:
    """Names on disk by names in memory; single experts have none."""
    from alignkeep.models.folders import localise, resolve
    from alignkeep.models.stored import stored_names

    if stored.issuperset(names):
        return {name: name for name in names}
    base = localise(resolve(config.base, config.load.revision)).folder
    renamed = {} if base is None else stored_names(base).renamed
    there = ((name, name if name in stored else renamed.get(name)) for name in names)
    return {name: place for name, place in there if place is not None}
