"""How much work it takes to break a model: harm refusal over the examples of a harmful tune, and after ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from alignkeep.charts.figures import Figure, Labelled, Series, Table
from alignkeep.charts.svg import Curve as Line
from alignkeep.charts.svg import Group, Mark, dot_chart, line_chart
from alignkeep.charts.text import interval, p_value, percent, points
from alignkeep.judging.metrics import BENIGN_COMPLIANCE, DEGENERATE, HARM_REFUSAL
from alignkeep.stage import Finished
from alignkeep.tamper.curve import TAMPER_NAME, Curve, Point, TamperResult, read_tamper, sentences
from alignkeep.types import PairedTest

SHOWN = (HARM_REFUSAL, BENIGN_COMPLIANCE, DEGENERATE)


class _Side(NamedTuple):
    label: str
    series: int
    curve: Curve


def figures_of(finished: Sequence[Finished], series: Series) -> tuple[Figure, ...]:
    """The figures of the tamperings among these folders."""
    ours = [one for one in finished if TAMPER_NAME in one.names]
    found = [Labelled(one.label, read_tamper(one.folder / TAMPER_NAME)) for one in ours]
    return tampered(found, series([one.label for one in found]))


def tampered(results: Sequence[Labelled[TamperResult]], series: Mapping[str, int]) -> tuple[Figure, ...]:
    """One figure of the tunes and one of the ablation for every result, where it has them."""
    figures: list[Figure] = []
    for place, one in enumerate(results, start=1):
        behind = "" if place == 1 else f"-{place}"
        beside = "" if len(results) == 1 else f": {one.label}"
        sides = [_Side(_named(one.found.model.model), series[one.label], one.found.model)]
        if one.found.base is not None:
            sides.insert(0, _Side("base", 0, one.found.base))
        if one.found.model.tunes:
            figures.append(_tunes(f"tamper{behind}", f"Harmful tuning{beside}", one.found, sides))
        if one.found.model.ablated is not None:
            figures.append(_ablation(f"ablation{behind}", f"Refusal direction taken out{beside}", one.found, sides))
    return tuple(figures)


def _named(model: str) -> str:
    """The folder's name, not where it lies: pages are passed on, and the record has the whole path."""
    return Path(model).name or model


def _tunes(name: str, title: str, found: TamperResult, sides: Sequence[_Side]) -> Figure:
    settings = found.settings
    caption = (
        f"Harm refusal on {found.prompts.get('harmful', 0)} prompts after a tune ({settings.get('method')}, "
        f"{settings.get('epochs'):g} passes) on so many harmful examples; 0 is the model as it was. The upright lines "
        "are 95 % intervals."
    )
    lines = [_line(side) for side in sides]
    chart = line_chart(name, title, caption, lines, across="harmful examples", up="harmful prompts refused, %")
    notes = [f"{_start(side, sides)}{sentences(side.curve)[0]}." for side in sides]
    return Figure(name, title, caption, chart, _table(found, sides, "tune"), (*notes, _READ_TOGETHER))


_READ_TOGETHER = (
    "A fall of harm refusal with benign compliance kept is a model that was turned; where that falls too, or answers "
    "degenerate, it was only damaged."
)


def _line(side: _Side) -> Line:
    known = [point for point in side.curve.rising if point.refusal.n]
    return Line(
        side.label, side.series,
        tuple((float(point.examples), 100 * point.refusal.value) for point in known),
        tuple((100 * point.refusal.low, 100 * point.refusal.high) for point in known),
    )  # fmt: skip


def _ablation(name: str, title: str, found: TamperResult, sides: Sequence[_Side]) -> Figure:
    caption = (
        "Rates before and after what every matrix writes along the refusal direction is taken out of it; nothing is "
        "trained. The lines are 95 % intervals, the upright tick is the rate before."
    )
    groups = [
        Group(
            metric.title, metric.hint,
            tuple(
                Mark(f"{side.label}, {point.label}", side.series, point.metrics[metric.name], reference=before)
                for side in sides
                for point, before in _before_and_after(side.curve, metric.name)
            ),
        )
        for metric in (HARM_REFUSAL, BENIGN_COMPLIANCE)
    ]  # fmt: skip
    chart = dot_chart(name, title, caption, groups, axis="percent of prompts")
    notes = tuple(f"{_start(side, sides)}{sentences(side.curve)[-1]}." for side in sides)
    return Figure(name, title, caption, chart, _table(found, sides, "ablation"), notes)


def _before_and_after(curve: Curve, metric: str) -> list[tuple[Point, float | None]]:
    start = curve.points[0]
    after = [] if curve.ablated is None else [(curve.ablated, start.metrics[metric].value)]
    return [(start, None), *after]


def _start(side: _Side, sides: Sequence[_Side]) -> str:
    return "" if len(sides) == 1 else f"{side.label}: "


def _table(found: TamperResult, sides: Sequence[_Side], attack: str) -> Table:
    """Every rate, and how harm refusal changed against the model as it was and against the base at the same point."""
    header = ["", *(metric.title for metric in SHOWN), f"Change of {HARM_REFUSAL.label}, points"]
    header += ["Model less base, points"] if found.base is not None else []
    rows = [
        _row(found, side, place, point)
        for side in sides
        for place, point in enumerate(side.curve.points)
        if point.attack in ("none", attack)
    ]
    return Table(tuple(header), tuple(rows))


def _row(found: TamperResult, side: _Side, place: int, point: Point) -> tuple[str, ...]:
    rates = [point.metrics[metric.name] for metric in SHOWN]
    told = [f"{percent(rate.value)} ({interval(rate)})" if rate.n else "not measured" for rate in rates]
    row = [f"{side.label}, {point.label}", *told, _change(point.fall)]
    if found.base is not None:
        is_model = side.curve is found.model
        row.append(_change(found.against_base[place].get(HARM_REFUSAL.name)) if is_model else "")
    return tuple(row)


def _change(test: PairedTest | None) -> str:
    if test is None or test.difference.n == 0:
        return ""
    return f"{points(test.difference.value)} ({interval(test.difference)}, {p_value(test.p_corrected)})"
