"""`alignkeep testbed`: the tiny models and the data that are shipped with the package, as ordinary files."""

from __future__ import annotations

from alignkeep.cli import options as o
from alignkeep.cli.session import Session


def testbed(
    out: o.Out,
    seed: o.Seed = None,
    overwrite: o.Overwrite = False,
    resume: o.Resume = True,
    config: o.ConfigFile = None,
    assignments: o.Assignments = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    dry_run: o.DryRun = False,
) -> None:
    """Write the tiny aligned models and their data."""
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep.cli.configs import config_of, facts_of
        from alignkeep.testbed import stage

        settings = config_of(stage.TestbedConfig, config, assignments, {"seed": seed})

        if dry_run:
            session.show({"testbed": str(out), "writes": ["models", "data"], "seed": settings.seed})
            return
        session.show(facts_of(stage.testbed(out=out, seed=settings.seed, overwrite=overwrite, resume=resume)))
