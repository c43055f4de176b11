"""The stage `curate`: read, embed, weigh, choose, say why."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.checkpoint.files import machine_errors, write_json, write_tensors
from alignkeep.checkpoint.folders import OutputFolder, discard, leads
from alignkeep.checkpoint.records import Record, identity_of
from alignkeep.curate.config import CurateConfig
from alignkeep.curate.prepare import Prepared, fingerprints, local_inputs, plan_curation, prepare
from alignkeep.curate.vectors import SETS
from alignkeep.errors import AlignkeepError, MachineError, NoEffectError
from alignkeep.models.processes import Processes
from alignkeep.progress import Progress, Silent

if TYPE_CHECKING:
    from alignkeep.curate.scoring import Choice

__all__ = ["CurateResult", "curate", "plan"]

WEIGHTS_NAME, SUMMARY_NAME, VECTORS_NAME = "weights.parquet", "summary.json", "embeddings.safetensors"
_STORE = "embeddings"  # until the stage is done


@dataclass(frozen=True)
class CurateResult:
    """`folder` is what `train --weights` takes; `summary` is its summary.json."""

    folder: Path
    n: int
    kept: int
    summary: dict[str, Any]

    def as_json(self) -> dict[str, object]:
        summary = {name: value for name, value in self.summary.items() if name != "steps"}
        return {"folder": self.folder, **summary}


def plan(config: CurateConfig) -> dict[str, object]:
    """What `curate(config)` would do, with estimates; raises its user errors, loads no model, writes nothing."""
    return plan_curation(prepare(config))


def curate(
    config: CurateConfig, *, out: Path, overwrite: bool = False, resume: bool = True, progress: Progress | None = None
) -> CurateResult:
    """Weigh the examples and write `weights.parquet`, `summary.json` and `explanation.json` to `out`, with `embed.keep`
    also `embeddings.safetensors`.

    Called again after it finished it does nothing; killed, it goes on behind the last embeddings on disk. Under
    torchrun the processes divide the embeddings and transports, and the first one writes. Raises RecipeError,
    CheckpointError, ShapeError or DataError before a model is loaded, NoEffectError where nothing tells the examples
    apart, MachineError (state kept) where memory or disk ran out.
    """
    started = time.monotonic()
    prepared = prepare(config)
    inputs = fingerprints(config)
    settings = config.model_dump(mode="json")
    about = {name: value for name, value in settings.items() if name != "evaluation"}  # it is only checked against
    if not config.loads_model:
        about["model"] = None
    processes = Processes.here(cpu=config.load.device == "cpu")
    folder = OutputFolder.open(
        Path(out),
        stage="curate",
        identity=identity_of("curate", about, inputs),
        overwrite=overwrite,
        resume=resume,
        inputs=local_inputs(config),
    )
    with closing(folder):
        if not folder.finished:
            result = _made(prepared, folder.work, processes, (progress or Silent()) if leads() else Silent())
            seconds = time.monotonic() - started
            folder.finish(Record("curate", folder.identity, settings, inputs, config.seed, seconds, result))
        processes.wait()
    summary = json.loads((folder.out / SUMMARY_NAME).read_text(encoding="utf-8"))
    return CurateResult(folder.out, summary["n"], summary["kept"], summary)


def _made(prepared: Prepared, work: Path, processes: Processes, progress: Progress) -> dict[str, object]:
    from alignkeep.curate.explain import explain
    from alignkeep.curate.scoring import choose

    try:
        choice = choose(prepared, work / _STORE, processes, progress)
        _check_effect(choice)
        summary = _summary(prepared, choice)
        if leads():
            with machine_errors(work):
                _write_weights(choice, work / WEIGHTS_NAME)
                write_json(work / SUMMARY_NAME, summary)
                explain(prepared, choice).write(work)
                if prepared.config.embed.keep and choice.vectors is not None:
                    sets = choice.vectors._asdict()
                    write_tensors(work / VECTORS_NAME, {name: sets[name] for name in SETS}, {})
    except AlignkeepError as error:
        if leads() and not isinstance(error, MachineError):  # a fault that would come again is not worth continuing
            discard(work)
        raise
    processes.wait()
    if leads():
        shutil.rmtree(work / _STORE, ignore_errors=True)
    return {name: value for name, value in summary.items() if name != "steps"}


def _check_effect(choice: Choice) -> None:
    if bool(choice.kept.all()) and float(choice.weights.max() - choice.weights.min()) < 1e-6:
        raise NoEffectError(
            "curate", seen="every example kept, and all of the same weight", expected="examples that differ",
            remedy="take references that differ, or another layer",
        )  # fmt: skip


def _summary(prepared: Prepared, choice: Choice) -> dict[str, object]:
    vectors = choice.vectors
    facts: dict[str, object] = {
        "method": prepared.config.method, "n": len(choice.mass), "kept": int(choice.kept.sum()), **choice.facts,
        "truncated": None if vectors is None else vectors.truncated,
    }  # fmt: skip
    if vectors is not None:
        # How far the anchors are from the data: an anchor of another task pulls towards that task.
        facts["mean_cosine"] = {
            "data_safe": float((vectors.data @ vectors.safe.mean(0)).mean()),
            "data_harmful": float((vectors.data @ vectors.harmful.mean(0)).mean()),
            "safe_harmful": float((vectors.safe @ vectors.harmful.mean(0)).mean()),
        }
    return facts


def _write_weights(choice: Choice, file: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    count = len(choice.mass)
    scores = {
        "safe_score": [None] * count if choice.safe is None else choice.safe.double().tolist(),
        "harm_score": [None] * count if choice.harmful is None else choice.harmful.double().tolist(),
    }
    table = pyarrow.table(
        {
            "index": pyarrow.array(range(count), pyarrow.int64()),
            "mass": pyarrow.array(choice.mass.double().tolist(), pyarrow.float64()),
            "weight": pyarrow.array(choice.weights.double().tolist(), pyarrow.float64()),
            "kept": pyarrow.array(choice.kept.tolist(), pyarrow.bool_()),
            **{name: pyarrow.array(values, pyarrow.float64()) for name, values in scores.items()},
        }
    )
    pyarrow.parquet.write_table(table, file)
