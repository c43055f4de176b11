"""What an exception means to the person at the terminal: an exit code and one line.

    0 done   1 user error   2 usage   4 the machine failed, state kept   130 interrupted, likewise

An exception that is none of these was not foreseen, by us or by a library: it leaves with 1 and one line too. With
ALIGNKEEP_TRACEBACK=1 in the environment the traceback of every error is shown before its line.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from typing import NamedTuple

from alignkeep.checkpoint.files import MACHINE_ERRNOS, says_full_disk, says_no_memory
from alignkeep.errors import AlignkeepError, plain

TRACEBACK = "ALIGNKEEP_TRACEBACK"
_AGAIN = "state is kept, the same command continues"


class Outcome(NamedTuple):
    """Exit code and the line for stderr."""

    code: int
    line: str


def report_error(error: BaseException) -> int:
    """Write the line of `error` to stderr, and its traceback where it was asked for; returns the exit code."""
    outcome = outcome_of(error)
    if os.environ.get(TRACEBACK, "0") not in ("", "0"):
        traceback.print_exception(error, file=sys.stderr)
    print(outcome.line, file=sys.stderr, flush=True)
    return outcome.code


def outcome_of(error: BaseException) -> Outcome:
    """Code and line for `error`."""
    if isinstance(error, KeyboardInterrupt):
        return Outcome(130, f"interrupted: {_AGAIN}")
    machine = next(filter(None, map(_machine_trouble, _chain(error))), None)
    if isinstance(error, AlignkeepError):
        return Outcome(4 if machine else error.exit_code, f"error: {error}")
    if machine:
        return Outcome(4, f"error: {machine}; {_AGAIN}")
    return Outcome(1, f"error: {_unforeseen(error)}")


def _unforeseen(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        where = plain(os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename), 200)
        return f"{where}: found {plain(str(error.strerror), 60)}, expected a path that can be used; check it"
    if isinstance(error, SystemExit):
        seen = f"SystemExit({plain(repr(error.code), 60)}), raised by code that this command was told to use"
        return f"command: found {seen}, expected a result; correct that code"
    name, said = type(error).__name__, _said(error)
    seen = f"{name} ({plain(said, 160)})" if said else name
    return f"command: found {seen}, which was not foreseen, expected a result; {TRACEBACK}=1 shows where it comes from"


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 somebody else's __str__
        return f"no message: {type(broken).__name__}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _machine_trouble(error: BaseException) -> str | None:
    """What failed, in one line, where it is the machine that failed."""
    text = plain(_said(error), 200)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({text or 'no more details'}), expected more room; lower batch_size or free memory"
    if isinstance(error, OSError) and error.errno in MACHINE_ERRNOS:
        where = plain(str(error.filename or "disk"), 200)
        return f"{where}: {plain(str(error.strerror), 60)}, expected room and a working disk; free some space"
    if isinstance(error, (RuntimeError, OSError)) or type(error).__name__ in {"SafetensorError", "Exception"}:
        if says_full_disk(error):
            return f"disk: {text}, expected room and a working disk; free some space"
        if says_no_memory(error):
            return f"memory: {text}, expected more room; lower batch_size or free memory"
    return None
