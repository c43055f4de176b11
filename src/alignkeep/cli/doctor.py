"""`alignkeep doctor`: what this machine has for the work."""

from __future__ import annotations

from pathlib import Path

from alignkeep.cli import options as o
from alignkeep.cli.session import Session


def doctor(as_json: o.AsJson = False, quiet: o.Quiet = False) -> None:
    """Show versions, devices, memory, disk, extras and whether the hub can be reached."""
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep.doctor import examine

        session.show(examine(Path.cwd()))
