"""Output that appears whole or not at all: the life of one stage's `--out` folder.

A stage works in a hidden sibling, `.NAME.partial`, which survives a kill and is continued by the same command. It
carries a claim, which says whose it is. `finish` writes `record.json` into it as its last file, which lists all others,
flushes everything, renames the folder and takes the claim out. So a folder under its final name is always complete, and
a claimed partial folder whose record's files are all there is a finished one whose rename was cut off.

Nothing without our mark inside is touched, and no link is followed: where something of the user's is called
`.NAME.partial`, the work goes to `.NAME.partial-IDENTITY`; a result to be replaced waits in `.NAME.old-IDENTITY`.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.checkpoint.files import (
    append_jsonl,
    flush,
    flush_tree,
    machine_errors,
    notice,
    read_jsonl,
    sweep,
    write_json,
    write_text,
)
from alignkeep.checkpoint.listing import (
    CLAIM_NAME,
    RECORD_NAME,
    TEMPORARY,
    fault_in,
    files_below,
    foreign_in,
    list_files,
    owner_of,
    read_listed,
    run_in,
)
from alignkeep.checkpoint.parts import SEAL
from alignkeep.errors import MachineError, RecipeError

if TYPE_CHECKING:
    from alignkeep.checkpoint.records import Record

__all__ = [
    "RECORD_NAME", "OutputFolder", "append_jsonl", "claim_folder", "discard", "leads", "read_jsonl", "release_folder",
    "write_json", "write_text",
]  # fmt: skip

_HEX = re.compile(r"[0-9a-f]{1,12}")
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

        `overwrite` allows another alignkeep run's result to be replaced; a folder of the user's own, and one into which
        he has put something, is never touched. `resume=False` does the work again from nothing, also where it is
        finished. `inputs` are paths that must not lie in `out`, nor `out` in them. Raises RecipeError where `out`
        cannot be used, MachineError where the disk fails.
        """
        out = Path(os.path.realpath(out))
        folder = cls(out, _place(out, identity), stage, identity)
        _refuse_file(out)
        refuse_overlap(out, inputs)
        if not leads():
            folder._follow(resume)
            return folder
        with machine_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            if resume and run_in(out / RECORD_NAME) == folder._run:
                folder._tidy()
                folder.finished = True
                return folder
            try:
                folder._claim_work(resume, overwrite)
            except BaseException:
                folder._unlock()
                raise
        return folder

    def finish(self, record: Record, *, leftovers: Sequence[str] = ()) -> None:
        """Make `work` the folder `out`: record, flush, rename. An old result is moved aside first and deleted after.

        `leftovers` are files that only a resumed run needs: they stay until nothing is left to resume.
        """
        if leads():
            with machine_errors(self.out):
                made = [name for name in files_below(self.work) if not _is_leftover(name, leftovers)]
                replace(record, files=list_files(self.work, made)).write(self.work)
                flush_tree(self.work)
                self._promote()
        self.finished = True
        self.close()

    def leave(self, record: Record, names: Sequence[str]) -> None:
        """Instead of `finish`, where nothing was made: of the partial folder only these files become `out`, under a
        record whose stage is not this run's, so that it is never taken for its result."""
        _empty(self.work, names)
        write_json(self.work / CLAIM_NAME, {"stage": record.stage, "identity": record.identity})
        self.stage = record.stage
        self.finish(record)

    def close(self) -> None:
        """Let go of the partial folder and keep what is in it; one in which nothing was made is removed."""
        if not self.finished:
            release_folder(self.work)
        self._unlock()

    @property
    def _run(self) -> tuple[str, str]:
        return self.stage, self.identity

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _claim_work(self, resume: bool, overwrite: bool) -> None:
        if not _is_ours(self.work) and os.path.lexists(self.work):
            raise _taken(self.work, self.out)
        is_there = self.work.is_dir()
        if is_there:
            self._lock = _lock(self.work, self.out)
        self._recover(resume, overwrite)
        if self.finished:
            self._unlock()
            return
        _refuse_foreign(self.out, *self._run, overwrite=overwrite)
        self._refuse_taken_aside()
        if not is_there:
            self.work.mkdir(exist_ok=True)
            self._lock = _lock(self.work, self.out)
        self.resumed = resume and run_in(self.work / CLAIM_NAME) == self._run and not _has_links(self.work)
        if not self.resumed:
            _empty(self.work)
            write_json(self.work / CLAIM_NAME, {"stage": self.stage, "identity": self.identity})
        if self.work.name != f".{self.out.name}.partial":
            notice(f"{self.out.parent}/.{self.out.name}.partial is not this tool's and stays as it is; "
                   f"the work goes to {self.work.name}")  # fmt: skip

    def _recover(self, resume: bool, overwrite: bool) -> None:
        """Complete a `finish` that was cut off between its last write and its last rename, or take it back."""
        complete = run_in(self.work / CLAIM_NAME) == run_in(self.work / RECORD_NAME) == self._run
        free = _is_free(self.out) or owner_of(self.out) == self._run or overwrite
        if resume and complete and free and _is_whole(self.work):
            self._promote()
            self.finished = True
        elif _is_free(self.out):
            for aside in self._aside()[:1]:
                aside.rename(self.out)
        self._tidy()

    def _promote(self) -> None:
        if not _is_free(self.out):
            _refuse_foreign(self.out, *self._run, overwrite=True)  # looked at again: the work may have taken days
            self._refuse_taken_aside()
            self.out.rename(self._new_aside())
        listed: Any = read_listed(self.work)
        for name in files_below(self.work):
            if name not in (CLAIM_NAME, RECORD_NAME) and name not in listed:
                (self.work / name).unlink()
        self.work.rename(self.out)
        flush(self.out.parent)
        self._tidy()

    def _new_aside(self) -> Path:
        """Where the result that is in the way goes."""
        _, identity = owner_of(self.out) or self._run
        return self.out.with_name(f".{self.out.name}.old-{_short(identity)}")

    def _refuse_taken_aside(self) -> None:
        if not _is_free(self.out) and os.path.lexists(self._new_aside()):
            raise _taken(self._new_aside(), self.out)

    def _tidy(self) -> None:
        """Behind the last rename: the claim goes, and the result that was moved aside."""
        if _is_free(self.out):
            return
        if run_in(self.out / RECORD_NAME) == run_in(self.out / CLAIM_NAME) == self._run:
            (self.out / CLAIM_NAME).unlink()
        for aside in self._aside():
            if foreign_in(aside) is None:
                _remove(aside, RECORD_NAME)

    def _aside(self) -> list[Path]:
        """Results that were moved aside: no link, and with the record of the run that the name says."""
        start = f".{self.out.name}.old-"
        found = []
        for path in sorted(self.out.parent.iterdir()):
            if path.name.startswith(start) and not path.is_symlink() and path.is_dir():
                owner = run_in(path / RECORD_NAME)
                if owner is not None and path.name == start + _short(owner[1]):
                    found.append(path)
                elif _is_free(path) and _HEX.fullmatch(path.name[len(start) :]):
                    path.rmdir()  # a kill came between the last file and the folder
        return found

    def _follow(self, resume: bool) -> None:
        """Wait until the first process has claimed the folder, or finished it before."""

        def finished() -> bool:
            return resume and run_in(self.out / RECORD_NAME) == self._run

        def claimed() -> bool:
            self.work = _place(self.out, self.identity)
            return run_in(self.work / CLAIM_NAME) == self._run

        _wait_for_leader(lambda: finished() or claimed(), self.out)
        self.finished = finished()


def claim_folder(out: Path, *, stage: str, identity: str, overwrite: bool = False, writes: Sequence[str] = ()) -> Path:
    """Claim `out` for a run of several stages, each with a folder of its own in it; returns the absolute path.

    Unlike a stage's folder it is there from the start. `writes` are the files that the run itself puts beside those
    folders. Raises RecipeError where another run, or the user, owns the folder or something in it; `overwrite` empties
    another run's folder. Under torchrun the first process claims.
    """
    out = Path(os.path.realpath(out))
    _refuse_file(out)
    if not leads():
        _wait_for_leader(lambda: owner_of(out) == (stage, identity), out)
        return out
    with machine_errors(out):
        if owner_of(out) == (stage, identity):
            sweep(out)
            return out
        _refuse_foreign(out, stage, identity, overwrite=overwrite)
        out.mkdir(parents=True, exist_ok=True)
        _empty(out)
        write_json(out / CLAIM_NAME, {"stage": stage, "identity": identity, "files": list(writes)})
    return out


def release_folder(out: Path) -> None:
    """Remove a claimed folder in which nothing was made."""
    if leads() and not out.is_symlink() and out.is_dir() and [path.name for path in out.iterdir()] == [CLAIM_NAME]:
        shutil.rmtree(out)


def discard(work: Path) -> None:
    """Remove a partial folder whose work is not worth continuing, its claim last."""
    if run_in(work / CLAIM_NAME) is not None and not work.is_symlink():
        _remove(work, CLAIM_NAME)


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


def _empty(folder: Path, names: Sequence[str] = (), mark: str = CLAIM_NAME) -> None:
    """All but the mark, so that a kill in the middle leaves it ours, and these. Links are removed and not followed."""
    for path in folder.iterdir():
        if path.name != mark and path.name not in names:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove(folder: Path, mark: str) -> None:
    """A folder of ours, its mark last."""
    _empty(folder, mark=mark)
    shutil.rmtree(folder)


def _place(out: Path, identity: str) -> Path:
    usual = out.with_name(f".{out.name}.partial")
    if _is_ours(usual) or not os.path.lexists(usual):
        return usual
    return out.with_name(f"{usual.name}-{_short(identity)}")


def _short(identity: str) -> str:
    return identity[:12]


def _is_ours(path: Path) -> bool:
    """A folder with a claim of ours in it, or nothing yet but what a claim grows from."""
    if path.is_symlink() or not path.is_dir():
        return False
    growing = f".{CLAIM_NAME}."
    return run_in(path / CLAIM_NAME) is not None or all(
        one.name.startswith(growing) and TEMPORARY.fullmatch(one.name) for one in path.iterdir()
    )


def _is_free(out: Path) -> bool:
    return not out.exists() or not any(out.iterdir())


def _is_leftover(name: str, leftovers: Sequence[str]) -> bool:
    last = name.rpartition("/")[2]
    known = name in (CLAIM_NAME, RECORD_NAME, *leftovers)
    return known or TEMPORARY.fullmatch(last) is not None or SEAL.fullmatch(last) is not None


def _is_whole(work: Path) -> bool:
    from alignkeep.checkpoint.manifest import fault_in_tensors

    return fault_in(work, read_listed(work)) is None and fault_in_tensors(work) is None


def _has_links(work: Path) -> bool:
    return any((work / name).is_symlink() for name in files_below(work))


def _refuse_file(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RecipeError(f"--out {out}", seen="a file", expected="a folder", remedy="choose another --out")


def _taken(name: Path, out: Path) -> RecipeError:
    return RecipeError(
        f"--out {out}",
        seen=f"{name.name} beside it, which alignkeep did not write",
        expected="that name to be free",
        remedy="move it away, or choose another --out",
    )


def refuse_overlap(out: Path, inputs: Sequence[Path]) -> None:
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
    if _is_free(out):
        return
    owner = owner_of(out)
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
    stray = foreign_in(out)
    if stray is not None:
        raise RecipeError(
            f"--out {out}",
            seen=f"{stray}, which alignkeep did not write",
            expected="only what the record there lists",
            remedy="move it away, or choose another --out (such files are never deleted)",
        )


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
