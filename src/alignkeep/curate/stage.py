"""The stage `curate`: read, embed, weigh, choose, say why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.checkpoint.files import machine_errors, write_json, write_tensors
from alignkeep.checkpoint.records import MADE_FROM
from alignkeep.curate.config import CurateConfig
from alignkeep.curate.methods import cited
from alignkeep.errors import NoEffectError
from alignkeep.progress import Progress
from alignkeep.runs.perform import perform
from alignkeep.stage import Finished, Inputs, Job, Made, Plan, Stage, Task

if TYPE_CHECKING:
    from torch import Tensor

    from alignkeep.charts.figures import Figure, Series
    from alignkeep.citations import Cited
    from alignkeep.curate.prepare import Prepared
    from alignkeep.curate.scoring import Choice

__all__ = ["CURATE", "CurateResult", "curate", "plan"]

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
    return perform(CURATE, config, out=out, overwrite=overwrite, resume=resume, progress=progress)


def plan(config: CurateConfig) -> dict[str, object]:
    """What `curate(config)` would do, with estimates; raises its user errors, loads no model, writes nothing."""
    return CURATE.plan(config).as_json()


class CurateStage(Stage[CurateConfig, "Prepared", CurateResult]):
    name = "curate"
    config = CurateConfig
    references = (("data",), ("safe",), ("harmful",), ("embeddings",), ("evaluation",), ("embed", "encoder"))
    together = True

    def fill(self, settings: Mapping[str, object], recipe: Mapping[str, Any]) -> dict[str, object]:
        """Of the examples that are learned, where it does not say otherwise."""
        tune = recipe.get("train")
        if isinstance(tune, dict) and "data" not in settings:
            settings = {name: tune[name] for name in ("data", "columns") if name in tune} | dict(settings)
        return super().fill(settings, recipe)

    def feed(self, config: CurateConfig, made: Made) -> CurateConfig:
        """Its anchors may not repeat the prompts that will measure the tune either."""
        more = tuple(prompts for prompts in made.asked if prompts not in config.evaluation)
        if not more:
            return config
        columns = {**made.asked_columns, **config.evaluation_columns}
        return config.model_copy(update={"evaluation": (*config.evaluation, *more), "evaluation_columns": columns})

    def hand_on(self, config: CurateConfig, made: Made, folder: Path | None) -> Made:
        weights = None if folder is None else str(folder)
        return replace(made, weights=weights, is_weighted=True, chosen_from=config.data)

    def prepare(self, config: CurateConfig) -> Prepared:
        from alignkeep.curate.prepare import prepare

        return prepare(config)

    def inputs(self, task: Task[CurateConfig, Prepared]) -> Inputs:
        from alignkeep.curate.prepare import fingerprints, local_inputs

        config = task.prepared.config
        settings = config.model_dump(mode="json")
        only_checked = ("evaluation", "evaluation_columns")
        deciding = {name: value for name, value in settings.items() if name not in only_checked}
        if not config.loads_model:
            deciding["model"] = None
        return Inputs(fingerprints(config), local_inputs(config), settings, deciding, config.seed)

    def plan(self, config: CurateConfig) -> Plan:
        from alignkeep.curate.prepare import plan_curation, prepare

        return Plan(plan_curation(prepare(config)))

    def work(self, prepared: Prepared, job: Job) -> dict[str, object]:
        return _made(prepared, job.fingerprints.get("data"), job.folder, job.progress)

    def result(self, folder: Path) -> CurateResult:
        summary = json.loads((folder / SUMMARY_NAME).read_text(encoding="utf-8"))
        return CurateResult(folder, summary["n"], summary["kept"], summary)

    def methods(self, settings: Mapping[str, Any], metrics: Iterable[str] | None = None) -> tuple[Cited, ...]:
        return cited(str(settings.get("method", "sot")))

    def figures(self, finished: Sequence[Finished], series: Series) -> tuple[Figure, ...]:
        from alignkeep.curate.figures import figures_of

        return figures_of(finished, series)

    def explain(self, folder: Path) -> Path | None:
        from alignkeep.curate.figures import EXPLANATION_NAME, write_explanation

        return write_explanation(folder) if (folder / EXPLANATION_NAME).is_file() else None


CURATE = CurateStage()


def _made(prepared: Prepared, made_from: str | None, work: Path, progress: Progress) -> dict[str, object]:
    from alignkeep.curate.explain import explain
    from alignkeep.curate.prepare import fitting
    from alignkeep.curate.scoring import choose
    from alignkeep.curate.vectors import SETS
    from alignkeep.models.loading import load_model
    from alignkeep.models.processes import Processes
    from alignkeep.trainers.processes import by_first

    config = prepared.config
    processes = Processes.here(cpu=config.load.device == "cpu")
    loaded = load_model(str(config.model), config.load) if config.loads_model else None
    fit = fitting(prepared, loaded)
    choice = choose(fit.prepared, loaded, work / _STORE, processes, progress)
    _check_effect(choice)
    summary = _summary(prepared, choice) | {"too_long": fit.too_long, "notes": list(prepared.notes)}

    def write() -> None:
        with machine_errors(work):
            _write_weights(choice, fit.rows["data"], prepared.count, made_from, work / WEIGHTS_NAME)
            write_json(work / SUMMARY_NAME, summary)
            explain(fit.prepared, choice, fit.rows).write(work)
            if config.embed.keep and choice.raw is not None:
                sets = choice.raw._asdict()
                write_tensors(work / VECTORS_NAME, {name: sets[name] for name in SETS}, {})
        shutil.rmtree(work / _STORE, ignore_errors=True)

    processes.wait()  # until none reads the store any more
    by_first(write)
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
        "method": prepared.config.method, "n": prepared.count, "kept": int(choice.kept.sum()), **choice.facts,
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


def _write_weights(choice: Choice, rows: Sequence[int], count: int, made_from: str | None, file: Path) -> None:
    """A row for each of the `count` examples, those that were looked at being `rows`. With the fingerprint of the data,
    which tells weights of these rows in another order when the file is alone."""
    import pyarrow
    import pyarrow.parquet

    def of_all(values: Tensor | None, left_out: object) -> list[object]:
        found = [left_out] * count
        for at, value in zip(rows, () if values is None else values.tolist(), strict=values is not None):
            found[at] = value
        return found

    table = pyarrow.table(
        {
            "index": pyarrow.array(range(count), pyarrow.int64()),
            "mass": pyarrow.array(of_all(choice.mass.double(), 0.0), pyarrow.float64()),
            "weight": pyarrow.array(of_all(choice.weights.double(), 0.0), pyarrow.float64()),
            "kept": pyarrow.array(of_all(choice.kept, False), pyarrow.bool_()),
            **{
                name: pyarrow.array(of_all(None if one is None else one.double(), None), pyarrow.float64())
                for name, one in (("safe_score", choice.safe), ("harm_score", choice.harmful))
            },
        }
    )
    told = {} if made_from is None else {MADE_FROM: made_from}
    pyarrow.parquet.write_table(table.replace_schema_metadata(told), file)
