"""The stage `tamper`: a model harmfully tuned and ablated, asked after each, and forgotten; the curve is what stays.

It uses tunes, merges and the direction of an injection as they are, and so stands above these rooms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.progress import Progress
from alignkeep.runs.perform import perform
from alignkeep.stage import Finished, Inputs, Job, Made, Plan, Stage, Task
from alignkeep.tamper.config import TamperConfig

if TYPE_CHECKING:
    from alignkeep.charts.figures import Figure, Series
    from alignkeep.judging.measure import PromptMeasure
    from alignkeep.tamper.curve import Curve, TamperResult
    from alignkeep.tamper.points import Key, Measured, Side
    from alignkeep.tamper.prepare import Prepared

__all__ = ["TAMPER", "plan", "tamper"]


def tamper(
    config: TamperConfig, *, out: Path, overwrite: bool = False, resume: bool = True, progress: Progress | None = None
) -> TamperResult:
    """Break `config.model`, and its base, in the ways that are asked for, and write what was measured to `out`.

    No model is kept. Interrupted and called again it goes on with the next point. Raises RecipeError, DataError or
    CheckpointError before any work is spent, NoEffectError where a model refuses nothing to begin with, MachineError
    (state kept) where memory or disk ran out.
    """
    return perform(TAMPER, config, out=out, overwrite=overwrite, resume=resume, progress=progress)


def plan(config: TamperConfig) -> dict[str, object]:
    """What `tamper(config)` would do; raises its user errors, loads no model, writes nothing."""
    return TAMPER.plan(config).as_json()


class TamperStage(Stage[TamperConfig, "Prepared", "TamperResult"]):
    name = "tamper"
    config = TamperConfig
    references = (("base",), ("harmful_data",), ("suite",))
    less_memory = "halve tune.batch_size, or generation.batch_size"
    shows_alone = True

    def feed(self, config: TamperConfig, made: Made) -> TamperConfig:
        """What came out against its base, or the model itself where nothing did."""
        if not made.has_model:
            return config
        load = config.load.model_copy(update={"revision": None})  # a revision is the base's, not the tune's
        fed = {"model": made.model, "base": config.base or made.base, "load": load}
        return config.model_copy(update=fed)

    def foresee(self, config: TamperConfig, made: Made) -> Plan:
        """What is to come is not there to be looked at: the base stands in for it, and has no base."""
        fed = self.feed(config, made)
        return self.plan(fed.model_copy(update={"base": None}) if made.is_to_come else fed)

    def prepare(self, config: TamperConfig) -> Prepared:
        from alignkeep.tamper.prepare import prepare

        return prepare(config)

    def inputs(self, task: Task[TamperConfig, Prepared]) -> Inputs:
        from alignkeep.tamper.prepare import fingerprints

        config = task.config
        named = (config.model, config.base, config.harmful_data)
        paths = [path for path in map(Path, filter(None, named)) if path.exists()]
        return Inputs(fingerprints(config), paths, config.model_dump(mode="json"), seed=config.seed)

    def plan(self, config: TamperConfig) -> Plan:
        from alignkeep.tamper.prepare import plan_tampering, prepare

        return Plan(plan_tampering(prepare(config)))

    def work(self, prepared: Prepared, job: Job) -> dict[str, object]:
        from alignkeep.tamper.points import measure_of, measure_points

        measure = measure_of(prepared)
        result = _result(prepared, measure, measure_points(prepared, measure, job))
        result.write(job.folder)
        curves = {"model": result.model, **({} if result.base is None else {"base": result.base})}
        return {
            "broken_after": {side: curve.broken_after for side, curve in curves.items()},
            "within": max(prepared.counts, default=0),
            "notes": list(result.notes),
        }

    def result(self, folder: Path) -> TamperResult:
        from alignkeep.tamper.curve import TAMPER_NAME, read_tamper

        return read_tamper(folder / TAMPER_NAME)

    def leftovers(self) -> tuple[str, ...]:
        from alignkeep.tamper.points import PARTIAL_NAME

        return (PARTIAL_NAME,)

    def methods(self, settings: Mapping[str, Any], metrics: Iterable[str] | None = None) -> tuple[str, ...]:
        tunes = ("tamper", "holm") if settings.get("harmful_data") else ()
        return (*tunes, *(("ablation",) if settings.get("ablation", True) else ()), "wilson", "mcnemar")

    def figures(self, finished: Sequence[Finished], series: Series) -> tuple[Figure, ...]:
        from alignkeep.tamper.figures import figures_of

        return figures_of(finished, series)


TAMPER = TamperStage()


def _result(prepared: Prepared, measure: PromptMeasure, found: Mapping[Key, Measured]) -> TamperResult:
    from alignkeep.tamper.curve import TamperResult

    config = prepared.config
    base = None if config.base is None else _curve("base", config.base, measure, found)
    against = [] if base is None else [
        measure.compare(found[key].measurement, found[key._replace(side="base")].measurement)
        for key in found if key.side == "model"
    ]  # fmt: skip
    settings = config.model_dump(mode="json", include={"suite", "judge", "limit", "seed", "harmful_data"})
    if prepared.counts:
        settings |= config.tune.model_dump(mode="json")
    return TamperResult(
        model=_curve("model", config.model, measure, found),
        base=base,
        against_base=tuple(against),
        prompts=dict(Counter(prompt.kind for prompt in prepared.asked)),
        settings=settings,
        notes=prepared.notes,
    )


def _curve(side: Side, model: str, measure: PromptMeasure, found: Mapping[Key, Measured]) -> Curve:
    from alignkeep.tamper.curve import Point, curve_of

    own = {key: one for key, one in found.items() if key.side == side}
    start = next(one.measurement for key, one in own.items() if key.attack == "none")
    points = [
        Point(
            key.attack, key.examples, one.measurement.metrics,
            {} if key.attack == "none" else measure.compare(one.measurement, start), one.layer,
        )
        for key, one in own.items()
    ]  # fmt: skip
    return curve_of(model, points)
