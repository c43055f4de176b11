"""`alignkeep report`: one HTML page from the folders of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session


def report(
    folders: Annotated[
        list[str] | None, typer.Argument(metavar="DIR [DIR ...]", help="Folders of runs, searched for scorecards.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Page to write, or its folder [DIR/report.html].")] = None,
    card: Annotated[bool | None, typer.Option("--card/--no-card", help="Write a model card too (default: no)")] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", help="What a model must keep to ship: YAML file, or default.")
    ] = None,
    config: o.ConfigFile = None,
    assignments: o.Assignments = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    dry_run: o.DryRun = False,
) -> None:
    """Make one page of what was measured; nothing is loaded from the network, no model is needed."""
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep.cli.configs import config_of, facts_of
        from alignkeep.report.config import ReportConfig

        settings = config_of(
            ReportConfig, config, assignments, {"folders": folders or None, "card": card, "policy": policy}
        )
        if not settings.folders:
            raise typer.BadParameter("DIR must be given.")
        from alignkeep.report import stage

        paths = [Path(folder) for folder in settings.folders]
        if dry_run:
            session.show(stage.plan(paths, out=out, card=settings.card, policy=settings.policy))
            return
        result = stage.report(
            paths,
            out=out,
            card=settings.card,
            title=settings.title,
            full_answers=settings.full_answers,
            policy=settings.policy,
        )
        session.show(facts_of(result))
