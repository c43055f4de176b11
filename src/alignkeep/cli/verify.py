"""`alignkeep verify DIR`: does a merged or injected folder hold what its manifest says, and can it be made again?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The --out folder of merge or inject.")],
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Prove a merged or injected folder against its manifest, and against its inputs where they are still there."""
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep import lifecycle

        session.show(lifecycle.verify(folder, progress=session.progress))
