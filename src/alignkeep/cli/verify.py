"""`alignkeep verify DIR`: does a merged or injected folder hold what its manifest says, and can it be made again?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The --out folder of merge or inject.")],
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Prove the bytes alone, without making the folder again.")
    ] = False,
    verify_key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Demand a signature by this Ed25519 public key.")
    ] = None,
    sign_key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Once proven, sign the folder with this Ed25519 private key.")
    ] = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Prove a merged or injected folder against its manifest, and by making it again from its inputs."""
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep import lifecycle

        told = lifecycle.verify(
            folder, files_only=files_only, verify_key=verify_key, sign_key=sign_key, progress=session.progress
        )
        session.show(told)
