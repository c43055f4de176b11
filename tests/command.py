"""Real processes for tests: the command line, or a Python call, in a child that can be killed.

Children are forked from a server that has imported the heavy libraries once, so that each costs about a second.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

from alignkeep.cli.session import QUIET

# The server imports the libraries before any command could quieten them.
os.environ.update(QUIET)
_SERVER = multiprocessing.get_context("forkserver")
# What the stages import when they work stands in modules of its own.
_WORK = (
    *("train.tuning", "merge.prepare", "merge.writing", "merge.adapter_form", "evaluate.questions", "evaluate.asking"),
    *("evaluate.scoring", "inject.prepare", "inject.edit", "curate.prepare", "curate.scoring", "align.aligning"),
)
_LIBRARIES = ("torch", "transformers", "datasets", "peft", "trl", "trl.trainer.sft_trainer", "trl.trainer.grpo_trainer")
_OURS = (f"alignkeep.{name}" for name in ("cli.app", "lifecycle", "report.stage", *_WORK))
_SERVER.set_forkserver_preload([*_LIBRARIES, *_OURS])


class Finished(NamedTuple):
    """Exit code (negative: killed by that signal) and what was written."""

    code: int
    stdout: str
    stderr: str


def start(target: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """Call `target(*arguments)` in a child."""
    child = _SERVER.Process(target=_begin, args=(target, *arguments))
    child.start()
    return child


def _begin(target: Callable[..., object], *arguments: object) -> None:
    gc.freeze()  # what the server imported is not gone through by every collection: a second, and a copy of its memory
    target(*arguments)


def command(*arguments: object, folder: Path) -> ForkServerProcess:
    """`alignkeep ARGUMENTS` in a child; its output goes to the files stdout and stderr in `folder`."""
    return start(_main, [str(argument) for argument in arguments], folder)


def run_command(*arguments: object, folder: Path) -> Finished:
    """`alignkeep ARGUMENTS` in a child, to its end."""
    return finished(command(*arguments, folder=folder), folder)


def finished(child: ForkServerProcess, folder: Path) -> Finished:
    """Wait for a `command`."""
    child.join(timeout=600)
    assert child.exitcode is not None, "the command hangs"
    return Finished(child.exitcode, (folder / "stdout").read_text(), (folder / "stderr").read_text())


def side_by_side(target: Callable[..., object], *arguments: object, folder: Path) -> None:
    """`target(*arguments)` in two children at once that know of each other by the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [start(_rank, rank, port, folder, target, arguments) for rank in (0, 1)]
    for rank, child in enumerate(children):
        child.join(timeout=600)
        assert child.exitcode == 0, (folder / f"stderr{rank}").read_text()[-3000:]


def _rank(rank: int, port: int, folder: Path, target: Callable[..., object], arguments: tuple[object, ...]) -> None:
    named = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in named.items()}, MASTER_ADDR="127.0.0.1")
    os.dup2(os.open(folder / f"stderr{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    alone(target, *arguments)


def alone(target: Callable[..., object], *arguments: object) -> None:
    """To be called in a child: `target(*arguments)` with one thread and no graphics card."""
    import torch

    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    torch.set_num_threads(1)
    target(*arguments)


def wait_until(claim: Callable[[], bool], child: ForkServerProcess) -> None:
    """Wait for something the child does."""
    deadline = time.monotonic() + 300
    while not claim():
        assert child.is_alive(), "the command ended too soon"
        assert time.monotonic() < deadline, "the command hangs"
        time.sleep(0.01)


def _main(arguments: list[str], folder: Path) -> None:
    from alignkeep.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.environ["COLUMNS"] = "300"
    sys.argv = ["alignkeep", *arguments]
    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
