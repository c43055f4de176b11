"""A room that is one verb can be called: `alignkeep.evaluate(...)` is `alignkeep.evaluate.stage.evaluate(...)`."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType


class Room(ModuleType):
    """A package whose call is its stage, and whose public names are imported on first use."""

    public: dict[str, str]

    def __call__(self, *args: object, **kwargs: object) -> object:
        verb = self.__name__.rpartition(".")[2]
        return getattr(import_module(f"{self.__name__}.stage"), verb)(*args, **kwargs)

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
