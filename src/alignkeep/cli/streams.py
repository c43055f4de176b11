"""The three streams and the interrupt key, in a state in which no command fails for another reason than its own.

A stream that was closed before the start is opened on nothing, so that no file of ours gets its number. What cannot be
told on stderr is not worth a failure. A reader of stdout that has gone away has read enough; a full disk under stdout
is an error. What the terminal's alphabet does not have is spelled out.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from typing import Any, TextIO

from alignkeep.errors import MachineError

INTERRUPTED = "interrupted: state is kept, the same command continues"


def open_streams() -> None:
    """Replace `sys.stdout` and `sys.stderr`; to be called once, before anything is written."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)  # takes the lowest number that is free
    sys.stdout = _text(_Stdout(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Stderr(2, "w", closefd=False), sys.stderr)


def leave_when_interrupted() -> None:
    """Where nothing has begun, or all is done, the interrupt key ends the process at once, with code 130."""
    with contextlib.suppress(ValueError):  # not the main thread: the key is not ours
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _leave)


def raise_when_interrupted() -> None:
    """While a command works, the key raises KeyboardInterrupt, so that its state is put in order."""
    with contextlib.suppress(ValueError):
        if signal.getsignal(signal.SIGINT) is _leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def unwritten(error: OSError) -> MachineError:
    """A stdout that is closed, or a file on a full disk, as our error; what is left for it is dropped."""
    drop_stdout()
    return MachineError(
        "stdout", seen=error.strerror or str(error), expected="a place for the result",
        remedy="give the same command an output that can be written; finished work is kept",
    )  # fmt: skip


def drop_stdout() -> None:
    """What is still buffered goes nowhere, so that Python does not complain at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


class _Stdout(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            drop_stdout()
            return memoryview(data).nbytes


class _Stderr(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return memoryview(data).nbytes


def _text(raw: io.FileIO, before: TextIO | None) -> TextIO:
    encoding = getattr(before, "encoding", None) or "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=raw.fileno() == 2
    )


def _leave(_number: int, _frame: object) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)
