"""A room that is one verb can be called: `alignkeep.evaluate(...)` is `alignkeep.evaluate.stage.evaluate(...)`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


class Room(ModuleType):
    """A package whose call is its stage, and whose public names are imported on first use."""

    public: dict[str, str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The stage on a config, or on its settings: the first in order, the others by name."""
        return called(self._verb, args, kwargs)

    @property
    def _verb(self) -> Callable[..., Any]:
        return getattr(import_module(f"{self.__name__}.stage"), self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the stage, with the settings of its config, for an editor or notebook that asks a living object."""
        return _signature(self._verb)

    def __getattr__(self, name: str) -> object:
        public: dict[str, str] = self.__dict__.get("public", {})
        if name not in public:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        file = public[name]
        value = getattr(import_module(file if "." in file else f"{self.__name__}.{file}"), name)
        setattr(self, name, value)
        return value


def called(verb: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """Call a stage that takes a config with the config itself, or with its settings as arguments. Without `out` it is
    written to `VERB-MODEL` in the working folder. Raises RecipeError for a setting that does not fit."""
    cls = _config_of(verb)
    if cls is None or "config" in given or (args and isinstance(args[0], cls)):
        return verb(*args, **given)
    own = {name: given.pop(name) for name in list(given) if name in inspect.signature(verb).parameters}
    order = cls.positional or tuple(cls.model_fields)[:1]
    if len(args) > len(order) and not str(cls.model_fields[order[-1]].annotation).startswith("tuple"):
        raise TypeError(f"{verb.__name__}() takes {len(order)} settings in order ({', '.join(order)}), not {len(args)}")
    values = dict(zip(order, args, strict=False))
    if len(args) >= len(order) > 1:
        values[order[-1]] = args[len(order) - 1 :]
    doubled = values.keys() & given.keys()
    if doubled:
        raise TypeError(f"{verb.__name__}() got {min(doubled)} twice")
    config = cls(**_as_text({**values, **given}))
    named = getattr(config, order[-1])
    named = named[0] if isinstance(named, tuple) and named else named
    own.setdefault("out", Path(f"{verb.__name__}-{Path(str(named or 'merged')).name}"))
    return verb(config, **own)


def _config_of(verb: Callable[..., Any]) -> Any:
    """The config that a stage takes first; None for one that takes none."""
    parameter = inspect.signature(verb).parameters.get("config")
    name = "" if parameter is None else str(parameter.annotation)
    return vars(sys.modules[verb.__module__]).get(name)


def _as_text(value: Any) -> Any:
    """Paths as the text that settings are, wherever they stand."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _as_text(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_as_text, value)) if type(value) in (list, tuple) else value
    return value


def _signature(verb: Callable[..., Any]) -> inspect.Signature:
    found = inspect.signature(verb)
    cls = _config_of(verb)
    if cls is None:
        return found
    taken = {**found.parameters}
    config = taken.pop("config")
    settings = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=field.annotation, default=None)
        for name, field in cls.model_fields.items() if name not in taken
    ]  # fmt: skip
    return found.replace(parameters=[config.replace(default=None), *settings, *taken.values()])


def open_room(package: str, public: dict[str, str] | None = None) -> None:
    """Make the package callable; `public` maps a name to the file of the room that holds it, or to a module
    of another part."""
    room = sys.modules[package]
    room.__class__ = Room
    room.__dict__["public"] = public or {}
