"""What all checks of an object do: look at members, call, compare, and say in one line what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from alignkeep.errors import AlignkeepError, RecipeError

Result = TypeVar("Result")


def what_of(kind: str, obj: object) -> str:
    """How errors call the object."""
    return f"{kind} {getattr(obj, '__name__', type(obj).__name__)}"


def member(what: str, obj: object, name: str, kind: type[Result]) -> Result:
    """The member of this name and kind. Raises RecipeError where there is none."""
    if not hasattr(obj, name):
        raise unfit(f"{what}.{name}", "nothing", "a member of this name")
    value: object = getattr(obj, name)
    if not isinstance(value, kind):
        raise unfit(f"{what}.{name}", f"{value!r:.80}", f"a {kind.__name__}")
    return value


def method_of(what: str, obj: object, name: str) -> Callable[..., object]:
    """The method of this name. Raises RecipeError where there is none."""
    method = member(what, obj, name, object)
    if not callable(method):
        raise unfit(f"{what}.{name}", f"{method!r:.80}", "a method")
    return method


def called(where: str, call: Callable[[], Result], given: str) -> Result:
    """What the call gives; whatever it raises is the object\'s fault, a RecipeError at `where`."""
    try:
        return call()
    except AlignkeepError as error:
        raise unfit(error.where if where in error.where else where, error.seen, error.expected) from error
    except Exception as error:
        raise unfit(where, f"{type(error).__name__}: {str(error)[:200]} {given}", "an answer to every input") from error


def expect(holds: bool, where: str, seen: str, expected: str) -> None:
    """Raises RecipeError at `where` unless it holds."""
    if not holds:
        raise unfit(where, seen, expected)


def unfit(where: str, seen: str, expected: str) -> RecipeError:
    """The error of an object that is not what its Protocol says."""
    return RecipeError(where, seen=seen, expected=expected, remedy="mend the object")
