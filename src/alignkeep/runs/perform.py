"""One function runs every stage: it claims the folder, resumes, records, keeps or drops on an error, and finishes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from alignkeep.checkpoint.folders import RECORD_NAME, OutputFolder, discard, leads, refuse_overlap
from alignkeep.checkpoint.listing import owner_of
from alignkeep.checkpoint.records import Record, identity_of
from alignkeep.errors import AlignkeepError, DataError
from alignkeep.extras import require
from alignkeep.progress import Progress, Silent
from alignkeep.stage import Inputs, Job, Stage, Task

FAILED = "failed "  # before a stage's name in a record: it made nothing, and left what it had measured

Config = TypeVar("Config", bound=BaseModel)
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")


def perform(
    stage: Stage[Config, Prepared, Result],
    config: Config,
    *,
    out: str | Path,
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
) -> Result:
    """The result of the stage in the folder `out`.

    A finished folder of the same settings and inputs is read back (unless `resume=False`); what an interrupted attempt
    left is gone on with; `overwrite` lets another run's result be replaced. A failed run may leave what it measured
    (`Stage.evidence`), which the next run replaces. Of several processes the first writes; all
    return the same, or raise the same error. Raises the stage's errors before any work is spent, and RecipeError where
    `out` cannot be used.
    """
    began, out = time.monotonic(), Path(os.path.realpath(out))
    if not (out / RECORD_NAME).exists():  # what is finished is read back without what made it
        require(stage.extra, stage.name)
    task = Task(stage, config)
    inputs = stage.inputs(task)
    deciding = inputs.recorded if inputs.deciding is None else inputs.deciding
    identity = identity_of(stage.name, deciding, inputs.fingerprints)
    refuse_overlap(out, inputs.paths)
    if resume and _is_finished(out, stage.name, identity):
        OutputFolder.open(out, stage=stage.name, identity=identity).close()  # clears what a kill may have left
        return stage.result(out)
    require(stage.extra, stage.name)
    prepared = task.prepared
    owner = owner_of(out)
    overwrite = overwrite or (owner is not None and owner[0].startswith(FAILED))  # it made nothing
    folder = OutputFolder.open(
        out, stage=stage.name, identity=identity, overwrite=overwrite, resume=resume, inputs=inputs.paths
    )
    try:
        if not folder.finished:
            with _machine_failures(stage, out):
                _do(stage, prepared, folder, inputs, progress or Silent(), began)
    except AlignkeepError as error:
        if leads() and not stage.is_worth_keeping(error, folder.work):
            _leave_evidence(stage, folder, inputs, error, began)
        raise
    finally:
        folder.close()
    return stage.result(out)


def _do(
    stage: Stage[Config, Prepared, Result],
    prepared: Prepared,
    folder: OutputFolder,
    inputs: Inputs,
    progress: Progress,
    began: float,
) -> None:
    job = Job(folder.work, inputs.fingerprints, progress if leads() else Silent())
    result = stage.work(prepared, job)

    def finish() -> None:
        record = Record(
            stage=stage.name,
            identity=folder.identity,
            config=inputs.recorded,
            inputs=inputs.fingerprints,
            seed=inputs.seed,
            seconds=time.monotonic() - began,
            result=result,
        )
        folder.finish(record, leftovers=stage.leftovers())

    if not stage.together:
        finish()
        return
    from alignkeep.trainers.processes import by_first

    by_first(finish)


def _leave_evidence(
    stage: Stage[Config, Prepared, Result], folder: OutputFolder, inputs: Inputs, error: AlignkeepError, began: float
) -> None:
    """What the stage measured before it failed, under a record of its own; else nothing."""
    names = [name for name in stage.evidence(error) if (folder.work / name).is_file()]
    if not names:
        discard(folder.work)
        return
    record = Record(
        stage=f"{FAILED}{stage.name}",
        identity=folder.identity,
        config=inputs.recorded,
        inputs=inputs.fingerprints,
        seed=inputs.seed,
        seconds=time.monotonic() - began,
        result={"failed": str(error)},
    )
    folder.leave(record, names)


def _is_finished(out: Path, stage: str, identity: str) -> bool:
    """Whether `out` holds the result of this very run."""
    try:
        record = Record.read(out)
    except DataError:
        return False
    return (record.stage, record.identity) == (stage, identity)


@contextmanager
def _machine_failures(stage: Stage[Config, Prepared, Result], out: Path) -> Iterator[None]:
    """Memory or disk that runs out in a stage that loads a model to train it, as a MachineError."""
    if stage.less_memory is None:
        yield
        return
    from alignkeep.trainers.failures import machine_failures

    with machine_failures(out, stage.name, stage.less_memory):
        yield
