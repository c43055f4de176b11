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

from pydantic import BaseModel, Field, create_model, model_validator

from alignkeep.errors import RecipeError
from alignkeep.input_files import user_path
from alignkeep.models.endpoint import is_endpoint
from alignkeep.report.config import ReportConfig
from alignkeep.settings import Checked, Key, Settings
from alignkeep.stage import Made, Stage
from alignkeep.stages import STAGES

TESTBED = "testbed:"
_NAMES = [stage.name for stage in STAGES]
# Settings that point to something, in a recipe and in the config of a single verb.
REFERENCES: tuple[Key, ...] = (
    ("model",),
    *(key for stage in STAGES for key in stage.references),
    *((stage.name, *key) for stage in STAGES for key in stage.references),
)
_LOCAL_ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".gz", ".yaml", ".yml")
_STAGES: Any = {stage.name: (stage.config | None, None) for stage in STAGES}


class Top(Checked):
    """What stands at the top of a recipe."""

    name: str = Field(min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    model: str = Field(min_length=1)


class Recipe(create_model("Stages", __base__=Top, **_STAGES)):
    """A whole tune. The models of the stages are filled in, not given; only a merge without a train stage before it
    names what was tuned. Of an injection after a tune or merge the base gives the direction, and what the tune was
    trained on is text on which the edit is silent, unless they are given."""

    report: ReportConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_stages(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        given = dict(values)
        for stage in STAGES:
            if stage.name in given and (given[stage.name] is None or isinstance(given[stage.name], dict)):
                values[stage.name] = stage.fill(given[stage.name] or {}, given)
        if "report" in given and given["report"] is None:
            values["report"] = {}
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
        Raises RecipeError naming key, line, what was found and what was expected.
        """
        settings = _placed(Settings.read(Path(path)))
        settings.change(REFERENCES, lambda reference: anchor(reference, Path(path).parent))
        settings.values.setdefault("name", Path(path).stem)
        if over is not None:
            layer = _placed(Settings.read(over))
            layer.change(REFERENCES, lambda reference: anchor(reference, over.parent))
            settings.lay(layer)
        wanted = {key: value for key, value in (flags or {}).items() if key.partition(".")[0] not in _NAMES}
        wanted |= {key: value for key, value in (flags or {}).items() if key.partition(".")[0] in settings.values}
        settings.put_all(wanted)
        settings.assign(assignments)
        return cls.from_settings(settings)

    @classmethod
    def from_settings(cls, settings: Settings) -> Recipe:
        """Raises RecipeError for a key that does not fit, and for a stage list that makes nothing."""
        for stage in STAGES:
            given = settings.values.get(stage.name)
            for key in stage.filled:
                if isinstance(given, dict) and key in given:
                    raise RecipeError(
                        settings.where((stage.name, key)),
                        seen=f"a model in the {stage.name} stage",
                        expected="one model, at the top of the recipe",
                        remedy="move it to the key model",
                    )
        recipe = settings.build(cls)
        if not recipe.steps:
            raise RecipeError(
                settings.source,
                seen="no stage",
                expected=f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}",
                remedy=f"add {_NAMES[-1]}: {{}}",
            )
        made = Made(recipe.model)
        for stage, config in recipe.steps:
            misfit = stage.misfit(config, made)
            if misfit is not None:
                raise RecipeError(
                    settings.where(misfit.key), seen=misfit.seen, expected=misfit.expected, remedy=misfit.remedy
                )
            made = stage.hand_on(config, made, None)
        if recipe.report is not None and not any(stage.measures for stage, _ in recipe.steps):
            raise RecipeError(
                settings.where(("report",)),
                seen="a report without an evaluation",
                expected="something to report",
                remedy="add evaluate: {}",
            )
        return recipe

    @property
    def steps(self) -> tuple[tuple[Stage[Any, Any, Any], BaseModel], ...]:
        """The recipe's stages with their configs, in the order of a tune's life."""
        found = ((stage, getattr(self, stage.name)) for stage in STAGES)
        return tuple((stage, config) for stage, config in found if config is not None)

    def with_references(self, resolve: Callable[[str], str]) -> Recipe:
        """The same recipe with every reference to a model or a file replaced by `resolve(reference)`."""
        update: dict[str, object] = {"model": resolve(self.model)}
        for stage, config in self.steps:
            for key in stage.references:
                config = _changed(config, key, resolve)
            update[stage.name] = config.model_copy(update={stage.filled[0]: update["model"]})
        return self.model_copy(update=update)


def _placed(settings: Settings) -> Settings:
    """With what stands outside of its group in it, so that references are found."""
    for stage in STAGES:
        given = settings.values.get(stage.name)
        if isinstance(given, dict) and issubclass(stage.config, Checked):
            settings.values[stage.name] = stage.config.placed(given)
    return settings


def _changed(config: Any, key: Key, change: Callable[[str], str]) -> Any:
    """The config with the reference at `key` (or each of several) changed; as it is, where none stands there."""
    name, *inner = key
    if isinstance(config, dict):  # options of an object that brings its own
        return {**config, name: change(config[name])} if isinstance(config.get(name), str) else config
    value = getattr(config, name)
    if value is None or value == "":
        return config
    if inner:
        return config.model_copy(update={name: _changed(value, tuple(inner), change)})
    return config.model_copy(update={name: tuple(map(change, value)) if isinstance(value, tuple) else change(value)})


def anchor(reference: str, folder: Path) -> str:
    """A path relative to `folder` as an absolute one; a hub id, a name or a `testbed:` reference as it is."""
    path = user_path(reference)
    if reference.startswith(TESTBED) or is_endpoint(reference):
        return reference
    if path.is_absolute():
        return str(path)
    looks_local = reference.startswith(".") or reference.endswith(_LOCAL_ENDINGS)
    return str((folder / path).resolve()) if looks_local or (folder / path).exists() else reference
