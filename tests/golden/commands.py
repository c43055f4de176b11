"""The command line in this process: its exit code and what it prints."""

from __future__ import annotations

import os

from typer.testing import CliRunner

from alignkeep.cli.app import app

os.environ.setdefault("HF_HUB_OFFLINE", "1")
_WIDE = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


def run(words: list[str]) -> tuple[int, str]:
    done = CliRunner().invoke(app, words, env=_WIDE, prog_name="alignkeep")
    return done.exit_code, done.stdout
