"""A room that is one verb can be called: `alignkeep.evaluate(...)` is `alignkeep.evaluate.stage.evaluate(...)`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class Room(ModuleType):
    """A package whose call is its stage, and whose public names are imported on first use."""

    public: dict[str, str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._verb(*args, **kwargs)

    @property
    def _verb(self) -> Callable[..., Any]:
        return getattr(import_module(f"{self.__name__}.stage"), self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the stage, for an editor or a notebook that asks a living object."""
        return inspect.signature(self._verb)

    def __getattr__(self, name: str) -> object:
        public: dict[str, str] = self.__dict__.get("public", {})
        if name not in public:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        file = public[name]
        value = getattr(import_module(file if "." in file else f"{self.__name__}.{file}"), name)
        setattr(self, name, value)
        return value


def open_room(package: str, public: dict[str, str] | None = None) -> None:
    """Make the package callable; `public` maps a name to the file of the room that holds it, or to a module
    of another part."""
    room = sys.modules[package]
    room.__class__ = Room
    room.__dict__["public"] = public or {}
