"""Charts as inline SVG, made by pure functions of their numbers.

Written by hand rather than by matplotlib: text stays text, every colour is a CSS class (light, dark, print and forced
colours are the style sheet's business), positions across are percentages, so that a chart is as readable on a phone as
on a wide screen without scaling its letters, and equal numbers give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

from alignkeep.charts.text import abridge, percent, visible
from alignkeep.types import Estimate

STYLES = (
    6  # the base and five more; a seventh model shares colour and shape with the second, its label tells them apart
)

_LABELS, _PLOT = 28, 54  # columns of a dot chart, percent of its width; the rest holds the printed values
_HEADING, _ROW, _GAP, _AXIS = 25, 21, 9, 40  # pixels
_TOP, _LEFT, _WIDE = 24, 8, 64  # of a line chart: pixels above it, percent beside it and across it
_LINE = 16  # pixels from one label to the next
_NARROW = 12  # characters of a name that fit beside a chart on a phone
_SHAPES = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0-11 0z",
    "M-5-5h10v10h-10z",
    "M0-7 7 0 0 7-7 0z",
    "M0-6.5 6.5 5-6.5 5z",
    "M0 6.5 6.5-5-6.5-5z",
)


class Mark(NamedTuple):
    """One rate of one model. `series` chooses colour and shape, 0 being the base; `reference` is the base's rate."""

    label: str
    series: int
    estimate: Estimate
    absent: str = "not measured"
    reference: float | None = None


class Group(NamedTuple):
    """Rates that belong together; `hint` says which way is better."""

    label: str
    hint: str
    marks: tuple[Mark, ...]


class Curve(NamedTuple):
    """One line: its points in order, x rising, and of each the ends of its interval where there are some."""

    label: str
    series: int
    points: tuple[tuple[float, float], ...]
    intervals: tuple[tuple[float, float], ...] = ()


def style_of(series: int) -> int:
    """Colour and shape of a series: 0 is kept for the base."""
    return 0 if series == 0 else 1 + (series - 1) % (STYLES - 1)


def marker(series: int) -> Markup:
    """The mark of a series around (0, 0)."""
    style = style_of(series)
    return Markup('<path class="mark s{}" d="{}"/>').format(style, _SHAPES[style])


def key(series: int) -> Markup:
    """The mark of a series as a small picture for running text."""
    return Markup('<svg class="key" width="14" height="14" viewBox="-8 -8 16 16" aria-hidden="true">{}</svg>').format(
        marker(series)
    )


def dot_chart(name: str, title: str, description: str, groups: Sequence[Group], *, axis: str) -> Markup:
    """Rates from 0 to 100 % as marks on their intervals, one row each; an upright tick shows the base's rate.

    `name` is the unique id. An unknown rate is words in its row, never a mark at 0.
    """
    height = sum(_HEADING + _ROW * len(group.marks) + _GAP for group in groups)
    parts: list[Markup] = [_grid(height)]
    top = 0
    for group in groups:
        parts.append(
            Markup('<text class="group" x="0" y="{}">{}<tspan class="hint" dx="8">{}</tspan></text>').format(
                top + 15, visible(group.label), visible(group.hint)
            )
        )
        top += _HEADING
        for mark in group.marks:
            parts.append(_row(mark, top + _ROW // 2))
            top += _ROW
        top += _GAP
    parts.append(
        Markup('<text class="axis" x="{}%" y="{}" text-anchor="middle">{}</text>').format(
            _LABELS + _PLOT // 2, height + 34, visible(axis)
        )
    )
    return picture(name, title, description, height + _AXIS, parts)


def _grid(height: int) -> Markup:
    lines = Markup("").join(
        Markup(
            '<line class="grid" x1="{0}%" x2="{0}%" y1="16" y2="{1}"/>'
            '<text class="tick" x="{0}%" y="{2}" text-anchor="middle">{0}</text>'
        ).format(tick, height, height + 16)
        for tick in (0, 25, 50, 75, 100)
    )
    return _plot(lines, height)


def _row(mark: Mark, middle: int) -> Markup:
    label = _name("label", mark.label, 0, middle + 4, 20)
    if mark.estimate.n == 0 or math.isnan(mark.estimate.value):
        words = Markup('<text class="absent" x="1%" y="{}">{}</text>').format(middle + 4, visible(mark.absent))
        return label + _plot(words, middle)
    style = style_of(mark.series)
    drawn = Markup('<line class="bar s{}" x1="{}%" x2="{}%" y1="{}" y2="{}"/>').format(
        style, number(100 * mark.estimate.low), number(100 * mark.estimate.high), middle, middle
    )
    if mark.reference is not None and not math.isnan(mark.reference):
        drawn += Markup('<line class="reference" x1="{0}%" x2="{0}%" y1="{1}" y2="{2}"/>').format(
            number(100 * mark.reference), middle - 8, middle + 8
        )
    drawn += Markup('<svg class="at" x="{}%" y="{}">{}</svg>').format(
        number(100 * mark.estimate.value), middle, marker(mark.series)
    )
    value = Markup('<text class="value" x="100%" y="{}" text-anchor="end">{}</text>').format(
        middle + 4, percent(mark.estimate.value)
    )
    return label + _plot(drawn, middle) + value


def _name(kind: str, name: str, x: int, y: float, limit: int) -> Markup:
    """A model's name of at most `limit` characters, and a shorter one that the style sheet shows on narrow screens."""
    text = Markup('<text class="{}" x="{}%" y="{}">{}</text>')
    if len(name) <= _NARROW:
        return text.format(kind, x, number(y), visible(abridge(name, _NARROW)))
    return text.format(f"{kind} wide", x, number(y), visible(abridge(name, limit))) + text.format(
        f"{kind} narrow", x, number(y), visible(abridge(name, _NARROW))
    )


def _plot(inner: Markup, height: int) -> Markup:
    return Markup('<svg class="at" x="{}%" width="{}%" height="{}">{}</svg>').format(
        _LABELS, _PLOT, max(height, 1), inner
    )


class _Frame(NamedTuple):
    """Where a line chart's values lie: shares of the plot, 0 to 100 from left and from top; `tall` in pixels."""

    x: tuple[float, float]
    y: tuple[float, float]
    tall: int

    def across(self, x: float) -> float:
        return 100 * (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)

    def down(self, y: float) -> float:
        return 100 - 100 * (y - self.y[0]) / (self.y[1] - self.y[0])

    def pixel(self, y: float) -> float:
        return _TOP + self.tall * self.down(y) / 100


def line_chart(name: str, title: str, description: str, curves: Sequence[Curve], *, across: str, up: str) -> Markup:
    """Curves on common axes, each named at its right end. Curves without points are left out; no curve is an error."""
    drawn = [curve for curve in curves if curve.points]
    xs, ys = zip(*(point for curve in drawn for point in curve.points), strict=True)
    ys = (*ys, *(end for curve in drawn for ends in curve.intervals for end in ends))
    ticks = round_ticks(min(0.0, *ys), max(ys))
    frame = _Frame((min(xs), max(xs)), (ticks[0], max(ticks[-1], *ys)), max(220, _LINE * len(drawn)))
    plot = Markup(
        '<svg x="{}%" y="{}" width="{}%" height="{}" viewBox="0 0 100 100" preserveAspectRatio="none" '
        'overflow="visible">{}</svg>'
    ).format(_LEFT, _TOP, _WIDE, frame.tall, Markup("").join(_curve(frame, curve) for curve in drawn))
    bars = Markup("").join(_bars(frame, curve) for curve in drawn)
    parts = [_levels(frame, ticks), bars, plot, _ends(frame, drawn), _edge(frame, across, up)]
    return picture(name, title, description, _TOP + frame.tall + 26, parts)


def _curve(frame: _Frame, curve: Curve) -> Markup:
    points = " ".join(f"{number(frame.across(x))},{number(frame.down(y))}" for x, y in curve.points)
    return Markup('<polyline class="curve s{}" points="{}"/>').format(style_of(curve.series), points)


def _bars(frame: _Frame, curve: Curve) -> Markup:
    """The interval of every point, and its mark."""
    style = style_of(curve.series)
    return Markup("").join(
        Markup('<line class="whisker s{0}" x1="{1}%" x2="{1}%" y1="{2}" y2="{3}"/>').format(
            style, across, number(frame.pixel(low)), number(frame.pixel(high))
        )
        + Markup('<svg class="at" x="{}%" y="{}">{}</svg>').format(across, number(frame.pixel(y)), marker(curve.series))
        for (x, y), (low, high) in zip(curve.points, curve.intervals, strict=False)
        for across in [number(_LEFT + _WIDE * frame.across(x) / 100)]
    )


def _ends(frame: _Frame, drawn: Sequence[Curve]) -> Markup:
    """The mark at the last point of every curve, and its name beside the plot."""
    heights = [frame.pixel(curve.points[-1][1]) for curve in drawn]
    return Markup("").join(
        Markup('<svg class="at" x="{}%" y="{}">{}</svg>').format(
            number(_LEFT + _WIDE * frame.across(curve.points[-1][0]) / 100), number(height), marker(curve.series)
        )
        + _name(f"end s{style_of(curve.series)}", curve.label, _LEFT + _WIDE + 2, beside + 4, 16)
        for curve, height, beside in zip(drawn, heights, _spread(heights, _TOP + frame.tall), strict=True)
    )


def _levels(frame: _Frame, ticks: Sequence[float]) -> Markup:
    """A line across at every tick, with its value."""
    return Markup("").join(
        Markup(
            '<line class="grid" x1="{}%" x2="{}%" y1="{}" y2="{}"/>'
            '<text class="tick" x="{}%" y="{}" dx="-8" text-anchor="end">{}</text>'
        ).format(_LEFT, _LEFT + _WIDE, number(y), number(y), _LEFT, number(y + 4), f"{tick:g}")
        for tick in ticks
        for y in [frame.pixel(tick)]
    )


def _edge(frame: _Frame, across: str, up: str) -> Markup:
    """The names of both axes, and where the lower one begins and ends."""
    below = _TOP + frame.tall + 18
    (first, last), right = frame.x, _LEFT + _WIDE
    words = [("tick", _LEFT, below, "start", f"{first:g}"), ("axis", _LEFT + _WIDE / 2, below, "middle", across)]
    words += [("tick", right, below, "end", f"{last:g}")] if last > first else []
    return Markup("").join(
        Markup('<text class="{}" x="{}%" y="{}" text-anchor="{}">{}</text>').format(*word[:4], visible(word[4]))
        for word in [*words, ("axis", 0, 12, "start", up)]
    )


def round_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Rising multiples of 1, 2, 2.5 or 5 times a power of ten, the first <= low, the last >= high."""
    size = max(abs(low), abs(high), 1.0)
    span = high - low if high - low > 1e-6 * size else size
    rough = span / about
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def _spread(heights: Sequence[float], lowest: float) -> list[float]:
    """Heights of labels moved as far as needed that no two touch and none lies below `lowest`; their order stays."""
    moved = list(heights)
    order = sorted(range(len(moved)), key=lambda index: (moved[index], index))
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + _LINE)
    for index in reversed(order):
        moved[index] = min(moved[index], lowest)
        lowest = moved[index] - _LINE
    return moved


def picture(name: str, title: str, description: str, height: int, parts: Sequence[Markup]) -> Markup:
    """A chart of these parts as wide as its place, with its title and description for those who do not see it."""
    return Markup(
        '<svg class="chart" width="100%" height="{1}" role="img" aria-labelledby="{0}-title {0}-desc">'
        '<title id="{0}-title">{2}</title><desc id="{0}-desc">{3}</desc>{4}</svg>'
    ).format(name, height, visible(title), visible(description), Markup("").join(parts))


def number(value: float) -> str:
    """At most two decimals and no negative zero, so that bytes do not depend on the last bit."""
    return f"{round(value, 2) + 0.0:g}"
