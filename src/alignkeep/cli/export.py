"""`alignkeep export DIR`: a finished model in a folder to upload or pass on, with its card and without paths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of fix, or of a model or adapter.")],
    out: o.Out,
    measured: Annotated[Path | None, typer.Option("--measured", help="Folder of its evaluation (fix has one).")] = None,
    hub_base: Annotated[str | None, typer.Option("--hub-base", help="The base's id on the Hub.")] = None,
    license: Annotated[str | None, typer.Option("--license", help="Licence id (default: the base card's)")] = None,
    overwrite: o.Overwrite = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Copy a finished model into a folder to pass on: weights, settings, card; no path of this disk."""
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep import sharing

        made = sharing.export(
            folder, out=out, measured=measured, hub_base=hub_base, license=license, overwrite=overwrite
        )
        session.show(made.as_json())
