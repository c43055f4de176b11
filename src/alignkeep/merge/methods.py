"""The merge methods there are, and how one is found: by name, as `package.module:object`, or as the object itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from alignkeep.errors import RecipeError
from alignkeep.merge import arcs, input_maps, linear, model_stock, pruning
from alignkeep.merge.method import MergeMethod
from alignkeep.objects import is_spec, load_object
from alignkeep.settings import Checked, described, nearest
from alignkeep.works import Citation, works

Method = MergeMethod[Any]

METHODS: tuple[Method, ...] = (
    *linear.METHODS, *arcs.METHODS, *model_stock.METHODS, *pruning.METHODS, *input_maps.METHODS,
)  # fmt: skip
_BY_NAME = {method.name: method for method in METHODS}
_MOST_CITED = 20  # of a record, which may be anybody's
_EXPECTED = f"{', '.join(_BY_NAME)}, or package.module:object"


def method_named(reference: str) -> Method:
    """Ours of this name, or what `package.module:object` names, of a class an object.

    Raises RecipeError for a name that there is not, an object that cannot be had, and one that is no merge method.
    """
    if reference in _BY_NAME:
        return _BY_NAME[reference]
    if not is_spec(reference):
        near = nearest(reference, _BY_NAME)
        raise RecipeError("method", seen=repr(reference), expected=_EXPECTED,
                          remedy=f"did you mean {near}?" if near else "choose one")  # fmt: skip
    found = load_object("method", reference, expected="a merge method")
    check_members(f"method {reference}", found)
    return found  # pyright: ignore[reportReturnType]  # checked member by member


def reference_of(method: object) -> str:
    """The text that names a method: its name, or where it stands. Raises RecipeError for an object that is no method,
    or that no module holds by a name: a record could not say what made the merge."""
    for one in METHODS:
        if method is one:
            return one.name
    what = f"method {getattr(method, 'name', type(method).__name__)}"
    check_members(what, method)
    for module in (type(method).__module__, *list(sys.modules)):
        held = vars(sys.modules[module]) if module in sys.modules else {}
        names = (name for name, value in list(held.items()) if value is method)
        if (name := next(names, None)) is not None:
            return f"{module}:{name}"
    raise RecipeError(what, seen="an object that no module has by a name", expected="one that can be named again",
                      remedy="give it a name at the top of its file")  # fmt: skip


def check_members(what: str, found: object) -> None:
    """Raises RecipeError naming the first member of a MergeMethod that is missing or another thing."""
    if isinstance(found, type):
        raise RecipeError(what, seen="a class", expected="an object", remedy="call it")
    for member, kinds, expected in _MEMBERS:
        value = getattr(found, member, _MISSING)
        if not (callable(value) if kinds is None else isinstance(value, kinds)):
            seen = "nothing" if value is _MISSING else f"{value!r:.80}"
            raise _unfit(f"{what}, {member}", seen, expected)
    for member, values in (("weighs", ("share", "scale", None)), ("adapter", ("scaled", "mapped", None))):
        if (value := getattr(found, member)) not in values:
            raise _unfit(f"{what}, {member}", repr(value), " or ".join(map(repr, values)))
    options, cites, models = (getattr(found, member) for member in ("options", "cites", "models"))
    if not issubclass(options, Checked):
        raise _unfit(f"{what}, options", options.__name__, "a subclass of alignkeep.settings.Checked")
    if not all(isinstance(one, Citation) for one in cites):
        raise _unfit(f"{what}, cites", f"{cites!r:.80}", "a tuple of alignkeep.works.Citation")
    if unknown := [key for one in cites for key in _unknown_works(one)]:
        raise _unfit(f"{what}, cites", f"the work {unknown[0]!r}", "a Work, or a key of works.jsonl")
    whole = len(models) == 2 and isinstance(models[0], int) and isinstance(models[1], int | None)
    if not whole or models[0] < 1 or (models[1] is not None and models[1] < models[0]):
        raise _unfit(f"{what}, models", repr(models), "the least and the most (None: any) number of tuned models")


def _unknown_works(citation: Citation) -> list[str]:
    return [one for one in citation.sources if isinstance(one, str) and one not in works()]


_MISSING = object()
_MEMBERS: tuple[tuple[str, type | tuple[type, ...] | None, str], ...] = (
    ("name", str, "a name"), ("title", str, "a line that says what it does"),
    ("options", type, "a subclass of alignkeep.settings.Checked"), ("cites", tuple, "a tuple of Citation"),
    ("models", tuple, "the least and the most number of tuned models"), ("weighs", object, "a member"),
    ("adapter", object, "a member"), ("takes_tuning_data", bool, "true or false"),
    ("bytes_per_second", (int, float), "a number"), ("check", None, "a method check(options)"),
    ("spectrum", None, "a method spectrum(options)"), ("tensor", None, "a method tensor(asked)"),
    ("rule", None, "a method rule(asked)"),
)  # fmt: skip


def cited(reference: str, recorded: object = None) -> tuple[Citation, ...]:
    """What to cite for a method: of a stranger's what was recorded, or what it says if it is in use. No code is run for
    it that is not running already."""
    try:
        if recorded is not None:
            found = TypeAdapter(tuple[Citation, ...]).validate_python(recorded)[:_MOST_CITED]
            return tuple(one for one in found if not _unknown_works(one))
        runs = reference in _BY_NAME or reference.partition(":")[0] in sys.modules
        return method_named(reference).cites if runs else ()
    except (ValidationError, RecipeError):
        return ()


def options_of(method: Method, given: object) -> Checked:
    """The options of a method, from what was given of them.

    Raises RecipeError for an option that the method does not have, saying which it has, and pydantic's ValidationError,
    which knows the key, for a value that is none.
    """
    if isinstance(given, Checked) and not isinstance(given, method.options):
        given = given.model_dump(exclude_unset=True)
    known = list(method.options.model_fields)
    keys = [str(key) for key in cast("dict[object, object]", given)] if isinstance(given, dict) else list[str]()
    for key in keys:
        if key not in known:
            near = nearest(key, known)
            raise RecipeError(f"options.{key}", seen=f"a setting that {method.name} does not use",
                              expected="; ".join(described(method.options)) or "none",
                              remedy=f"did you mean {near}?" if near else "drop it")  # fmt: skip
    return method.options.model_validate(given)


def listing(more: str | None = None) -> Iterator[str]:
    """Every method, and the one that `more` names, with what it does and its options: lines for a reader."""
    own = more if more is not None and is_spec(more) else None
    for method in (*METHODS, *([] if own is None else [method_named(own)])):
        yield f"{method.name if method in METHODS or own is None else own}: {method.title}"
        yield from (f"    {line}" for line in described(method.options))


def _unfit(where: str, seen: str, expected: str) -> RecipeError:
    return RecipeError(where, seen=seen, expected=expected, remedy="mend the object (alignkeep.merge.MergeMethod)")
