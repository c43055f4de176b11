"""Choosing the weight by measurement: every weight is made in memory, asked, counted, and one is picked by a rule.

What was measured is on the disk at once, so that a killed sweep goes on with the next weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from alignkeep.checkpoint.parts import is_whole, seal
from alignkeep.errors import DataError, NoEffectError, RecipeError
from alignkeep.judging.measure import Measure, measure_prompts
from alignkeep.merge.config import MergeConfig, SweepConfig
from alignkeep.merge.edits import edits_of
from alignkeep.merge.inputs import Models, read_models
from alignkeep.merge.interpolation import Interpolation, is_one_lora, is_rounded
from alignkeep.merge.method import Rule
from alignkeep.merge.select import (
    REFUSAL,
    TASK,
    Pick,
    gain_kept,
    nearest_trade,
    pareto_front,
    pick_gain,
    pick_safe,
    pick_task,
)
from alignkeep.merge.swept import (
    PARTIAL_NAME,
    SWEEP_NAME,
    Point,
    SweepResult,
    add_measured,
    read_measured,
    read_sweep,
)
from alignkeep.models.loading import LoadedModel
from alignkeep.progress import Progress, Silent
from alignkeep.types import Estimate, Measurement, Trade


class _Ends(NamedTuple):
    """Where the base and the one tuned model (None: there are several) are measured: at the weight that is this model,
    else by themselves."""

    base: Point
    tuned: Point | None


def check_sweep(config: MergeConfig) -> dict[str, int]:
    """What a sweep would ask at every weight: prompts by kind. Loads no model.

    Raises DataError for a task without right answers, prompts without harmful ones, prompts in both files, and
    RecipeError for a judge or backend that cannot be used.
    """
    return dict(Counter(prompt.kind for prompt in _measure_of(_settings(config), config.seed).prompts))


def sweep(
    config: MergeConfig,
    *,
    work: Path,
    method_at: Callable[[float], Rule],
    measure: Measure | None = None,
    progress: Progress | None = None,
    known: MutableMapping[str, Measurement] | None = None,
) -> SweepResult:
    """Measure base, tuned model and every weight, pick one, and write `sweep.json` into `work`.

    `method_at(weight)` is the merge's rule at a weight; `measure` None asks the prompts of the config. A sweep that
    `work` holds already is read back; one that was killed goes on. Weights 0 and 1 are measured too, but 1 is picked
    only where the config has it. `known` are `base` and `tuned` as another sweep of the same models measured them; what
    is missing there is put in. Raises as `check_sweep`, `read_models` and `load_model` do, DataError where the judge
    can score nothing, and NoEffectError where the rule would leave the base as it is, or where its pick keeps less of
    the task's gain than the config wants: then `sweep.json` is written too.
    """
    settings = _settings(config)
    if is_whole(work / SWEEP_NAME):
        result = read_sweep(work / SWEEP_NAME)
    else:
        measure = measure or _measure_of(settings, config.seed)
        models = read_models(config.base, config.tuned, config.load.revision)
        ends = _ends(config, models, method_at)
        measured = _measure_all(config, models, method_at, ends, measure, work, progress or Silent(), known)
        result = _result(config, settings, ends, measure, measured)
        seal(result.write(work))
    (work / PARTIAL_NAME).unlink(missing_ok=True)
    _refuse_lost_gain(settings, result)
    return result


def _settings(config: MergeConfig) -> SweepConfig:
    if config.sweep is None:
        raise ValueError("a merge without `sweep` has its weight already")
    return config.sweep


def _measure_of(settings: SweepConfig, seed: int) -> Measure:
    if settings.generation.backend != "transformers":
        raise RecipeError(
            "sweep.generation.backend",
            seen=settings.generation.backend,
            expected="transformers: other engines load stored models, and a sweep stores none",
            remedy="drop the backend, or give --weight and evaluate the merge",
        )
    return measure_prompts(
        prompts=settings.prompts,
        task=settings.task,
        columns=settings.columns,
        judge=settings.judge,
        generation=settings.generation,
        limit=settings.limit,
        seed=seed,
    )


def _ends(config: MergeConfig, models: Models, method_at: Callable[[float], Rule]) -> _Ends:
    """Weight 0 is not every method's base (an alignment-subspace merge keeps the rest of the tune), nor weight 1 the
    tuned model (DARE drops half of the tune, and whole weights round an adapter's)."""
    whole = method_at(1.0)
    rounds = is_one_lora(models) and config.form == "model" and is_rounded(models)
    is_tuned = not rounds and all(whole(name).identity == 0 for name in edits_of(models, whole))
    base: Point = "base" if edits_of(models, method_at(0.0)) else 0.0
    if len(models.tuned) > 1:
        return _Ends(base, None)
    return _Ends(base, 1.0 if is_tuned else "tuned")


def _measure_all(
    config: MergeConfig,
    models: Models,
    method_at: Callable[[float], Rule],
    ends: _Ends,
    measure: Measure,
    work: Path,
    progress: Progress,
    known: MutableMapping[str, Measurement] | None,
) -> dict[Point, Measurement]:
    """Base and tuned model first, then the weights, rising."""
    weights = sorted({0.0, 1.0, *_settings(config).weights})
    points: list[Point] = [ends.base, *([] if ends.tuned is None else [ends.tuned])]
    points += [weight for weight in weights if weight not in points]
    measured = read_measured(work, len(measure.prompts))
    roles: dict[str, Point | None] = {"base": ends.base, "tuned": ends.tuned}
    for role, point in roles.items():
        if point is not None and known is not None and role in known and point not in measured:
            add_measured(work, point, known[role])
            measured[point] = known[role]
    missing: list[Point] = [point for point in points if point not in measured]
    interpolation = Interpolation(config, models, method_at) if missing else None
    for point in missing:
        assert interpolation is not None
        name = point if isinstance(point, str) else f"weight {point:g}"
        label = f"{config.method}, {name}" if known is not None else name
        progress.start(f"{label} ({points.index(point) + 1} of {len(points)})", len(measure.prompts))
        with _shown(interpolation, point, ends) as loaded:
            found = measure(loaded, progress)
        for metric in (TASK, REFUSAL):
            _check_known(found, metric, name)
        add_measured(work, point, found)
        measured[point] = found
        progress.advance(0, note=f"task {_percent(found.metrics[TASK])}, refusal {_percent(found.metrics[REFUSAL])}")
        progress.done()
    if known is not None:
        known.update({role: measured[point] for role, point in roles.items() if point is not None})
    return measured


def _shown(interpolation: Interpolation, point: Point, ends: _Ends) -> AbstractContextManager[LoadedModel]:
    if point == ends.base:
        return interpolation.base()
    if isinstance(point, str) or point == ends.tuned:
        return interpolation.tuned()
    return interpolation.at(point)


def _check_known(measured: Measurement, metric: str, name: str) -> None:
    if metric not in measured.metrics or measured.metrics[metric].n == 0:
        raise DataError(
            f"sweep, {name}",
            seen=f"no {metric.replace('_', ' ')}: no answer to these prompts could be scored",
            expected="answers that are right or wrong, refusals or not",
            remedy="give prompts in the words of this model, or another judge",
        )


def _result(
    config: MergeConfig, settings: SweepConfig, ends: _Ends, measure: Measure, measured: Mapping[Point, Measurement]
) -> SweepResult:
    base = measured[ends.base]
    trades = [
        Trade(point, found.metrics, {} if point == ends.base else measure.compare(found, base))
        for point, found in sorted((p, m) for p, m in measured.items() if not isinstance(p, str))
    ]
    tuned = {} if ends.tuned is None else dict(measured[ends.tuned].metrics)
    asked = {ends.base, *settings.weights}
    pick = _pick(settings, [trade for trade in trades if trade.weight in asked], base.metrics, tuned)
    is_tuned = pick.trade is not None and pick.trade.weight == ends.tuned
    if pick.trade is None or pick.trade.weight == ends.base or (is_tuned and settings.pick == "gain"):
        raise _no_effect(settings, [trade for trade in trades if trade.weight != ends.base], base.metrics)
    return SweepResult(
        trades=tuple(trades),
        base=base.metrics,
        tuned=tuned,
        picked=pick.trade.weight,
        rule=settings.pick,
        margin=settings.margin,
        why=_why(settings, pick, pick.trade, trades, tuned, is_tuned=is_tuned),
        front=pareto_front(trades),
        prompts=Counter(prompt.kind for prompt in measure.prompts),
        settings={
            "method": config.method,
            "models": {"base": config.base, "tuned": list(config.tuned)},
            "task": settings.task,
            "prompts_file": settings.prompts,
            "judge": settings.judge,
            "limit": settings.limit,
            "seed": config.seed,
            "weight_0_is_base": ends.base == 0,
            "weight_1_is_tuned": ends.tuned == 1,
        },
    )


def _pick(
    settings: SweepConfig, trades: Sequence[Trade], base: Mapping[str, Estimate], tuned: Mapping[str, Estimate]
) -> Pick:
    match settings.pick:
        case "task":
            return pick_task(trades, base)
        case "safe":
            return pick_safe(trades, base, settings.margin)
        case "gain":
            return pick_gain(trades, base, tuned, settings.gain, settings.margin)


def _why(
    settings: SweepConfig,
    pick: Pick,
    picked: Trade,
    trades: Sequence[Trade],
    tuned: Mapping[str, Estimate],
    *,
    is_tuned: bool,
) -> str:
    others = {"the base": pick.base, **({"the tuned model": tuned} if tuned and not is_tuned else {})}
    beside = ", ".join(f"{name} has {_percent(metrics[TASK])}" for name, metrics in others.items())
    score = f"{_percent(picked.metrics[TASK])} ({beside})"
    if settings.pick == "task":
        tied = ", ".join(f"{weight:g}" for weight in pick.admitted[1:])
        words = f"weight {picked.weight:g} has the best task score, {score}"
        words += f"; as good are {tied}, the smallest is taken" if tied else ""
        return words + ("; it is the tuned model itself, no merge does better on the task" if is_tuned else "")
    if settings.pick == "gain":
        return (
            f"weight {picked.weight:g}, of harm refusal {_percent(picked.metrics[REFUSAL])} (the base has "
            f"{_percent(pick.base[REFUSAL])}), is the safest and best of those that keep {settings.gain:.0%} of what "
            f"the tune gained on the task; its task score is {score}"
        )
    above = next((trade for trade in trades if trade.weight > picked.weight), None)
    return (
        f"weight {picked.weight:g} is the largest whose harm refusal, {_percent(picked.metrics[REFUSAL])}, is at most "
        f"{100 * settings.margin:g} points below the base's, {_percent(pick.base[REFUSAL])}"
        + (f" ({above.weight:g} refuses {_percent(above.metrics[REFUSAL])})" if above is not None else "")
        + f"; its task score is {score}"
    )


def _no_effect(settings: SweepConfig, trades: Sequence[Trade], base: Mapping[str, Estimate]) -> NoEffectError:
    near = nearest_trade(trades)
    best = max(trades, key=lambda trade: trade.metrics[TASK].value, default=None)
    shown = near if settings.pick == "safe" else best
    beside = "" if shown is None else (
        f"; the nearest is {shown.weight:g} with task {_percent(shown.metrics[TASK])} and harm refusal "
        f"{_percent(shown.metrics[REFUSAL])}, the base has {_percent(base[TASK])} and {_percent(base[REFUSAL])}"
    )  # fmt: skip
    wanted = {
        "task": "better on the task than the base",
        "safe": f"within {100 * settings.margin:g} points of the base's harm refusal",
        "gain": f"short of the tune itself and keeps {settings.gain:.0%} of what it gained on the task",
    }[settings.pick]
    return NoEffectError(
        f"sweep, pick {settings.pick}",
        seen=f"no weight that is {wanted}{beside}",
        expected="a merge that is not the base itself",
        remedy="choose --weight yourself, or other sweep.weights, a wider sweep.margin or another --method",
    )


def _refuse_lost_gain(settings: SweepConfig, result: SweepResult) -> None:
    """Raises NoEffectError, with the front, for a pick that gives most of the tune's gain away: the base is cheaper."""
    kept = gain_kept(result.at(result.picked).metrics, result.base, result.tuned)
    if kept is None or kept >= settings.gain:
        return
    front = ", ".join(
        f"{weight:g}: {_points(result, weight, TASK)}/{_points(result, weight, REFUSAL)}" for weight in result.front
    )
    raise NoEffectError(
        f"sweep, pick {settings.pick}",
        seen=f"weight {result.picked:g}, which keeps {kept:.0%} of what the tune gained on the task",
        expected=f"{settings.gain:.0%} or more; weight: task/harm refusal are {front}",
        remedy="give --alignment-data (alignkeep answers) for better methods, or take --pick gain or task, or --weight",
    )


def _points(result: SweepResult, weight: float, metric: str) -> str:
    return f"{100 * result.at(weight).metrics[metric].value:.0f}"


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} %"
