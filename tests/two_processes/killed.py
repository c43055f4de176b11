"""A tune that kills itself, as a machine would, after so many steps: killed.py CONFIG.json OUT STEPS"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path


class Killer:
    """A progress display that ends the process without warning."""

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


if __name__ == "__main__":
    from alignkeep.train.config import TrainConfig
    from alignkeep.train.stage import train

    config = TrainConfig(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    train(config, out=Path(sys.argv[2]), progress=Killer(int(sys.argv[3])))
