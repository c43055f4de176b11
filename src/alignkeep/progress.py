"""How a stage tells that it is alive. The stage counts; whoever started it decides what is shown, and where."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """One bar at a time: `start`, any number of `advance`, `done`. Starting a second bar ends the first."""

    def start(self, label: str, total: int | None) -> None:
        """A new piece of work of `total` units, None where the number is not known beforehand."""
        ...

    def advance(self, n: int = 1, note: str = "") -> None:
        """`n` units are finished; `note` is a short word on the latest (a loss, a rate)."""
        ...

    def done(self) -> None:
        """The piece of work is finished."""
        ...


class Named:
    """Another's bars, with the name of a part of the work before each label."""

    def __init__(self, name: str, progress: Progress | None) -> None:
        self._name, self._progress = name, progress or Silent()

    def start(self, label: str, total: int | None) -> None:
        self._progress.start(f"{self._name}: {label}", total)

    def advance(self, n: int = 1, note: str = "") -> None:
        self._progress.advance(n, note)

    def done(self) -> None:
        self._progress.done()


class Silent:
    """Shows nothing: the default of every stage called from Python."""

    def start(self, label: str, total: int | None) -> None:
        pass

    def advance(self, n: int = 1, note: str = "") -> None:
        pass

    def done(self) -> None:
        pass
