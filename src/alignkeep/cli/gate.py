"""`alignkeep gate`: may it ship? A verdict on a scorecard, with its own exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session, say

if TYPE_CHECKING:
    from rich.console import Console

    from alignkeep.gate.stage import GateResult

EXIT = {"pass": 0, "fail": 3, "undecided": 5}


def gate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an evaluation, a run or a demo.")],
    policy: o.Policy = "default",
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write a table for a pull request.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML for a test report.")] = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Hold what was measured against a policy. Exit 0: passed, 3: failed, 5: these prompts cannot decide."""
    code = 0
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep.checkpoint.files import write_text
        from alignkeep.gate.output import junit_of, markdown_of
        from alignkeep.gate.stage import gate as decide

        result = decide(folder, policy=policy)
        for path, text in ((markdown, markdown_of), (junit, junit_of)):
            if path is not None:
                write_text(path, text(result))
        session.show(result.as_json(), lambda console: _say(console, result))
        code = EXIT[result.answer.value]
    if code:
        raise typer.Exit(code)


def _say(console: Console, result: GateResult) -> None:
    from alignkeep.gate.output import verdict_lines

    say(console, verdict_lines(result))
