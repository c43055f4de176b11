"""The methods that come with the package, and the way to one by its name or as `package.module:object`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import get_args

from pydantic import BaseModel

from alignkeep.curate.method import CurationMethod, Needs, Reference
from alignkeep.curate.methods.bidirectional import Bidirectional
from alignkeep.curate.methods.dsir import ImportanceRatio
from alignkeep.curate.methods.mean_cosine import MeanCosine
from alignkeep.curate.methods.random import Chance
from alignkeep.curate.methods.sot import PushPull
from alignkeep.errors import RecipeError
from alignkeep.objects import is_spec, load_object
from alignkeep.settings import described
from alignkeep.works import Citation, Work, works

METHODS: tuple[CurationMethod, ...] = (PushPull(), MeanCosine(), ImportanceRatio(), Bidirectional(), Chance())
NAMES = tuple(method.name for method in METHODS)
FORMS = f"{', '.join(NAMES)}, or package.module:object"
_REMEDY = "make it as alignkeep.curate.method.CurationMethod says"


@cache
def load_method(spec: str) -> CurationMethod:
    """The method of this name, or the one that `package.module:object` names. Raises RecipeError where there is none,
    or where the object breaks the Protocol."""
    for method in METHODS:
        if method.name == spec:
            return method
    if not is_spec(spec):
        raise RecipeError("method", seen=repr(spec), expected=FORMS, remedy="choose one of these")
    return as_method(load_object("method", spec, expected=FORMS), spec)


def as_method(found: object, spec: str) -> CurationMethod:
    """The object itself. Raises RecipeError naming object and member for the first one that is not as it should be."""
    for member, fits, expected in _MEMBERS:
        seen = getattr(found, member, None)
        if not hasattr(found, member) or not fits(seen):
            raise RecipeError(
                f"method {spec}: {member}", seen="no such member" if seen is None else f"{seen!r:.80}",
                expected=expected, remedy=_REMEDY,
            )  # fmt: skip
    return found  # pyright: ignore[reportReturnType]


def listing(more: str | None = None) -> Iterator[str]:
    """Every way to choose, and the one that `more` names, with what it does and its options: lines for a reader."""
    own = [load_method(more)] if more is not None and is_spec(more) else []
    for method in (*METHODS, *own):
        yield f"{method.name if method in METHODS else more}: {method.title}"
        yield from (f"    {line}" for line in described(method.options))


def cited(spec: str) -> tuple[Citation, ...]:
    """What a curation by this method is cited for; nothing of a stranger's whose module is not here any more."""
    try:
        rule = load_method(spec)
    except RecipeError:
        return ()
    is_cited = rule.works or rule.departures
    return (Citation(rule.name, rule.title, rule.works, rule.departures),) if is_cited else ()


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _has_defaults(value: object) -> bool:
    if not (isinstance(value, type) and issubclass(value, BaseModel)):
        return False
    return not any(field.is_required() for field in value.model_fields.values())


def _all(value: object, *wanted: object) -> bool:
    """Whether it is a tuple of these values, or of instances of the types among them."""
    types = tuple(one for one in wanted if isinstance(one, type))
    return isinstance(value, tuple) and all(one in wanted or isinstance(one, types) for one in value)


_MEMBERS = (
    ("name", _is_name, "a name"),
    ("title", _is_name, "what it does, in a few words"),
    ("needs", lambda value: value in get_args(Needs), "one of " + ", ".join(get_args(Needs))),
    ("reads", lambda value: _all(value, *get_args(Reference)), "a tuple of safe, harmful, or none of them"),
    ("options", _has_defaults, "a pydantic model whose settings all have defaults"),
    ("works", lambda value: _all(value, Work, *works()), "a tuple of alignkeep.works.Work"),
    ("departures", lambda value: _all(value, str), "a tuple of sentences"),
    ("weighs", callable, "a method weighs(options)"),
    ("trials", callable, "a method trials(options)"),
    ("memory", callable, "a method memory(counts, options)"),
    ("score", callable, "a method score(given, options)"),
)
