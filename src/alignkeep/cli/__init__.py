"""The command line: one file per verb. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run one command and leave with its exit code (see `outcome.py`)."""
    try:
        from alignkeep.cli.app import app

        app(prog_name="alignkeep")
    except KeyboardInterrupt:
        sys.exit(130)
