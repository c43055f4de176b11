"""`alignkeep run RECIPE.yaml`: the stages of a recipe, in order; those that are finished are not done again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session


def run(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.yaml", help="What to tune, on what, and how to measure it.")
    ],
    out: o.Out,
    seed: o.Seed = None,
    overwrite: o.Overwrite = False,
    resume: o.Resume = True,
    device: o.Device = None,
    dtype: o.Dtype = None,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = None,
    max_new_tokens: o.MaxNewTokens = None,
    batch_size: o.BatchSize = None,
    backend: o.Backend = None,
    config: o.ConfigFile = None,
    assignments: o.Assignments = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    dry_run: o.DryRun = False,
) -> None:
    """Do what a recipe says: train, evaluate, report."""
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep import lifecycle
        from alignkeep.cli.settle import generation_flags, load_flags
        from alignkeep.cli.tables import run_summary
        from alignkeep.recipe import Recipe

        flags: dict[str, object] = {"seed": seed}
        for stage in ("train", "evaluate"):
            flags |= load_flags(device, dtype, revision, trust_remote_code, stage=stage)
        flags |= generation_flags(max_new_tokens, batch_size, backend, stage="evaluate")
        settings = Recipe.read(recipe, over=config, flags=flags, assignments=assignments or ())
        if dry_run:
            session.show(lifecycle.plan(settings))
            return
        result = lifecycle.run(settings, out=out, overwrite=overwrite, resume=resume, progress=session.progress)
        session.show(result.as_json(), run_summary(result))
