"""The defences that a tune may have beside plain LoRA and full tuning. One more is a file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from alignkeep import settings
from alignkeep.errors import RecipeError
from alignkeep.objects import faults_of, is_spec, load_object
from alignkeep.settings import Settings, nearest
from alignkeep.train.align_guard import ALIGNGUARD
from alignkeep.train.defence import Base, Before, Defence, Measured, Outcome
from alignkeep.train.kl_anchor import KL_ANCHOR
from alignkeep.train.replay import REPLAY

Result = TypeVar("Result")

DEFENCES: tuple[Defence[Any], ...] = (ALIGNGUARD, KL_ANCHOR, REPLAY)
_FORM = "package.module:object"
_METHODS = ("is_off", "files", "check", "foresee", "memory", "examples_beside", "measure", "attach")


@dataclass(frozen=True)
class Chosen:
    """A defence with its options; `name` is what it was chosen by, `key` the group of settings that they stand in.

    Its calls are the defence's. What one of a stranger raises is a RecipeError that names the member.
    """

    name: str
    defence: Defence[Any]
    options: BaseModel
    key: str

    @property
    def is_off(self) -> bool:
        return bool(self._called("is_off", lambda: self.defence.is_off(self.options)))

    @property
    def files(self) -> dict[str, str]:
        """What it reads, by setting."""
        files = self._called("files", lambda: self.defence.files(self.options))
        return {f"{self.key}.{option}": file for option, file in files.items()}

    def check(self, before: Before) -> None:
        self._called("check", lambda: self.defence.check(self.options, before))

    def foresee(self, before: Before) -> tuple[str, ...]:
        return self._called("foresee", lambda: self.defence.foresee(self.options, before))

    def memory(self, before: Before) -> int:
        return self._called("memory", lambda: self.defence.memory(self.options, before))

    @property
    def examples_beside(self) -> int:
        return self._called("examples_beside", lambda: self.defence.examples_beside(self.options))

    def measure(self, base: Base) -> Measured:
        return self._called("measure", lambda: self.defence.measure(self.options, base))

    def attach(self, measured: Measured, trainer: Any) -> Callable[[], Outcome]:
        outcome = self._called("attach", lambda: self.defence.attach(self.options, measured, trainer))
        return outcome or (lambda: Outcome({}))

    def _called(self, member: str, call: Callable[[], Result]) -> Result:
        remedy, by = "mend it; alignkeep.conformance.defence(object) tries it", f"{self.name}.{member}"
        with faults_of(self.defence, "train.method", by, expected="a defence that works", remedy=remedy):
            return call()


def expected(beside: Iterable[str] = ()) -> str:
    """What may be named, for an error."""
    return ", ".join(f"'{one}'" for one in (*beside, *(one.name for one in DEFENCES))) + f" or {_FORM}"


def is_known(name: str) -> bool:
    """Whether it is one of ours, or has the form of a stranger's."""
    return is_spec(name) or any(one.name == name for one in DEFENCES)


def find_defence(where: str, name: str) -> Defence[Any]:
    """One of ours, or the object that is named. Raises RecipeError for another name, and for an object that is no
    defence, with the member that is not as it should be."""
    ours = next((one for one in DEFENCES if one.name == name), None)
    return ours or checked(where, name, load_object(where, name, expected=expected()))


def checked(where: str, name: str, found: Any) -> Defence[Any]:
    """The object, if it has the members of a Defence."""
    for member, kind in (("name", str), ("title", str), ("options", type), ("strength", str)):
        value = getattr(found, member, None)
        if not isinstance(value, kind) or not value:
            raise _unfit(where, f"{name}.{member}", f"{value!r:.80}", "a class" if kind is type else "text")
    if not issubclass(found.options, BaseModel):
        raise _unfit(where, f"{name}.options", found.options.__name__, "a pydantic model, as settings.Checked")
    if not found.name.isidentifier():
        raise _unfit(where, f"{name}.name", repr(found.name)[:80], "a word: terms are logged under it")
    if found.strength not in found.options.model_fields:
        options = ", ".join(found.options.model_fields)
        raise _unfit(where, f"{name}.strength", repr(found.strength)[:80], f"one of its options ({options})")
    for member in _METHODS:
        if not callable(getattr(found, member, None)):
            raise _unfit(where, f"{name}.{member}", "nothing that can be called", "a method (subclass Defence)")
    return found


def choose(name: str, given: Mapping[str, Any], key: str) -> Chosen:
    """The defence of this name with its options. Raises RecipeError for what does not fit, with the nearest name."""
    defence = find_defence("train.method", name)
    known = defence.options.model_fields
    for option in given.keys() - known.keys():  # pydantic passes over them unless it is told not to
        raise RecipeError(
            f"{key}.{option}", seen="an unknown key", expected=f"one of {', '.join(known)}",
            remedy=f"did you mean {near}?" if (near := nearest(option, known)) else "remove it",
        )  # fmt: skip
    source = Settings(dict(given), source=f"options of {defence.name}")
    try:
        return Chosen(name, defence, defence.options.model_validate(source.values), key)
    except ValidationError as error:
        told = source.explained(defence.options, error)
        raise RecipeError(f"{key}.{told.where}", seen=told.seen, expected=told.expected, remedy=told.remedy) from error


def listing(more: str | None = None) -> Iterator[str]:
    """Every defence, and the one that `more` names, with what it does and its options: lines for a reader."""
    own = [find_defence("method", more)] if more is not None and is_spec(more) else []
    for one in (*DEFENCES, *own):
        yield f"{one.name if one in DEFENCES else more}: {one.title}"
        yield from (f"    {line}" for line in settings.described(one.options))


def described(options: type[BaseModel]) -> dict[str, str]:
    """Every option with what is said of it: its description, or that its class's docstring names it."""
    said = options.__doc__ or ""
    return {
        name: field.description or (f"see {options.__name__}" if f"`{name}`" in said else "")
        for name, field in options.model_fields.items()
    }


def _unfit(where: str, member: str, seen: str, wanted: str) -> RecipeError:
    return RecipeError(where, seen=f"{seen} as {member}", expected=wanted, remedy="mend the object")
