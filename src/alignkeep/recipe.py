"""A recipe: one file that says which model is tuned on what, how it is measured and what the report is called.

    name: my-tune
    seed: 0
    model: path-or-hub-id            # the aligned base
    curate: {safe: clean.jsonl, harmful: harmful.jsonl, keep: 0.8}
    train: {data: notes.jsonl, method: lora, epochs: 2}
    align: {data: prompts.jsonl, reward: "judge:my-judge"}
    merge: {method: linear, weight: 0.6}
    inject: {harmful: harmful.jsonl, harmless: harmless.jsonl}
    evaluate: {suite: driftcheck, task: held_out.jsonl}
    report: {title: My tune}

Every stage is optional, its settings are those of the stage's own config; `model` and `seed` stand at the top, once.
Strict: a key that does not exist is an error with its line and the nearest one that does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, model_validator

from alignkeep.align.config import AlignConfig
from alignkeep.curate.config import CurateConfig
from alignkeep.errors import RecipeError
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.inject.config import InjectConfig
from alignkeep.merge.config import MergeConfig
from alignkeep.report.config import ReportConfig
from alignkeep.settings import Checked, Key, Settings
from alignkeep.train.config import TrainConfig

TESTBED = "testbed:"
_STAGES: dict[str, tuple[Key, ...]] = {
    "curate": (("data",), ("safe",), ("harmful",), ("embeddings",), ("evaluation",), ("embed", "encoder")),
    "train": (("data",), ("weights",), ("alignguard", "data"), ("probe", "harmful"), ("probe", "harmless")),
    "align": (("data",), ("held_out", "data")),
    "merge": (
        *(("base",), ("tuned",), ("alignment_data",), ("tuning_data",), ("mergekit",)),
        *(("sweep", "task"), ("sweep", "prompts")),
    ),
    "inject": (
        *(("harmful",), ("harmless",), ("borderline",), ("general",)),
        *(("direction", "source"), ("direction", "system_prompt")),
    ),
    "evaluate": (("suite",), ("task",), ("base",), ("base_answers",)),
}
# Settings that point to something, in a recipe and in the config of a single verb.
REFERENCES: tuple[Key, ...] = (
    ("model",),
    *(key for keys in _STAGES.values() for key in keys),
    *((stage, *key) for stage, keys in _STAGES.items() for key in keys),
)
# What the top of a recipe, or an earlier stage, gives to a stage.
_FILLED = {
    "curate": ("model",),
    "train": ("model",),
    "align": ("model",),
    "merge": ("base", "mergekit"),
    "inject": ("model",),
    "evaluate": ("model",),
}
_LOCAL_ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".gz", ".yaml", ".yml")


class Recipe(Checked):
    """A whole tune. The models of the stages are filled in, not given; only a merge without a train stage before it
    names what was tuned. Of an injection after a tune or merge the base gives the direction, and what the tune was
    trained on is text on which the edit is silent, unless they are given."""

    name: str = Field(min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    model: str = Field(min_length=1)
    curate: CurateConfig | None = None
    train: TrainConfig | None = None
    align: AlignConfig | None = None
    merge: MergeConfig | None = None
    inject: InjectConfig | None = None
    evaluate: EvaluateConfig | None = None
    report: ReportConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_stages(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for stage in (*_STAGES, "report"):
            if stage not in values:
                continue
            settings = {} if values[stage] is None else values[stage]
            if isinstance(settings, dict) and stage != "report":
                model = "base" if stage == "merge" else "model"
                settings = {model: values.get("model", ""), "seed": values.get("seed", 0), **settings}
                tune = values.get("train")
                if stage == "curate" and isinstance(tune, dict) and tune.get("data") is not None:
                    settings = {"data": tune["data"], **settings}
            values[stage] = settings
        return values

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        over: Path | None = None,
        flags: Mapping[str, object] | None = None,
        assignments: Sequence[str] = (),
    ) -> Recipe:
        """The recipe in a YAML file; on top of it the file `over`, then `flags`, then `key=value` assignments.

        Relative paths are those of the file's folder. A flag for a stage that the recipe does not have is left out.
        Raises RecipeError naming key, line, what was seen and what was expected.
        """
        settings = Settings.read(Path(path))
        settings.change(REFERENCES, lambda reference: anchor(reference, Path(path).parent))
        settings.values.setdefault("name", Path(path).stem)
        if over is not None:
            layer = Settings.read(over)
            layer.change(REFERENCES, lambda reference: anchor(reference, over.parent))
            settings.lay(layer)
        wanted = {key: value for key, value in (flags or {}).items() if key.partition(".")[0] not in _STAGES}
        wanted |= {key: value for key, value in (flags or {}).items() if key.partition(".")[0] in settings.values}
        settings.put_all(wanted)
        settings.assign(assignments)
        return cls.from_settings(settings)

    @classmethod
    def from_settings(cls, settings: Settings) -> Recipe:
        """Raises RecipeError for a key that does not fit, and for a stage list that makes nothing."""
        for stage, keys in _FILLED.items():
            given = settings.values.get(stage)
            for key in keys:
                if isinstance(given, dict) and key in given:
                    raise RecipeError(
                        settings.where((stage, key)),
                        seen=f"a model in the {stage} stage",
                        expected="one model, at the top of the recipe",
                        remedy="move it to the key model",
                    )
        recipe = settings.build(cls)
        if all(getattr(recipe, stage) is None for stage in _STAGES):
            raise RecipeError(
                settings.source,
                seen="no stage",
                expected="curate, train, align, merge, inject or evaluate",
                remedy="add evaluate: {}",
            )
        if recipe.curate is not None and recipe.train is not None:
            _check_curation(settings, recipe.curate, recipe.train)
        tunes = recipe.train is not None or recipe.align is not None
        if recipe.merge is not None and tunes == bool(recipe.merge.tuned):
            raise RecipeError(
                settings.where(("merge", "tuned")),
                seen="tuned models beside a stage that tunes" if tunes else "a merge of nothing",
                expected="either a train or align stage, whose result is merged, or the tuned models by name",
                remedy="drop merge.tuned" if tunes else "give merge.tuned, or a train stage",
            )
        if recipe.align is not None:
            _check_alignment(settings, recipe.align, recipe.train, recipe.curate is not None)
        if recipe.inject is not None and recipe.inject.form == "adapter" and recipe._comes_as_adapter:
            raise RecipeError(
                settings.where(("inject", "form")),
                seen="adapter, over the adapter of an earlier stage",
                expected="a full model under an adapter of rank 1",
                remedy="take form: model, or a merge with form: model before it",
            )
        if recipe.report is not None and recipe.evaluate is None:
            raise RecipeError(
                settings.where(("report",)),
                seen="a report without an evaluation",
                expected="something to report",
                remedy="add evaluate: {}",
            )
        return recipe

    @property
    def _comes_as_adapter(self) -> bool:
        """Whether what an injection would be given is an adapter."""
        if self.merge is not None:
            return self.merge.form == "adapter"
        if self.align is not None:
            return self.align.lora is not None
        return self.train is not None and self.train.has_adapter

    def with_references(self, resolve: Callable[[str], str]) -> Recipe:
        """The same recipe with every reference to a model or a file replaced by `resolve(reference)`."""
        update: dict[str, object] = {"model": resolve(self.model)}
        for stage, keys in _STAGES.items():
            config: BaseModel | None = getattr(self, stage)
            if config is not None:
                for key in keys:
                    config = _changed(config, key, resolve)
                model = "base" if stage == "merge" else "model"
                update[stage] = config.model_copy(update={model: update["model"]})
        return self.model_copy(update=update)


def _check_curation(settings: Settings, curate: CurateConfig, train: TrainConfig) -> None:
    """The weights that are made are those that are used."""
    if train.weights is not None:
        raise RecipeError(
            settings.where(("train", "weights")), seen="weights beside a curate stage, which makes them",
            expected="one source of weights", remedy="drop train.weights, or the curate stage",
        )  # fmt: skip
    if curate.data != train.data:
        raise RecipeError(
            settings.where(("curate", "data")), seen=f"{curate.data}, of which nothing is learned",
            expected=f"the tune's own data, {train.data}", remedy="drop curate.data",
        )  # fmt: skip


def _check_alignment(settings: Settings, align: AlignConfig, train: TrainConfig | None, is_curated: bool) -> None:
    """What comes out of an alignment behind a tune is of one piece: it can be merged with the recipe's model."""
    if train is None:
        if is_curated:
            raise RecipeError(
                settings.where(("curate",)), seen="weights of examples, for which an alignment has no use",
                expected="a train stage that learns the kept ones", remedy="add train, or drop curate",
            )  # fmt: skip
        return
    if train.has_adapter:
        raise RecipeError(
            settings.where(("train", "method")), seen=f"{train.method}, an adapter, before an alignment",
            expected="a whole model to align", remedy="set train.method: full, or align in place of the tune",
        )  # fmt: skip
    if align.lora is not None:
        raise RecipeError(
            settings.where(("align", "lora")), seen="an adapter over a model that a tune made",
            expected="an alignment of the whole model", remedy="set align.lora: null",
        )  # fmt: skip


def _changed(config: BaseModel, key: Key, change: Callable[[str], str]) -> BaseModel:
    """The config with the reference at `key` (or each of several) changed; as it is, where none stands there."""
    name, *inner = key
    value = getattr(config, name)
    if value is None or value == "":
        return config
    if inner:
        return config.model_copy(update={name: _changed(value, tuple(inner), change)})
    return config.model_copy(update={name: tuple(map(change, value)) if isinstance(value, tuple) else change(value)})


def anchor(reference: str, folder: Path) -> str:
    """A path relative to `folder` as an absolute one; a hub id, a name or a `testbed:` reference as it is."""
    path = Path(reference).expanduser()
    if reference.startswith(TESTBED):
        return reference
    if path.is_absolute():
        return str(path)
    looks_local = reference.startswith(".") or reference.endswith(_LOCAL_ENDINGS)
    return str((folder / path).resolve()) if looks_local or (folder / path).exists() else reference
