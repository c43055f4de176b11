"""Output that appears whole or not at all: the life of one stage's `--out` folder.

A stage works in a hidden sibling, `.NAME.partial`, which survives a kill and is continued by the same command; `finish`
writes `record.json` into it as its last file, flushes everything and renames it. So a folder under its final name is
always complete, and a partial folder with a record is a finished one whose rename was cut off.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from alignkeep.checkpoint.files import (
    append_jsonl,
    flush,
    flush_tree,
    machine_errors,
    read_jsonl,
    sweep,
    write_json,
    write_text,
)
from alignkeep.errors import MachineError, RecipeError

if TYPE_CHECKING:
    from alignkeep.checkpoint.records import Record

__all__ = [
    "OutputFolder", "append_jsonl", "claim_folder", "leads", "read_jsonl", "release_folder", "write_json", "write_text",
]  # fmt: skip

RECORD_NAME = "record.json"
_CLAIM_NAME = ".alignkeep.json"
_SECONDS_TO_WAIT_FOR_LEADER = 60.0  # chosen: far more than the leader needs to empty a folder


@dataclass
class OutputFolder:
    """One stage's output; made by `open`.

    `finished` says that `out` already holds this very run, so that there is nothing to do. Otherwise `work` is where to
    write; `resumed` says that it still holds what an earlier, killed attempt at the same run left there. Under
    `torchrun` the first process claims and finishes the folder; the others only wait for it.
    """

    out: Path
    work: Path
    stage: str
    identity: str
    finished: bool = False
    resumed: bool = False
    _lock: int | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls,
        out: Path,
        *,
        stage: str,
        identity: str,
        overwrite: bool = False,
        resume: bool = True,
        inputs: Sequence[Path] = (),
    ) -> OutputFolder:
        """Claim `out` for the run (`stage`, `identity`).

        `overwrite` allows another alignkeep run's result to be replaced; a folder of the user's own is never touched.
        `resume=False` does the work again from nothing, also where it is finished. `inputs` are paths that must not lie
        in `out`, nor `out` in them. Raises RecipeError where `out` cannot be used, MachineError where the disk fails.
        """
        out = Path(os.path.realpath(out))
        folder = cls(out, out.with_name(f".{out.name}.partial"), stage, identity)
        _refuse_file(out)
        _refuse_overlap(out, inputs)
        if not leads():
            folder._follow(resume)
            return folder
        with machine_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            folder._recover()
            if resume and _owner(out) == (stage, identity):
                folder.finished = True
                return folder
            _refuse_foreign(out, stage, identity, overwrite=overwrite)
            folder._claim_work(resume)
        return folder

    def finish(self, record: Record, *, leftovers: Sequence[str] = ()) -> None:
        """Make `work` the folder `out`: record, flush, rename. An old result is moved aside first and deleted after.

        `leftovers` are files that only a resumed run needs: they stay until nothing is left to resume.
        """
        if leads():
            with machine_errors(self.out):
                record.write(self.work)
                for name in leftovers:
                    (self.work / name).unlink(missing_ok=True)
                (self.work / _CLAIM_NAME).unlink(missing_ok=True)
                sweep(self.work)
                flush_tree(self.work)
                self._promote()
        self.finished = True
        self.close()

    def close(self) -> None:
        """Let go of the partial folder and keep what is in it; one in which nothing was made is removed."""
        if not self.finished:
            release_folder(self.work)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def _aside(self) -> Path:
        return self.out.with_name(f".{self.out.name}.old")

    def _recover(self) -> None:
        """Complete a `finish` that was cut off between its last write and its last rename."""
        made = _claim(self.work / RECORD_NAME)
        complete = made is not None and not (self.work / _CLAIM_NAME).exists()
        free = not self.out.exists() or not any(self.out.iterdir()) or _owner(self.out) is not None
        if complete and free and (not self.out.exists() or made == (self.stage, self.identity)):
            self._promote()
        if self._aside.exists():
            if self.out.exists():
                shutil.rmtree(self._aside)
            else:
                self._aside.rename(self.out)

    def _promote(self) -> None:
        if self.out.exists() and any(self.out.iterdir()):
            shutil.rmtree(self._aside, ignore_errors=True)
            self.out.rename(self._aside)
        self.work.rename(self.out)
        flush(self.out.parent)
        if self._aside.exists():
            shutil.rmtree(self._aside)

    def _claim_work(self, resume: bool) -> None:
        self.work.mkdir(exist_ok=True)
        self._lock = _lock(self.work, self.out)
        self.resumed = resume and _claim(self.work / _CLAIM_NAME) == (self.stage, self.identity)
        if not self.resumed:
            _empty(self.work)
            write_json(self.work / _CLAIM_NAME, {"stage": self.stage, "identity": self.identity})

    def _follow(self, resume: bool) -> None:
        """Wait until the first process has claimed the folder, or finished it before."""
        mine = (self.stage, self.identity)

        def finished() -> bool:
            return resume and _owner(self.out) == mine

        _wait_for_leader(lambda: finished() or _claim(self.work / _CLAIM_NAME) == mine, self.out)
        self.finished = finished()


def claim_folder(out: Path, *, stage: str, identity: str, overwrite: bool = False) -> Path:
    """Claim `out` for a run of several stages, each with a folder of its own in it; returns the absolute path.

    Unlike a stage's folder it is there from the start. Raises RecipeError where another run, or the user, owns it;
    `overwrite` empties another run's folder. Under torchrun the first process claims.
    """
    out = Path(os.path.realpath(out))
    _refuse_file(out)
    if not leads():
        _wait_for_leader(lambda: _owner(out) == (stage, identity), out)
        return out
    with machine_errors(out):
        if out.is_dir():
            sweep(out)
        _refuse_foreign(out, stage, identity, overwrite=overwrite)
        out.mkdir(parents=True, exist_ok=True)
        if _owner(out) != (stage, identity):
            _empty(out)
            write_json(out / _CLAIM_NAME, {"stage": stage, "identity": identity})
    return out


def release_folder(out: Path) -> None:
    """Remove a claimed folder in which nothing was made."""
    if leads() and out.is_dir() and [path.name for path in out.iterdir()] == [_CLAIM_NAME]:
        shutil.rmtree(out)


def leads() -> bool:
    """Whether this is the process that writes: the only one, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _wait_for_leader(claim: Callable[[], bool], out: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_WAIT_FOR_LEADER
    while not claim():
        if time.monotonic() > deadline:
            raise MachineError(
                f"--out {out}",
                seen="no claim by the first process",
                expected="a folder that all processes see",
                remedy="put --out on a shared disk, and read the first process's error",
            )
        time.sleep(0.05)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _refuse_file(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RecipeError(f"--out {out}", seen="a file", expected="a folder", remedy="choose another --out")


def _refuse_overlap(out: Path, inputs: Sequence[Path]) -> None:
    for path in inputs:
        source = Path(os.path.realpath(path))
        if source == out or source in out.parents or out in source.parents:
            raise RecipeError(
                f"--out {out}",
                seen=f"the input {path}",
                expected="a folder apart from every input",
                remedy="choose another --out, inputs are never written to",
            )


def _refuse_foreign(out: Path, stage: str, identity: str, *, overwrite: bool) -> None:
    if not out.exists() or not any(out.iterdir()):
        return
    owner = _owner(out)
    if owner is None:
        raise RecipeError(
            f"--out {out}",
            seen="files that alignkeep did not write there",
            expected="a new or empty folder, or an earlier result",
            remedy="choose another --out (--overwrite never deletes such files)",
        )
    if not overwrite and owner != (stage, identity):
        raise RecipeError(
            f"--out {out}",
            seen=f"the result of another run ({owner[0]}, other settings or inputs)",
            expected="a new folder, or the folder of this very run",
            remedy="choose another --out, or give --overwrite to replace it",
        )


def _owner(out: Path) -> tuple[str, str] | None:
    """(stage, identity) of the run whose folder it is: from the record, or from the claim of a run in progress."""
    return _claim(out / RECORD_NAME) or _claim(out / _CLAIM_NAME)


def _claim(path: Path) -> tuple[str, str] | None:
    """The (stage, identity) in a file, or None where it is missing or not ours."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return str(facts["stage"]), str(facts["identity"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def _lock(work: Path, out: Path) -> int | None:
    """Hold the partial folder for this process; the kernel lets go when it dies."""
    try:
        import fcntl
    except ImportError:  # Windows: two commands on one folder at once are not caught there
        return None
    handle = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise RecipeError(
            f"--out {out}",
            seen="another alignkeep command writing there now",
            expected="one command per folder",
            remedy="wait for it to end, or choose another --out",
        ) from error
    except OSError:  # a file system without locks
        os.close(handle)
        return None
    return handle
