"""A merge before its first number: models found, compared, method settled, and what it will take.

Every user error is raised here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from alignkeep.checkpoint.listing import sha256_of_file
from alignkeep.checkpoint.numbers import FORMATS
from alignkeep.data import fingerprint_data
from alignkeep.errors import CheckpointError, RecipeError
from alignkeep.merge.chat import check_templates, check_vocabulary
from alignkeep.merge.config import AUTO, MergeConfig
from alignkeep.merge.edits import edits_of
from alignkeep.merge.inputs import Models, read_models
from alignkeep.merge.mergekit import MergekitFile, read_mergekit
from alignkeep.merge.method import Asked, Rule, Space, Spectrum
from alignkeep.merge.methods import METHODS, Method, method_named, options_of
from alignkeep.merge.pieces import PIECE
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.models.folders import tensor_entries
from alignkeep.objects import code_of, faults_of, is_spec

_PROCESS = 200e6  # bytes that the process itself holds; chosen: measured in benchmarks/bench_merge.py
_STORED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Prepared:
    """What is merged and how. `config` names the models also where a mergekit file did; `notes` are for the reader."""

    config: MergeConfig
    models: Models
    file: MergekitFile | None
    notes: tuple[str, ...]

    @property
    def method(self) -> Method:
        return method_named(self.config.method)

    @property
    def spectrum(self) -> Spectrum | None:
        """What the method wants to have measured on alignment data."""
        return None if self.file is not None else spectrum_of(self.config)

    @property
    def has_weight(self) -> bool:
        """Whether one weight says how far to go; a mergekit file brings its own, and some methods find them."""
        return self.file is None and self.method.weighs is not None

    @property
    def tries(self) -> tuple[Prepared, ...]:
        """The merge by every method that `auto` tries; itself, where the method is named."""
        if self.config.method != AUTO:
            return (self,)
        return tuple(replace(self, config=config) for config in candidates(self.config))

    def rule(self, weight: float, spaces: Mapping[str, Space] | None = None) -> Rule:
        """The method of every tensor at this weight (a mergekit file brings its own weights)."""
        if self.file is not None:
            return self.file.rule(list(self.models.entries), seed=self.config.seed)
        return rule_of(self.config, weight, spaces)


def rule_of(config: MergeConfig, weight: float, spaces: Mapping[str, Space] | None = None) -> Rule:
    """What is done to the tensor of a name, with this weight of the tuned models. `spaces` are what was measured; a
    tensor that has none there is merged linearly."""
    method = method_named(config.method)
    asked = Asked(weight, len(config.tuned), options_of(method, config.options), config.seed, spaces or {})
    remedy = "mend the method; alignkeep.conformance.merge_method(object) tries it"
    with faults_of(method, f"method {config.method}", "its rule()", expected="a rule for every tensor", remedy=remedy):
        return method.rule(asked)


def spectrum_of(config: MergeConfig) -> Spectrum | None:
    """How much the method of the config wants to have measured on alignment data; None for one that needs none."""
    method = method_named(config.method)
    return method.spectrum(options_of(method, config.options))


def prepare(config: MergeConfig) -> Prepared:
    """Raises RecipeError, CheckpointError, ShapeError or DataError, naming what does not fit."""
    config.load.refuse_quantization("a merge")
    file = None if config.mergekit is None else read_mergekit(Path(config.mergekit))
    if file is not None:
        config = _with_file(config, file)
    if not config.base or not config.tuned:
        seen = "no base" if not config.base else "no tuned model"
        raise RecipeError(
            "models", seen=seen, expected="a base and what was tuned from it", remedy="give BASE TUNED [TUNED ...]"
        )
    if file is None:
        check_auto(config) if config.method == AUTO else check_method(config)
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
    if is_spec(config.method):
        method_named(config.method)  # imported, before its file is looked for
        if (code := code_of(config.method)) is not None:
            found["method"] = f"sha256:{sha256_of_file(code)}"
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


def candidates(config: MergeConfig) -> tuple[MergeConfig, ...]:
    """What `auto` tries: the merge by every method that says so and takes these models and data in this form, each with
    the data that it takes."""
    found: list[MergeConfig] = []
    for method in METHODS:
        least, most = method.models
        is_measured = method.spectrum(method.options()) is not None
        fits = least <= len(config.tuned) <= (most or len(config.tuned))
        fits = fits and (not is_measured or config.alignment_data is not None)
        if method.in_auto and fits and (config.form == "model" or method.adapter is not None):
            found.append(config.model_copy(update={
                "method": method.name,
                "alignment_data": config.alignment_data if is_measured else None,
                "tuning_data": config.tuning_data if method.takes_tuning_data else None,
            }))  # fmt: skip
    return tuple(found)


def check_auto(config: MergeConfig) -> None:
    """There is a sweep to choose the method, and nothing is given that none of the tried ones takes."""
    if config.sweep is None:
        raise _refused("method", "auto without a sweep", "a sweep, which chooses", "give --sweep, or name a method")
    tried = candidates(config)
    for key in ("alignment_data", "tuning_data"):
        if getattr(config, key) is not None and all(getattr(one, key) is None for one in tried):
            remedy = "give --alignment-data too" if key == "tuning_data" else "drop it, or name the method"
            raise _refused(key, f"{key} that no tried method takes", "some that one does", remedy)
    for one in tried:
        check_method(one)


def check_method(config: MergeConfig) -> None:
    """The method can be had for so many models, with this weight and data."""
    count, method, name = len(config.tuned), method_named(config.method), config.method
    options = options_of(method, config.options)
    if method.weighs == "share" and not 0 <= config.weight <= 1:
        raise _refused("weight", f"{config.weight:g}", f"a number in [0, 1]: {name} interpolates", "correct it")
    least, most = method.models
    if most is not None and count > most:
        expected = f"{_COUNTS.get(most, most)}, for {name}"
        raise _refused("tuned", f"{count} tuned models", expected, "merge them one after the other")
    if count < least:
        seen = f"{_COUNTS.get(count, count)} tuned model{'s' if count > 1 else ''}"
        raise _refused("tuned", seen, f"{_COUNTS.get(least, least)} or more, for {name}", "take --method linear")
    if method.weighs is None and ("weight" in config.model_fields_set or config.sweep is not None):
        raise _refused("weight", f"a weight for {name}", "none: it finds its own", "drop --weight and --sweep")
    if (method.spectrum(options) is not None) != (config.alignment_data is not None):
        seen = f"{name} {'without' if config.alignment_data is None else 'with'} alignment data"
        measuring = " and ".join(one.name for one in METHODS if one.spectrum(one.options()) is not None)
        raise _refused("alignment_data", seen, f"it for {measuring}, and only there", "mend that")
    if config.tuning_data is not None and not method.takes_tuning_data:
        takers = " and ".join(one.name for one in METHODS if one.takes_tuning_data)
        raise _refused("tuning_data", f"{name} with tuning data", f"it for {takers} only", "drop it")
    method.check(options)


_COUNTS = {1: "one", 2: "two", 3: "three"}


def _refused(where: str, seen: str, expected: str, remedy: str) -> RecipeError:
    return RecipeError(where, seen=seen, expected=expected, remedy=remedy)


def _check_form(config: MergeConfig, models: Models) -> None:
    adapters = [tuned.adapter for tuned in models.tuned]
    if config.form != "adapter":
        for adapter in adapters:
            if adapter is not None:
                adapter.refuse_untied()
        return
    fits = config.method == AUTO or method_named(config.method).adapter is not None
    if len(adapters) == 1 and adapters[0] is not None and fits:
        if adapters[0].fixed is None:
            return
        raise CheckpointError(
            f"{adapters[0].folder / 'adapter_config.json'}: {adapters[0].fixed}",
            seen="a change that is not proportional to alpha, so that no scale makes it smaller",
            expected="a plain or rank-stabilised LoRA for a merge that is an adapter again",
            remedy="take --as model, which is exact",
        )
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


def plan_merge(prepared: Prepared) -> dict[str, object]:
    """Counts are exact; memory, disk and seconds are rough, and leave out a sweep and the model it loads."""
    first, *more = prepared.tries
    shown = first.config.method if not more else f"the best of {', '.join(one.config.method for one in prepared.tries)}"
    config, models, prepared = first.config, prepared.models, first
    rule = prepared.rule(config.weight)
    edits = edits_of(models, rule)
    size = sum(entry.size for entry in models.entries.values())
    if config.form == "adapter":
        size = sum(entry.size for entry in tensor_entries(models.tuned[0].folder, adapter=True).values())
    held = (os.cpu_count() or 1) * PIECE * 4 * (3 + 2 * len(models.tuned))
    weights = len({0.0, 1.0, *config.sweep.weights}) if config.sweep is not None else 0
    return {
        "stage": "merge",
        "base": config.base,
        "tuned": list(config.tuned),
        "method": shown,
        "weight": f"measured at {weights} weights" if weights else config.weight if prepared.has_weight else None,
        "form": config.form,
        "tensors": len(models.entries),
        "merged": len(edits),
        "not_calculated_with": sum(entry.dtype not in FORMATS for entry in models.entries.values()),
        "memory_bytes": int(_PROCESS + held),
        "disk_bytes": size,
        "seconds": math.ceil(size / prepared.method.bytes_per_second),
        "notes": list(prepared.notes),
    }
