"""Work that is killed without warning, as by a machine, after so many steps."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from alignkeep.train.config import TrainConfig
from alignkeep.train.stage import train
from command import alone, start


class Killer:
    """A progress display that ends its own process."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def start(self, label: str, total: int | None) -> None:
        pass

    def advance(self, n: int = 1, note: str = "") -> None:
        self._left -= n
        if self._left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def done(self) -> None:
        pass


def killed(target: Callable[..., object], *arguments: object) -> None:
    """`target(*arguments)` in a child, to the death it is expected to die."""
    child = start(alone, target, *arguments)
    child.join(timeout=600)
    assert child.exitcode == -signal.SIGKILL


def tune(config: TrainConfig, out: Path, steps: int) -> None:
    train(config, out=out, progress=Killer(steps))
