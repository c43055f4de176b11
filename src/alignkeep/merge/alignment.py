"""Which directions of every matrix's input alignment rests on, and which the tune: measured once and kept.

The base is asked with alignment data, and for `fisher` the tuned model with its own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from alignkeep.checkpoint.parts import is_whole, seal
from alignkeep.data import read_examples
from alignkeep.errors import NoEffectError
from alignkeep.merge.config import MergeConfig
from alignkeep.merge.spaces import SUBSPACE, Space, read_spaces, write_spaces
from alignkeep.models.collectors import collect_factors
from alignkeep.models.config import LoadConfig
from alignkeep.models.folders import localise, resolve
from alignkeep.models.loading import load_model
from alignkeep.models.matrices import matrices, passes, under_adapter
from alignkeep.models.stored_names import stored_names
from alignkeep.progress import Progress
from alignkeep.subspace.balance import RANK
from alignkeep.subspace.eigenbasis import MOST, Eigenbasis, eigenbasis


def alignment_spaces(config: MergeConfig, names: Sequence[str], work: Path, progress: Progress) -> dict[str, Space]:
    """The spaces by the base's tensor names; those found before a kill are read back.

    Matrices that are stored otherwise than they are in memory (single experts) have none. Raises NoEffectError where
    the alignment data touches nothing at all.
    """
    path = work / SUBSPACE
    if not is_whole(path):
        found = _measure(config, set(names), progress)
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


def _measure(config: MergeConfig, names: set[str], progress: Progress) -> dict[str, Space]:
    alignment, axes = _bases(config, config.base, str(config.alignment_data), config.load, names, progress)
    tuning: dict[str, Eigenbasis] = {}
    if config.tuning_data is not None:
        load = config.load.model_copy(update={"revision": None})  # a revision is the base's
        tuning, _ = _bases(config, config.tuned[0], config.tuning_data, load, names, progress)
    return {name: Space(basis, tuning.get(name), axes[name]) for name, basis in alignment.items()}


def _bases(
    config: MergeConfig, model: str, data: str, load: LoadConfig, names: set[str], progress: Progress
) -> tuple[dict[str, Eigenbasis], dict[str, int]]:
    """Eigenbases by tensor name, and along which axis the inputs run."""
    share, most = (config.options.share, MOST) if config.method == "alignment_subspace" else (1.0, RANK)
    examples = read_examples(data)
    if len(examples) > config.options.examples:
        examples = random.Random(config.seed).sample(examples, config.options.examples)
    loaded = load_model(model, load)
    modules = matrices(under_adapter(loaded.model)).modules
    stored = _stored_as([f"{module}.weight" for module in modules], names, config)
    found: dict[str, Eigenbasis] = {}
    for group in passes(modules):
        for module, factor in collect_factors(loaded, examples, modules=group, progress=progress).items():
            if f"{module}.weight" in stored:
                found[stored[f"{module}.weight"]] = eigenbasis(factor, share, config.options.most or most)
    # y = W x has its inputs along the last axis; Conv1D stores its weight (in, out).
    axes = {
        stored[f"{name}.weight"]: -1 if isinstance(part, torch.nn.Linear) else 0
        for name, part in modules.items()
        if f"{name}.weight" in stored
    }
    return found, axes


def _stored_as(names: Sequence[str], stored: set[str], config: MergeConfig) -> dict[str, str]:
    """Names on disk by names in memory; single experts have none."""
    if stored.issuperset(names):
        return {name: name for name in names}
    base = localise(resolve(config.base, config.load.revision)).folder
    renamed = {} if base is None else stored_names(base).renamed
    there = ((name, name if name in stored else renamed.get(name)) for name in names)
    return {name: place for name, place in there if place is not None}
