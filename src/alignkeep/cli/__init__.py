"""The command line: one file per verb. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run one command and leave with its exit code (see `outcome.py`)."""
    from alignkeep.cli.streams import leave_when_interrupted, open_streams, unwritten

    if os.getcwd() not in sys.path:  # an object of one's own may stand in a file here, behind all that is installed
        sys.path.append(os.getcwd())
    leave_when_interrupted()
    open_streams()
    from alignkeep.cli.outcome import report_error

    try:
        from alignkeep.cli.app import app

        try:
            app(prog_name="alignkeep")
        finally:
            sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 from outside a command: the help, on a full disk
        sys.exit(report_error(unwritten(error) if isinstance(error, OSError) else error))
