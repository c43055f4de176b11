"""The environment with the harnesses of other people, which lies over ours: `make test` puts it there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import alignkeep

ROOM = Path(f"{sys.prefix}-eval")


def start(program: str, *arguments: object, folder: Path) -> subprocess.Popen[str]:
    """A program of that environment, which stands in `folder`."""
    assert ROOM.is_dir(), f"{ROOM} is not there: make test makes it"
    paths = (str(Path(alignkeep.__file__).parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH"))
    quiet = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    named = {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    words = [str(ROOM / "bin" / program), *map(str, arguments)]
    return subprocess.Popen(
        words,
        env=named,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )


def ended(process: subprocess.Popen[str]) -> str:
    """What it printed, once it has ended well."""
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, f"{stdout[-1500:]}\n{stderr[-3000:]}"
    return stdout
