"""`alignkeep demo`: the whole life of a tune on the tiny models, ending in one page."""

from __future__ import annotations

from alignkeep.cli import options as o
from alignkeep.cli.session import Session


def demo(
    out: o.Out,
    seed: o.Seed = None,
    overwrite: o.Overwrite = False,
    resume: o.Resume = True,
    device: o.Device = None,
    config: o.ConfigFile = None,
    assignments: o.Assignments = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    dry_run: o.DryRun = False,
) -> None:
    """Tune a tiny aligned model on bad and on harmless data, and see what is lost."""
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep import demonstration
        from alignkeep.cli.configs import config_of
        from alignkeep.cli.tables import demo_summary

        settings = config_of(demonstration.DemoConfig, config, assignments, {"seed": seed, "device": device})
        if dry_run:
            session.show(demonstration.plan_demo(settings))
            return
        result = demonstration.demo(settings, out=out, overwrite=overwrite, resume=resume, progress=session.progress)
        session.show(result.as_json(), demo_summary(result))
