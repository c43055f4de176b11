"""`alignkeep push DIR --to ID`: a proven model on the Hub, with its card and page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of merge, inject, fix or export.")],
    to: Annotated[str, typer.Option("--to", help="Repository on the Hub, OWNER/NAME; a new one is private.")],
    measured: Annotated[Path | None, typer.Option("--measured", help="Folder of its evaluation (fix has one).")] = None,
    hub_base: Annotated[str | None, typer.Option("--hub-base", help="The base's id on the Hub.")] = None,
    license: Annotated[str | None, typer.Option("--license", help="Licence id (default: the base card's)")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the repository holds.")] = False,
    unverified: Annotated[bool, typer.Option("--unverified", help="Push a model that nothing proves.")] = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    dry_run: o.DryRun = False,
) -> None:
    """Prove a model, export it and upload it to the Hub, with its card and page."""
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep import publishing

        if dry_run:
            session.show(publishing.plan_push(folder, to=to, measured=measured, public=public, unverified=unverified))
            return
        made = publishing.push(
            folder, to=to, measured=measured, hub_base=hub_base, license=license, public=public, overwrite=overwrite,
            unverified=unverified, progress=session.progress,
        )  # fmt: skip
        session.show(made.as_json())
