"""Files that users name, opened so that none of them can make a command wait or do something else than be read."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_input(path: Path) -> BinaryIO:
    """The file's bytes. Raises OSError, whose `strerror` says what stands there, for a pipe, socket, device or folder
    (without opening it: a pipe would wait for ever), and for a path that no file system takes.
    """
    try:
        _refuse_special(path, os.stat(path).st_mode)
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:
        raise OSError(errno.EINVAL, "a path with a NUL or half a character in it", str(path)) from error
    try:
        _refuse_special(path, os.fstat(handle).st_mode)  # another one by now?
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_input(path: Path, *, longest: int | None = None) -> bytes:
    """All bytes of the file. Raises OSError as `open_input` does, and where they are more than `longest`."""
    with open_input(path) as file:
        size = os.fstat(file.fileno()).st_size
        if longest is not None and size > longest:
            raise OSError(errno.EINVAL, f"{size} bytes, where at most {longest} are read", str(path))
        return file.read()


def user_path(text: str) -> Path:
    """The path that `text` means: `~` is the home folder where there is such a user, and a name like any other where
    there is none.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def kind_of(path: Path) -> str | None:
    """`a named pipe`, `a device` ... for what is there and no file; None for a file, a broken link and nothing."""
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except (OSError, ValueError):
        return None


def first_repeated(names: Iterable[str]) -> str | None:
    """The first name that a file gives for the second time; None where all differ."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)


def _refuse_special(path: Path, mode: int) -> None:
    kind = _KINDS.get(stat.S_IFMT(mode))
    if kind is not None:
        raise OSError(errno.EINVAL, f"{kind}, not a file", str(path))
