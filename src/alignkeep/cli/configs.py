"""From options to a config: `--config FILE` first, then the flags that were given, then `--set`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import typer
from pydantic import BaseModel

from alignkeep.checkpoint.files import jsonable
from alignkeep.errors import RecipeError
from alignkeep.recipe import REFERENCES, TESTBED, anchor
from alignkeep.settings import Checked, Settings

Config = TypeVar("Config", bound=BaseModel)


def config_of(
    cls: type[Config], file: Path | None, assignments: Sequence[str] | None, flags: Mapping[str, object]
) -> Config:
    """The config of one verb. Relative paths in the file are those of its folder.

    Raises RecipeError for a setting that does not fit, and typer's usage error where a required one is missing.
    """
    settings = Settings()
    if file is not None:
        settings = Settings.read(file)
        if issubclass(cls, Checked):
            settings.values = cls.placed(settings.values)
        settings.change(REFERENCES, lambda reference: anchor(reference, file.parent))
    settings.put_all(flags)
    settings.assign(assignments or ())
    missing = [name for name, field in cls.model_fields.items() if field.is_required() and name not in settings.values]
    if missing:
        raise typer.BadParameter(f"{' and '.join(missing)} must be given (as argument, option, --set or in --config).")
    settings.change(REFERENCES, _refuse_testbed)
    return settings.build(cls)


def facts_of(result: Any) -> dict[str, object]:
    """A stage's result as plain JSON values."""
    if hasattr(result, "as_json"):
        facts = result.as_json()
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        facts = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        facts = {name: value.as_json() if hasattr(value, "as_json") else value for name, value in facts.items()}
    elif isinstance(result, tuple):
        facts = result._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    else:
        facts = dict(cast(Mapping[str, object], result))
    return jsonable(facts)  # pyright: ignore[reportReturnType]


def _refuse_testbed(reference: str) -> str:
    if reference.startswith(TESTBED):
        raise RecipeError(
            reference,
            seen="a testbed reference on the command line",
            expected="a path, or such a reference in a recipe",
            remedy="write the testbed once with `alignkeep testbed --out T` and name its files",
        )
    return reference
