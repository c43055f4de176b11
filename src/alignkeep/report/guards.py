"""Safety over the steps of a tune: what its probe saw, and what it did inside the subspace that alignment rests on."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from alignkeep.report.figures import Curve, line_chart
from alignkeep.report.logs import Training
from alignkeep.report.panels import Figure, Table
from alignkeep.report.subjects import Subject, series_of


def probes_of(trainings: Sequence[Training], subjects: Sequence[Subject]) -> tuple[Figure, ...]:
    """One figure for all tunes with a probe; none where there is no such tune."""
    probed = [training for training in trainings if training.log_odds]
    if not probed:
        return ()
    colours = series_of((one.label for one in probed), subjects)
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


def guards_of(trainings: Sequence[Training], subjects: Sequence[Subject]) -> tuple[Figure, ...]:
    """Two figures for all guarded tunes, over steps and over layers; none where there is no such tune."""
    guarded = [training for training in trainings if any(_energy(one) for one in training.energies)]
    if not guarded:
        return ()
    colours = series_of((one.label for one in guarded), subjects)
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
