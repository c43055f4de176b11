"""Typed results on disk: one codec for all rooms, by the types of their fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from alignkeep.checkpoint.files import read_object, write_json
from alignkeep.errors import DataError

Result = TypeVar("Result")


def write_result(path: Path, result: object) -> Path:
    """The fields of a frozen dataclass as JSON (atomically); what is unknown (NaN) is null."""
    return write_json(path, as_plain(result))


def as_plain(result: object) -> dict[str, Any]:
    """The fields as plain values, in their order."""
    return _codec(type(result)).dump_python(result)


def read_result(
    kind: type[Result],
    path: Path,
    *,
    writer: str,
    again: str,
    folded: Callable[[Mapping[str, object]], Mapping[str, object]] = dict,
) -> Result:
    """What `write_result` wrote. `writer` is what writes such files and `again` how to have it written again; `folded`
    gives the fields where the file has them otherwise. Raises DataError naming file and field."""
    try:
        return from_plain(kind, folded(read_object(path)))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            str(path), seen=_said(error), expected=f"the {path.name} that `{writer}` writes",
            remedy=f"{again}, the file was changed or cut off",
        ) from error  # fmt: skip


def from_plain(kind: type[Result], data: object) -> Result:
    """From what `as_plain` gave. Raises ValueError for anything else."""
    return _codec(kind).validate_python(data)


@cache
def _codec(kind: type[Result]) -> TypeAdapter[Result]:
    return TypeAdapter(kind)


def _said(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {error}"
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
