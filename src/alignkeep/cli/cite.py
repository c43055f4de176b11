"""`alignkeep cite RECIPE.yaml`: what to cite for the methods a recipe uses, and where they depart from their papers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session

if TYPE_CHECKING:
    from rich.console import Console

    from alignkeep.citations import Method


def cite(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe to cite.")],
    config: o.ConfigFile = None,
    assignments: o.Assignments = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    dry_run: o.DryRun = False,
) -> None:
    """Print BibTeX and the departures of the methods that a recipe uses."""
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep import citations, lifecycle
        from alignkeep.recipe import Recipe

        settings = Recipe.read(recipe, over=config, assignments=assignments or ())
        if dry_run:
            session.show(lifecycle.plan(settings))
            return
        methods = citations.cite(lifecycle.methods_of(settings))
        bibtex = citations.bibtex(methods)
        departures = {method.name: list(method.departures) for method in methods}
        facts = {"methods": [method.name for method in methods], "departures": departures, "bibtex": bibtex}
        session.show(facts, lambda console: _print(console, methods, bibtex))


def _print(console: Console, methods: Sequence[Method], bibtex: str) -> None:
    """A valid .bib file: what is not an entry is a comment."""
    lines: list[str] = []
    for method in methods:
        lines += [f"% {method.title} ({', '.join(work.plain() for work in method.works)})"]
        lines += [f"%   departure: {departure}" for departure in method.departures]
    console.print("\n".join([*lines, "", bibtex]), markup=False, highlight=False, soft_wrap=True)
