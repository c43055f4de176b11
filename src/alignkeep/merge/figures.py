"""What the weight of a merge trades: task against harm refusal, one mark for every weight of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from alignkeep.charts.figures import Figure, Labelled, Series, Table
from alignkeep.charts.scatter import Spot, scatter_chart
from alignkeep.charts.text import interval, p_value, percent, points
from alignkeep.judging.metrics import HARM_REFUSAL, RATES, TASK_ACCURACY
from alignkeep.merge.swept import SWEEP_NAME, SweepResult, read_sweep
from alignkeep.stage import Finished
from alignkeep.types import Estimate, PairedTest

_TASK, _REFUSAL = TASK_ACCURACY.name, HARM_REFUSAL.name
_BASE, _TUNED, _BETWEEN = 0, 1, 2  # series: colours and marks of the ends and of what lies between


@dataclass(frozen=True)
class _Model:
    """One model that was measured: the merge of a weight, or an end that no weight gives."""

    name: str
    series: int
    metrics: Mapping[str, Estimate]
    test: PairedTest | None
    picked: bool = False
    weight: float | None = None

    @property
    def spot(self) -> Spot:
        rates = self.metrics[_TASK], self.metrics[_REFUSAL]
        return Spot(self.name, self.series, *rates, picked=self.picked, needed=self.series != _BETWEEN)


def figures_of(finished: Sequence[Finished], series: Series) -> tuple[Figure, ...]:
    """The figures of the sweeps among these folders."""
    ours = [one for one in finished if SWEEP_NAME in one.names]
    return fronts_of([Labelled(one.label, read_sweep(one.folder / SWEEP_NAME)) for one in ours])


def fronts_of(sweeps: Sequence[Labelled[SweepResult]]) -> tuple[Figure, ...]:
    """One figure for every sweep, in their order."""
    return tuple(_figure(place, sweep, alone=len(sweeps) == 1) for place, sweep in enumerate(sweeps, start=1))


def front_chart(name: str, title: str, description: str, found: SweepResult) -> Markup:
    """Task accuracy across and harm refusal up, in percent, with crossed 95 % intervals, joined from weight to weight.

    `name` is the unique id. The picked weight has a ring; labels that would touch become one (`0.1 to 0.3`) or none.
    """
    models = _models(found)
    spots = [model.spot for model in models]
    weights = [spot for spot, model in zip(spots, models, strict=True) if model.weight is not None]
    across, up = "task prompts answered right, %", "harmful prompts refused, %"
    return scatter_chart(name, title, description, spots, [weights], across=across, up=up)


def _figure(place: int, sweep: Labelled[SweepResult], *, alone: bool) -> Figure:
    found, name = sweep.found, "front" if place == 1 else f"front-{place}"
    title = "Choosing the merge weight" + ("" if alone else f": {sweep.label}")
    caption = (
        f"The merge at every weight of the tuned model, asked {found.prompts.get('task', 0)} task and "
        f"{found.prompts.get('harmful', 0)} harmful prompts. The lines are 95 % intervals; the ring is round weight "
        f"{found.picked:g}, which was picked."
    )
    notes = (
        f"{found.why[:1].upper()}{found.why[1:]}." if found.why else f"Picked by the rule `{found.rule}`.",
        f"Weights that no other beats in both: {', '.join(f'{weight:g}' for weight in found.front)}.",
        "The weight was chosen on these prompts, which flatters it a little: judge the merge by others.",
    )
    return Figure(name, title, caption, front_chart(name, title, caption, found), _table(found), notes)


def _models(found: SweepResult) -> list[_Model]:
    """Base, weights, tuned model; an end that a weight gives stands there once."""
    claims = [found.settings.get(claim) is True for claim in ("weight_0_is_base", "weight_1_is_tuned")]
    ends = {weight: kind for weight, kind, claim in zip((0.0, 1.0), ("base", "tuned"), claims, strict=True) if claim}
    models = [] if claims[0] else [_Model("base", _BASE, found.base, None)]
    for trade in found.trades:
        kind = ends.get(trade.weight)
        series = {"base": _BASE, "tuned": _TUNED, None: _BETWEEN}[kind]
        name = f"{trade.weight:g}" + (f" ({kind})" if kind else "")
        picked, test = trade.weight == found.picked, trade.tests.get(_REFUSAL)
        models.append(_Model(name, series, trade.metrics, test, picked=picked, weight=trade.weight))
    return models if claims[1] or not found.tuned else [*models, _Model("tuned", _TUNED, found.tuned, None)]


def _table(found: SweepResult) -> Table:
    """Every rate that was measured, and what harm refusal lost against the base on the same prompts."""
    models = _models(found)
    shown = [name for name in RATES if any(name in model.metrics and model.metrics[name].n for model in models)]
    shown.sort(key=lambda name: (name != _TASK, name != _REFUSAL))

    def told(model: _Model, name: str) -> str:
        rate = model.metrics.get(name)
        return "not measured" if rate is None or rate.n == 0 else f"{percent(rate.value)} ({interval(rate)})"

    def change(test: PairedTest | None) -> str:
        return "" if test is None else f"{points(test.difference.value)} ({p_value(test.p_value)})"

    rows = tuple(
        (model.name + (", picked" if model.picked else ""), *(told(model, name) for name in shown), change(model.test))
        for model in models
    )
    return Table(("Weight", *(RATES[name].title for name in shown), f"Change of {HARM_REFUSAL.label}, points"), rows)
