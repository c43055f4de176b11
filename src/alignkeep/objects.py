"""An object of a stranger's, named as `package.module:object` on the command line or in a recipe."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import BuiltinFunctionType

from alignkeep.checkpoint.files import says_no_memory
from alignkeep.errors import AlignkeepError, RecipeError

_SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_spec(text: str) -> bool:
    """Whether the text has the form `package.module:object`."""
    return _SPEC.fullmatch(text) is not None


def find_object(where: str, spec: str, *, expected: str) -> object:
    """What the spec names, a class as it stands.

    Raises RecipeError at `where` for another form, a name that is not there, and whatever the module raises as it is
    imported.
    """
    module, _, name = spec.partition(":")
    if not is_spec(spec):
        raise RecipeError(where, seen=repr(spec), expected=expected, remedy="write one of these")
    try:
        with _current_folder():
            found: object = import_module(module)
    except (Exception, SystemExit) as error:
        raise _unusable(where, spec, "imported", error, expected) from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise RecipeError(
                where, seen=f"no {name} in {module}", expected=expected, remedy="correct the name after the colon"
            ) from error
    return found


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules that stand where the command runs are found too, behind all that are installed."""
    here = os.getcwd()
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def load_object(where: str, spec: str, *, expected: str) -> object:
    """As `find_object`, but of a class an object, made without arguments."""
    found = find_object(where, spec, expected=expected)
    return make_object(where, spec, found, expected=expected) if isinstance(found, type) else found


def make_object(where: str, spec: str, kind: type, *, expected: str) -> object:
    """An object of the class that `spec` names. Raises RecipeError for whatever it raises as it is made."""
    try:
        return kind()
    except AlignkeepError:
        raise
    except (Exception, SystemExit) as error:
        raise _unusable(where, spec, "made", error, expected) from error


def call_object(where: str, spec: str, function: Callable[[], object], *, expected: str) -> object:
    """What the function that `spec` names returns. Raises RecipeError for whatever it raises, to leave the program
    too, and for a function built into Python: `os.abort` would end the process before anything could be said."""
    if isinstance(function, BuiltinFunctionType):
        raise RecipeError(
            where, seen=f"{spec}, a function built into Python", expected=expected, remedy="name one of your own"
        )
    try:
        return function()
    except AlignkeepError:
        raise
    except (Exception, SystemExit) as error:
        raise RecipeError(
            where,
            seen=f"{type(error).__name__}, raised by {spec} ({str(error)[:300]})",
            expected=expected,
            remedy="correct that function",
        ) from error


def code_of(spec: str) -> Path | None:
    """The file of the module that the spec names, which is imported already; None for one that was typed in."""
    file = getattr(sys.modules.get(spec.partition(":")[0]), "__file__", None)
    return None if file is None else Path(file)


@contextmanager
def faults_of(made: object, where: str, by: str, *, expected: str, remedy: str) -> Iterator[None]:
    """Whatever is raised in the code of a stranger's object, which errors call `by`, as RecipeError at `where`. What
    was `made` by us, and errors of ours, of memory and of the disk, are let through as they are."""
    try:
        yield
    except (AlignkeepError, MemoryError, OSError):
        raise
    except Exception as error:
        module = getattr(made, "__module__", None) or type(made).__module__
        if says_no_memory(error) or module.partition(".")[0] == __name__.partition(".")[0]:
            raise
        raise RecipeError(
            where, seen=f"{type(error).__name__}, raised by {by} ({str(error)[:200]})", expected=expected, remedy=remedy
        ) from error


def _unusable(where: str, spec: str, done: str, error: BaseException, expected: str) -> RecipeError:
    return RecipeError(
        where,
        seen=f"{spec!r} ({type(error).__name__}: {str(error)[:300]}), which cannot be {done}",
        expected=expected,
        remedy="check the name, and that Python finds the module: here, installed, or in PYTHONPATH",
    )
