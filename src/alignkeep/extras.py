"""The packages that this one stands on: which versions it was tried with, and which are here.

The ranges are those of pyproject.toml, read from the metadata of the installed package, so that they stand in one
place. What was tried within them is docs/compatibility.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import metadata
from typing import NamedTuple

from alignkeep.errors import RecipeError

TRAIN, HUB, EVAL = "train", "hub", "eval"  # brings TRL; what reads data sets of the hub; lm-evaluation-harness


class Wanted(NamedTuple):
    """A package, its versions that fit, and the one that is here (None: none)."""

    name: str
    versions: str
    found: str | None
    fits: bool

    def __str__(self) -> str:
        return f"{self.found or 'not installed'}, {'within' if self.fits else 'not within'} {self.versions or 'any'}"


def wanted_of(lines: Iterable[str], extra: str, version_of: Callable[[str], str | None]) -> tuple[Wanted, ...]:
    """What those of the requirements want that come with this extra alone; with "", those that always come."""
    from packaging.requirements import Requirement

    found: list[Wanted] = []
    for one in map(Requirement, lines):
        always = one.marker is None or one.marker.evaluate({"extra": ""})
        if (always and not extra) or (extra and not always and one.marker and one.marker.evaluate({"extra": extra})):
            version = version_of(one.name)
            fits = version is not None and one.specifier.contains(version, prereleases=True)
            found.append(Wanted(one.name, str(one.specifier), version, fits))
    return tuple(found)


def wanted(extra: str = "") -> tuple[Wanted, ...]:
    """What the installed package wants, with this extra alone or always; nothing where it runs uninstalled."""
    try:
        lines = metadata.requires("alignkeep") or []
    except metadata.PackageNotFoundError:
        return ()
    return wanted_of(lines, extra, _version)


def refuse_missing(needed: Iterable[Wanted], extra: str, where: str) -> None:
    """Raises RecipeError for the first package that is not here, or in a version that does not fit."""
    for one in needed:
        if not one.fits:
            raise RecipeError(
                where,
                seen=f"no {one.name} installed" if one.found is None else f"{one.name} {one.found}",
                expected=f"{one.name} {one.versions}",
                remedy=f"pip install 'alignkeep[{extra}]'",
            )


def require(extra: str | None, where: str) -> None:
    """Raises RecipeError, naming the extra, unless all that it brings is here. None needs nothing."""
    if extra is not None:
        refuse_missing(wanted(extra), extra, where)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
