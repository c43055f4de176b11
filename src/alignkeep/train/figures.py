"""Tunes on the page: losses, what a probe saw over the steps, what was done inside the subspace that alignment rests
on, and what is forgotten over the amount of data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alignkeep.charts.figures import Figure, Points, Series, Table, caption_end, thinned
from alignkeep.charts.svg import Curve, line_chart
from alignkeep.stage import Finished
from alignkeep.trainers.log import LOG_NAME, column, inner

if TYPE_CHECKING:
    from alignkeep.train.forgetting import Interval
    from alignkeep.train.law import ForgettingLaw

_OURS = (None, "train")  # a log without a record is a tune's
_LAW = "forgetting.json"
_POINTS = 40  # of a fitted curve


@dataclass(frozen=True)
class Training:
    """A folder with a training log: (step, loss) in the order they were logged; of a guarded tune also (step, energy of
    the update inside the alignment subspace, energy beside it), and both for every matrix at the end; of a
    probed one (step, log-odds of refusal) and (step, divergence)."""

    label: str
    losses: Points
    energies: tuple[tuple[float, float, float], ...] = ()
    by_matrix: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    log_odds: Points = ()
    divergences: Points = ()


def figures_of(finished: Sequence[Finished], series: Series) -> tuple[Figure, ...]:
    """The figures of the tunes among these folders."""
    tunes = [read_training(one) for one in finished if LOG_NAME in one.names and one.facts.get("stage") in _OURS]
    laws = [one for one in finished if _LAW in one.names]
    return (*losses_of(tunes, series), *probes_of(tunes, series), *guards_of(tunes, series), *_laws(laws))


def read_training(one: Finished) -> Training:
    """A tune from its log and the facts of its record. Raises DataError for a broken log."""
    log = one.folder / LOG_NAME
    inside, beside = (column(log, f"alignguard/{side}") for side in ("inside", "beside"))
    return Training(
        label=one.label,
        losses=column(log, "loss"),
        energies=tuple((step, one, other) for (step, one), (_, other) in zip(inside, beside, strict=False)),
        by_matrix=_by_matrix(one.facts),
        log_odds=column(log, "safety/refusal_log_odds"),
        divergences=column(log, "safety/divergence"),
    )


def _by_matrix(facts: Mapping[str, object]) -> dict[str, tuple[float, float]]:
    """What a guarded tune's record says of every matrix; nothing where it is damaged or another stage's."""
    found = inner(facts, "result").get("energies")
    pairs = found.items() if isinstance(found, Mapping) else ()
    return {
        str(name): (float(pair[0]), float(pair[1]))
        for name, pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(one, int | float) for one in pair)
    }


def losses_of(trainings: Sequence[Training], series: Series) -> tuple[Figure, ...]:
    """One figure for all tunes that logged a loss."""
    logged = [training for training in trainings if training.losses]
    if not logged:
        return ()
    colours = series(training.label for training in logged)
    curves = [Curve(training.label, colours[training.label], thinned(training.losses)) for training in logged]
    caption = "Training loss at every logged step" + caption_end(training.losses for training in logged)
    table = Table(
        ("Run", "Logged steps", "First loss", "Lowest loss", "Last loss"),
        tuple(_told_curve(training) for training in logged),
    )
    chart = line_chart("training", "Training curves", caption, curves, across="step", up="loss (nats per token)")
    return (Figure("training", "Training curves", caption, chart, table),)


def _told_curve(training: Training) -> tuple[str, ...]:
    losses = [loss for _, loss in training.losses]
    return training.label, str(len(losses)), *(f"{loss:.3f}" for loss in (losses[0], min(losses), losses[-1]))


def probes_of(trainings: Sequence[Training], series: Series) -> tuple[Figure, ...]:
    """One figure for all tunes with a probe; none where there is no such tune."""
    probed = [training for training in trainings if training.log_odds]
    if not probed:
        return ()
    colours = series(one.label for one in probed)
    curves = [Curve(training.label, colours[training.label], training.log_odds) for training in probed]
    caption = (
        "Log-odds that an answer to a harmful prompt begins as the base's refusals do, mean over the probe's prompts; "
        "at 0 it is as likely as not."
    )
    rows = tuple(
        (training.label, f"{step:g}", f"{odds:.2f}", _nats(dict(training.divergences).get(step)))
        for training in probed
        for step, odds in training.log_odds
    )
    table = Table(("Run", "Step", "Log-odds of refusal", "Divergence on harmless prompts, nats"), rows)
    title = "Safety while tuning"
    chart = line_chart("probe", title, caption, curves, across="step", up="log-odds of refusal")
    return (Figure("probe", title, caption, chart, table),)


def _nats(divergence: float | None) -> str:
    return "-" if divergence is None else f"{divergence:.3f}"


def guards_of(trainings: Sequence[Training], series: Series) -> tuple[Figure, ...]:
    """Two figures for all guarded tunes, over steps and over layers; none where there is no such tune."""
    guarded = [training for training in trainings if any(_energy(one) for one in training.energies)]
    if not guarded:
        return ()
    colours = series(one.label for one in guarded)
    curves: list[Curve] = []
    for training in guarded:
        points = tuple((one[0], 100 * one[1] / _energy(one)) for one in training.energies if _energy(one))
        curves.append(Curve(training.label, colours[training.label], points))
    caption = (
        "Of the update's squared norm, the share inside the subspace that the base's refusals rest on, at every logged "
        "step of a tune with AlignGuard."
    )
    rows = tuple(
        (training.label, f"{inside:.3g}", f"{beside:.3g}", f"{100 * inside / (inside + beside):.1f} %")
        for training in guarded
        for _, inside, beside in [next(one for one in reversed(training.energies) if _energy(one))]
    )
    table = Table(("Run", "Inside, at the end", "Beside, at the end", "Share inside"), rows)
    title = "The update inside the alignment subspace"
    chart = line_chart("guard", title, caption, curves, across="step", up="share inside, %")
    return (Figure("guard", title, caption, chart, table), *_by_layer(guarded, curves))


def _by_layer(guarded: Sequence[Training], curves: Sequence[Curve]) -> tuple[Figure, ...]:
    """How far every layer has moved inside the subspace: the same tunes, in the same colours."""
    drawn: list[Curve] = []
    for training, curve in zip(guarded, curves, strict=True):
        layers: dict[int, list[tuple[float, float]]] = {}
        for name, pair in training.by_matrix.items():
            number = re.search(r"\.(\d+)\.", name)
            if number:
                layers.setdefault(int(number[1]), []).append(pair)
        norms = tuple((float(at), math.sqrt(sum(one for one, _ in pairs))) for at, pairs in sorted(layers.items()))
        if len(norms) > 1:
            drawn.append(Curve(training.label, curve.series, norms))
    if not drawn:
        return ()
    caption = "Norm of the update inside the alignment subspace, layer by layer, at the end of each guarded tune."
    rows = tuple((curve.label, f"{layer:g}", f"{norm:.3g}") for curve in drawn for layer, norm in curve.points)
    chart = line_chart("guard-layers", "Drift by layer", caption, drawn, across="layer", up="norm inside")
    return (Figure("guard-layers", "Drift by layer", caption, chart, Table(("Run", "Layer", "Norm inside"), rows)),)


def _energy(one: tuple[float, float, float]) -> float:
    return one[1] + one[2]


def _laws(finished: Sequence[Finished]) -> tuple[Figure, ...]:
    if not finished:
        return ()
    from alignkeep.train.law import read_forgetting

    return forgetting_of([read_forgetting(one.folder / _LAW) for one in finished])


def forgetting_of(laws: Sequence[ForgettingLaw]) -> tuple[Figure, ...]:
    """One figure for every law."""
    return tuple(_law(law, f"forgetting-{at}" if at else "forgetting") for at, law in enumerate(laws))


def _law(law: ForgettingLaw, name: str) -> Figure:
    curves: list[Curve] = []
    rows: list[tuple[str, ...]] = []
    for series, method in enumerate(law.methods, start=1):
        tunes = [(one.amount, one.loss - law.base_loss) for one in law.tunes if one.method == method]
        most = max((amount for amount, _ in tunes), default=law.unit)
        amounts = [most * at / _POINTS for at in range(1, _POINTS + 1)]
        curve = tuple((amount, law.excess(method, amount)) for amount in amounts)
        curves.append(Curve(method, series, curve))
        for amount in sorted({amount for amount, _ in tunes}):
            seen = [excess for one, excess in tunes if one == amount]
            rows.append(
                (
                    method,
                    f"{amount:g}",
                    f"{sum(seen) / len(seen):.3f} ({len(seen)})",
                    f"{law.excess(method, amount):.3f}",
                )
            )
    caption = (
        "Loss on the base's own refusals above the base's, in nats per token: the law amplitude x (amount / "
        f"{law.unit:g})^exponent + offset, one exponent for all methods ({_said(law.exponent)})."
    )
    notes = tuple(
        f"{method}: amplitude {_said(fitted.amplitude)}, offset {_said(fitted.offset)}"
        for method, fitted in law.methods.items()
    )
    title = "What is forgotten over the amount of data"
    chart = line_chart(name, title, caption, curves, across="tuning examples", up="nats above the base")
    header = ("Method", "Examples", "Measured, mean (tunes)", "Fitted")
    return Figure(name, title, caption, chart, Table(header, tuple(rows)), notes)


def _said(fitted: Interval) -> str:
    value, low, high = fitted
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"
