"""What an exception means to the person at the terminal: an exit code and one line.

    0 done   1 user error   2 usage   4 the machine failed, state kept   130 interrupted, likewise

An exception that is none of these is a fault of ours: it keeps its traceback and leaves with 1, as Python does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from alignkeep.checkpoint.files import MACHINE_ERRNOS, says_full_disk, says_no_memory
from alignkeep.errors import AlignkeepError

_AGAIN = "state is kept, the same command continues"


class Outcome(NamedTuple):
    """Exit code and the line for stderr (None: nothing to say)."""

    code: int
    line: str | None


def outcome_of(error: BaseException) -> Outcome | None:
    """Code and line for `error`; None where it is a fault of ours."""
    if isinstance(error, KeyboardInterrupt):
        return Outcome(130, f"interrupted: {_AGAIN}")
    machine = next(filter(None, map(_machine_trouble, _chain(error))), None)
    if isinstance(error, AlignkeepError):
        return Outcome(4 if machine else error.exit_code, f"error: {error}")
    if machine:
        return Outcome(4, f"error: {machine}; {_AGAIN}")
    if isinstance(error, OSError) and error.filename is not None:
        line = f"{error.filename}: seen {error.strerror}; expected a path that can be used; check it"
        return Outcome(1, f"error: {line}")
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _machine_trouble(error: BaseException) -> str | None:
    """What failed, in one line, where it is the machine that failed."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({text or 'no more details'}); expected more room; lower batch_size or free memory"
    if isinstance(error, OSError) and error.errno in MACHINE_ERRNOS:
        return f"{error.filename or 'disk'}: {error.strerror}; expected room and a working disk; free some space"
    if isinstance(error, (RuntimeError, OSError)) or type(error).__name__ in {"SafetensorError", "Exception"}:
        if says_full_disk(error):
            return f"disk: {text}; expected room and a working disk; free some space"
        if says_no_memory(error):
            return f"memory: {text}; expected more room; lower batch_size or free memory"
    return None
