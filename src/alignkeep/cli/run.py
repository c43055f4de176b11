"""`alignkeep run RECIPE.yaml`: the stages of a recipe, in order; those that are finished are not done again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkeep.cli import options as o


@o.spread
def run(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.yaml", help="What to tune, on what, and how to measure it.")
    ],
    out: o.Out,
    *,
    making: o.Making,
    loading: o.Loading,
    asking: o.Asking,
    common: o.Common,
    dry_run: o.DryRun = False,
) -> None:
    """Do what a recipe says: train, evaluate, report."""
    with common.session() as session:
        from alignkeep import lifecycle
        from alignkeep.cli.tables import run_summary
        from alignkeep.recipe import Recipe

        flags: dict[str, object] = {"seed": making.seed}
        for stage in ("train", "evaluate"):
            flags |= loading.under(stage)
        flags |= asking.under("evaluate")
        settings = Recipe.read(recipe, over=common.config, flags=flags, assignments=common.assignments or ())
        if dry_run:
            session.show(lifecycle.plan(settings))
            return
        result = lifecycle.run(settings, out=out, **making.how, progress=session.progress)
        session.show(result.as_json(), run_summary(result))
