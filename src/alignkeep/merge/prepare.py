"""A merge before its first number: models found, compared, method settled. Every user error is raised here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alignkeep.checkpoint.listing import sha256_of_file
from alignkeep.data import fingerprint_data
from alignkeep.errors import CheckpointError, RecipeError
from alignkeep.merge.chat import check_templates, check_vocabulary
from alignkeep.merge.config import SPACED, MergeConfig
from alignkeep.merge.inputs import Models, read_models
from alignkeep.merge.mergekit import MergekitFile, read_mergekit
from alignkeep.merge.rules import Rule, check_method, rule_of
from alignkeep.merge.spaces import Space
from alignkeep.models.fingerprint import fingerprint_model

ADAPTABLE = ("linear", *SPACED)  # of one adapter they make an adapter again
_STORED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Prepared:
    """What is merged and how. `config` names the models also where a mergekit file did; `notes` are for the reader."""

    config: MergeConfig
    models: Models
    file: MergekitFile | None
    notes: tuple[str, ...]

    @property
    def has_weight(self) -> bool:
        """Whether one weight says how far to go; a mergekit file brings its own, Model Stock finds them."""
        return self.file is None and self.config.method != "model_stock"

    def rule(self, weight: float, spaces: Mapping[str, Space] | None = None) -> Rule:
        """The method of every tensor at this weight (a mergekit file brings its own weights)."""
        if self.file is not None:
            return self.file.rule(list(self.models.entries), seed=self.config.seed)
        return rule_of(self.config, weight, spaces)


def prepare(config: MergeConfig) -> Prepared:
    """Raises RecipeError, CheckpointError, ShapeError or DataError, naming what does not fit."""
    file = None if config.mergekit is None else read_mergekit(Path(config.mergekit))
    if file is not None:
        config = _with_file(config, file)
    if not config.base or not config.tuned:
        seen = "no base" if not config.base else "no tuned model"
        raise RecipeError(
            "models", seen=seen, expected="a base and what was tuned from it", remedy="give BASE TUNED [TUNED ...]"
        )
    check_method(config) if file is None else None
    models = read_models(config.base, config.tuned, config.load.revision)
    for tuned in models.tuned:
        check_vocabulary(models.base, tuned.folder)
        check_templates(models.base, tuned.folder, config.chat_template)
    _check_form(config, models)
    notes = list(models.notes)
    if file is not None:
        _check_dtype(file, models)
        file.rule(list(models.entries))
        notes += [*file.notes, *(f"filter {text!r} fits no tensor" for text in file.idle_filters(list(models.entries)))]
    if config.sweep is not None:
        from alignkeep.merge.sweep import check_sweep

        check_sweep(config)
    return Prepared(config, models, file, tuple(notes))


def fingerprints(config: MergeConfig) -> dict[str, str]:
    """Of everything a merge reads, by the role it plays; an adapter counts without its base, which is the merge's."""
    found = {"base": fingerprint_model(config.base, config.load.revision)}
    for number, tuned in enumerate(config.tuned, start=1):
        found["tuned" if len(config.tuned) == 1 else f"tuned {number}"] = fingerprint_model(tuned, with_base=False)
    if config.mergekit is not None:
        found["mergekit"] = f"sha256:{sha256_of_file(Path(config.mergekit))}"
    data = {"alignment_data": config.alignment_data, "tuning_data": config.tuning_data}
    if config.sweep is not None:
        data |= {"sweep.task": config.sweep.task, "sweep.prompts": config.sweep.prompts}
    return found | {name: fingerprint_data(path) for name, path in data.items() if path is not None}


def _with_file(config: MergeConfig, file: MergekitFile) -> MergeConfig:
    """The config with the models of the file. What the file settles may not be given a second time."""
    given = config.model_fields_set & {"base", "tuned", "method", "weight", "options", "alignment_data", "sweep"}
    if given:
        raise RecipeError(
            sorted(given)[0],
            seen=f"a setting beside {config.mergekit}",
            expected="models, method and weights in that file alone",
            remedy="drop the setting or the file",
        )
    return config.model_copy(update={"base": file.base, "tuned": file.tuned, "method": file.method})


def _check_form(config: MergeConfig, models: Models) -> None:
    adapters = [tuned.adapter for tuned in models.tuned]
    if config.form != "adapter":
        for adapter in adapters:
            if adapter is not None:
                adapter.refuse_untied()
        return
    if len(adapters) == 1 and adapters[0] is not None and config.method in ADAPTABLE:
        if adapters[0].fixed is None:
            return
        raise CheckpointError(
            f"{adapters[0].folder / 'adapter_config.json'}: {adapters[0].fixed}",
            seen="a change that is not proportional to alpha, so that no scale makes it smaller",
            expected="a plain or rank-stabilised LoRA for a merge that is an adapter again",
            remedy="take --as model, which is exact",
        )
    fits = config.method in ADAPTABLE
    raise RecipeError(
        "form",
        seen="adapter, for " + (f"a {config.method} merge" if not fits else f"{len(adapters)} models or full weights"),
        expected="a linear, fisher or alignment_subspace merge of one adapter, which alone is an adapter again",
        remedy="take --as model",
    )


def _check_dtype(file: MergekitFile, models: Models) -> None:
    kinds = {entry.dtype for entry in models.entries.values() if entry.dtype in _STORED.values()}
    if file.dtype is None or kinds <= {_STORED[file.dtype]}:
        return
    raise RecipeError(
        f"{file.source}: dtype",
        seen=file.dtype,
        expected=f"{' and '.join(sorted(kinds))}, the base's own, in which every tensor is written",
        remedy="drop dtype and out_dtype (arithmetic is in float32 anyway), and convert afterwards",
    )
