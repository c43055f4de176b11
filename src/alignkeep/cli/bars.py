"""Progress on stderr: a live bar on a terminal, two lines per piece of work in a log."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from alignkeep.errors import plain

_LONGEST = 120  # of a label or a note, which may name what other people named


class Bars:
    """A live bar for a terminal; a finished bar stays as one line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def start(self, label: str, total: int | None) -> None:
        self.done()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )
        self._task = self._progress.add_task(plain(label, _LONGEST), total=total, note="")
        self._progress.start()

    def advance(self, n: int = 1, note: str = "") -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=n, note=plain(note, _LONGEST))

    def done(self) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the terminal in order, whatever happened."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None


class Lines:
    """For logs and pipes: when a piece of work begins, a sign of life every half minute, and its end."""

    _SECONDS_BETWEEN = 30.0

    def __init__(self, console: Console) -> None:
        self._console = console
        self._label: str | None = None
        self._total: int | None = None
        self._count, self._note = 0, ""
        self._began = self._told = 0.0

    def start(self, label: str, total: int | None) -> None:
        self.done()
        self._label, self._total, self._count, self._note = plain(label, _LONGEST), total, 0, ""
        self._began = self._told = time.monotonic()

    def advance(self, n: int = 1, note: str = "") -> None:
        self._count += n
        self._note = plain(note, _LONGEST) or self._note
        if time.monotonic() - self._told > self._SECONDS_BETWEEN:
            self._told = time.monotonic()
            self._tell("")

    def done(self) -> None:
        if self._label is not None:
            self._tell(" done")
        self._label = None

    def stop(self) -> None:
        """End without saying that the work is done."""
        self._label = None

    def _tell(self, ending: str) -> None:
        of = "" if self._total is None else f"/{self._total}"
        seconds = time.monotonic() - self._began
        note = f" ({self._note})" if self._note else ""
        self._console.print(
            f"{self._label}: {self._count}{of}{ending}, {seconds:.0f} s{note}", markup=False, highlight=False
        )
