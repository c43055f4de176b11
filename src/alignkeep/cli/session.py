"""One command at work: stdout is kept for its result, everything else goes to stderr, errors become exit codes."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

import typer

from alignkeep.checkpoint.files import jsonable
from alignkeep.checkpoint.folders import leads
from alignkeep.cli.outcome import report_error
from alignkeep.cli.streams import drop_stdout, leave_when_interrupted, raise_when_interrupted, unwritten
from alignkeep.errors import RecipeError, plain
from alignkeep.progress import Progress, Silent

if TYPE_CHECKING:
    from rich.console import Console

# What the libraries would say in between our progress; a user who wants it back sets the variable.
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
_LONGEST_LINE = 2000  # of a result; chosen: paths and lists of names fit, a file's content does not


class Session:
    """Use as `with Session(...) as session:`; the last `session.show(...)` is printed when the block has succeeded.

    Raises `typer.Exit` with the code of `outcome.py` for every error, SystemExit too.
    """

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.progress: Progress = Silent()
        self._quiet = quiet
        self._facts: Mapping[str, object] | None = None
        self._summary: Callable[[Console], None] | None = None
        self._stdout, self._handle = sys.stdout, -1

    def show(self, facts: Mapping[str, object], summary: Callable[[Console], None] | None = None) -> None:
        """The result: `facts` for --json, `summary(console)` for people (by default the facts, line by line)."""
        self._facts, self._summary = facts, summary

    def __enter__(self) -> Session:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        for library in ("trl", "lm_eval"):  # which have no variable of their own
            logging.getLogger(library).setLevel(logging.ERROR)
        _check_surroundings()
        self._divert_stdout()
        if not self._quiet and leads():
            from rich.console import Console

            from alignkeep.cli.bars import Bars, Lines

            console = Console(stderr=True)
            self.progress = Bars(console) if console.is_terminal else Lines(console)
        raise_when_interrupted()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        leave_when_interrupted()
        _end(self.progress, well=error is None)
        self._restore_stdout()
        if error is None:
            try:
                self._print()
            except OSError as lost:
                error = unwritten(lost)
            else:
                return
        if not isinstance(error, (typer.BadParameter, typer.Exit, typer.Abort)):
            raise typer.Exit(report_error(error)) from error

    def _divert_stdout(self) -> None:
        """Let whatever prints, in Python or below it, write to stderr."""
        sys.stdout.flush()
        self._handle = os.dup(1)
        os.dup2(2, 1)
        self._stdout, sys.stdout = sys.stdout, sys.stderr

    def _restore_stdout(self) -> None:
        sys.stdout = self._stdout
        os.dup2(self._handle, 1)
        os.close(self._handle)

    def _print(self) -> None:
        if self._facts is None or not leads():
            return
        try:
            if self.as_json:
                print(json.dumps(jsonable(self._facts), allow_nan=False), flush=True)
            elif not self._quiet:
                from rich.console import Console

                console = Console()
                (self._summary or _lines(self._facts))(console)
                sys.stdout.flush()
        except BrokenPipeError:  # `alignkeep ... | head`: the work is done, nobody listens any more
            drop_stdout()


def _check_surroundings() -> None:
    """Raises RecipeError where this process cannot work: a deleted folder, arguments that are no text."""
    try:
        os.getcwd()
        fault = None
    except OSError as error:
        fault = RecipeError(
            "working folder", seen=error.strerror or "none", expected="a folder that is there",
            remedy="change into one that exists",
        )  # fmt: skip
    torn = next((word for word in sys.argv if any("\ud800" <= one <= "\udfff" for one in word)), None)
    if torn is not None:
        fault = RecipeError(
            "command line", seen=f"{torn!r}, which is no UTF-8", expected="arguments in UTF-8",
            remedy="rename the file, or set LANG to the alphabet it was named in",
        )  # fmt: skip
    if fault is not None:
        raise typer.Exit(report_error(fault))


def _end(progress: Progress, *, well: bool) -> None:
    if well:
        progress.done()
    elif hasattr(progress, "stop"):
        progress.stop()  # pyright: ignore[reportAttributeAccessIssue]


def _said(key: str, value: object) -> list[str]:
    """A fact in one line, several sentences in a line each."""
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        return [f"{key}: {value}"]
    return [f"{key}: {value[0]}"] if len(value) == 1 else [f"{key}:", *(f"  {one}" for one in value)]


def _lines(facts: Mapping[str, object]) -> Callable[[Console], None]:
    """A fact a line; what is empty is not worth one, and a fact of several parts gets a line for each."""

    def summary(console: Console) -> None:
        for key, value in facts.items():
            if isinstance(value, Mapping):
                lines = [f"{key}:", *(f"  {name}: {part}" for name, part in value.items())]
            else:
                lines = [] if value in ([], (), None) else _said(key, value)
            for line in lines:
                console.print(plain(line, _LONGEST_LINE), markup=False, highlight=False, soft_wrap=True)

    return summary


def say(console: Console, lines: Iterable[str]) -> None:
    """Lines as they are: a verb's last words."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
