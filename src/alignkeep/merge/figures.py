"""What the weight of a merge trades: task against harm refusal, one mark for every weight of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from alignkeep.charts.figures import Figure, Labelled, Series, Table
from alignkeep.charts.svg import marker, number, picture, round_ticks
from alignkeep.charts.text import interval, p_value, percent, points, visible
from alignkeep.judging.metrics import HARM_REFUSAL, RATES, TASK_ACCURACY
from alignkeep.merge.swept import SWEEP_NAME, SweepResult, read_sweep
from alignkeep.stage import Finished
from alignkeep.types import Estimate, PairedTest

_TASK, _REFUSAL = TASK_ACCURACY.name, HARM_REFUSAL.name
_TOP, _TALL, _LEFT, _WIDE = 22, 320, 9, 87  # pixels above the plot and its height; percent beside it and across it
_EDGE, _ROOM = 2.0, 18  # percent and pixels within the plot that are left free on every side
_BASE, _TUNED, _BETWEEN = 0, 1, 2  # series: colours and marks of the ends and of what lies between
# Labels may touch neither on a phone nor on a wide screen: pixels across the plot, and of a letter.
_SCREENS = ((265.0, 6.4), (900.0, 7.4))
_BESIDE = (
    (11, -9, "start"),
    (11, 20, "start"),
    (-11, -9, "end"),
    (-11, 20, "end"),
    (0, -15, "middle"),
    (0, 25, "middle"),
)
_FURTHER = tuple((dx, dy + (16 if dy > 0 else -16), anchor) for dx, dy, anchor in _BESIDE)  # of marks that coincide


@dataclass(frozen=True)
class _Spot:
    """One model that was measured: the merge of a weight, or an end that no weight gives."""

    name: str
    series: int
    metrics: Mapping[str, Estimate]
    test: PairedTest | None
    picked: bool = False

    @property
    def task(self) -> Estimate:
        return self.metrics[_TASK]

    @property
    def refusal(self) -> Estimate:
        return self.metrics[_REFUSAL]


class _Frame(NamedTuple):
    """From rates to places in the plot: percent from the left, pixels from the top. Ticks are in percent."""

    across: tuple[float, ...]
    up: tuple[float, ...]

    def x(self, rate: float) -> float:
        return _EDGE + (100 - 2 * _EDGE) * (100 * rate - self.across[0]) / (self.across[-1] - self.across[0])

    def y(self, rate: float) -> float:
        return _TALL - _ROOM - (_TALL - 2 * _ROOM) * (100 * rate - self.up[0]) / (self.up[-1] - self.up[0])


class _Label(NamedTuple):
    """Words at a place in the plot, moved from there by pixels."""

    text: str
    x: float
    y: float
    picked: bool = False
    needed: bool = False
    move: tuple[int, int, str] = (0, 0, "middle")

    def box(self, width: float, letter: float) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in pixels, where plot and letters are so wide."""
        (dx, dy, anchor), long = self.move, letter * len(self.text)
        left = self.x / 100 * width + dx - {"start": 0.0, "middle": long / 2, "end": long}[anchor]
        return left, self.y + dy - 11, left + long, self.y + dy + 3


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
    spots = _spots(found)
    frame = _Frame(_ticks([spot.task for spot in spots]), _ticks([spot.refusal for spot in spots]))
    inner = [_path(frame, found), *(_cross(frame, spot) for spot in spots)]
    inner += [_mark(frame, spot) for spot in sorted(spots, key=lambda spot: (spot.series != _BETWEEN, spot.picked))]
    inner += [_words(label) for label in _labels(frame, spots)]
    plot = Markup('<svg class="at" x="{}%" y="{}" width="{}%" height="{}">{}</svg>').format(
        _LEFT, _TOP, _WIDE, _TALL, Markup("").join(inner)
    )
    return picture(name, title, description, _TOP + _TALL + 40, [_grid(frame), plot])


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


def _spots(found: SweepResult) -> list[_Spot]:
    """Base, weights, tuned model; an end that a weight gives stands there once."""
    claims = [found.settings.get(claim) is True for claim in ("weight_0_is_base", "weight_1_is_tuned")]
    ends = {weight: kind for weight, kind, claim in zip((0.0, 1.0), ("base", "tuned"), claims, strict=True) if claim}
    spots = [] if claims[0] else [_Spot("base", _BASE, found.base, None)]
    for trade in found.trades:
        kind = ends.get(trade.weight)
        series = {"base": _BASE, "tuned": _TUNED, None: _BETWEEN}[kind]
        name = f"{trade.weight:g}" + (f" ({kind})" if kind else "")
        spots.append(_Spot(name, series, trade.metrics, trade.tests.get(_REFUSAL), picked=trade.weight == found.picked))
    return spots if claims[1] or not found.tuned else [*spots, _Spot("tuned", _TUNED, found.tuned, None)]


def _table(found: SweepResult) -> Table:
    """Every rate that was measured, and what harm refusal lost against the base on the same prompts."""
    spots = _spots(found)
    shown = [name for name in RATES if any(name in spot.metrics and spot.metrics[name].n for spot in spots)]
    shown.sort(key=lambda name: (name != _TASK, name != _REFUSAL))

    def told(spot: _Spot, name: str) -> str:
        rate = spot.metrics.get(name)
        return "not measured" if rate is None or rate.n == 0 else f"{percent(rate.value)} ({interval(rate)})"

    def change(test: PairedTest | None) -> str:
        return "" if test is None else f"{points(test.difference.value)} ({p_value(test.p_value)})"

    rows = tuple(
        (spot.name + (", picked" if spot.picked else ""), *(told(spot, name) for name in shown), change(spot.test))
        for spot in spots
    )
    return Table(("Weight", *(RATES[name].title for name in shown), f"Change of {HARM_REFUSAL.label}, points"), rows)


def _ticks(rates: Sequence[Estimate]) -> tuple[float, ...]:
    """Round percentages, 0 to 100 at most, that hold every rate with its interval."""
    ticks = round_ticks(100 * min(rate.low for rate in rates), 100 * max(rate.high for rate in rates))
    return tuple(tick for tick in ticks if tick <= 100)


def _grid(frame: _Frame) -> Markup:
    """Lines and values of both axes, and what they are."""
    level = Markup(
        '<line class="grid" x1="{}%" x2="{}%" y1="{}" y2="{}"/>'
        '<text class="tick" x="{}%" y="{}" dx="{}" text-anchor="{}">{}</text>'
    )
    lines = []
    for tick in frame.up:
        y = number(_TOP + frame.y(tick / 100))
        below = number(_TOP + frame.y(tick / 100) + 4)
        lines.append(level.format(_LEFT, _LEFT + _WIDE, y, y, _LEFT, below, -8, "end", f"{tick:g}"))
    for tick in frame.across:
        x = number(_LEFT + _WIDE * frame.x(tick / 100) / 100)
        lines.append(level.format(x, x, _TOP, _TOP + _TALL, x, _TOP + _TALL + 17, 0, "middle", f"{tick:g}"))
    axis = Markup('<text class="axis" x="{}%" y="{}" text-anchor="{}">{}</text>')
    lines.append(axis.format(0, 12, "start", "harmful prompts refused, %"))
    lines.append(axis.format(_LEFT + _WIDE / 2, _TOP + _TALL + 35, "middle", "task prompts answered right, %"))
    return Markup("").join(lines)


def _path(frame: _Frame, found: SweepResult) -> Markup:
    places = [(frame.x(t.metrics[_TASK].value), frame.y(t.metrics[_REFUSAL].value)) for t in found.trades]
    return Markup(
        '<svg width="100%" height="{0}" viewBox="0 0 100 {0}" preserveAspectRatio="none">'
        '<polyline class="path" points="{1}"/></svg>'
    ).format(_TALL, " ".join(f"{number(x)},{number(y)}" for x, y in places))


def _cross(frame: _Frame, spot: _Spot) -> Markup:
    line = Markup('<line class="whisker s{}" x1="{}%" x2="{}%" y1="{}" y2="{}"/>')
    x, y = number(frame.x(spot.task.value)), number(frame.y(spot.refusal.value))
    low, high = number(frame.x(spot.task.low)), number(frame.x(spot.task.high))
    bottom, top = number(frame.y(spot.refusal.low)), number(frame.y(spot.refusal.high))
    return line.format(spot.series, low, high, y, y) + line.format(spot.series, x, x, bottom, top)


def _mark(frame: _Frame, spot: _Spot) -> Markup:
    ring = Markup('<circle class="ring" r="10"/>') if spot.picked else Markup("")
    return Markup('<svg class="at" x="{}%" y="{}">{}{}</svg>').format(
        number(frame.x(spot.task.value)), number(frame.y(spot.refusal.value)), ring, marker(spot.series)
    )


def _words(label: _Label) -> Markup:
    dx, dy, anchor = label.move
    return Markup('<text class="{}" x="{}%" y="{}" dx="{}" text-anchor="{}">{}</text>').format(
        "value" if label.picked else "label", number(label.x), number(label.y + dy), dx, anchor, visible(label.text)
    )


def _labels(frame: _Frame, spots: Sequence[_Spot]) -> list[_Label]:
    """The picked weight first, then the ends and the rest; neighbours too close for two labels share one."""
    places = [(frame.x(spot.task.value), frame.y(spot.refusal.value)) for spot in spots]
    needed = [spot.picked or spot.series != _BETWEEN for spot in spots]
    wanted = [
        _Label(spot.name + (" picked" if spot.picked else ""), *place, picked=spot.picked, needed=True)
        for spot, place, need in zip(spots, places, needed, strict=True)
        if need
    ]
    wanted.sort(key=lambda label: not label.picked)
    rest = [(spot.name, place) for spot, place, need in zip(spots, places, needed, strict=True) if not need]
    placed: list[_Label] = []
    for label in [*wanted, *(_joined(group) for group in _groups(rest))]:
        free = next((one for one in _tries(label) if not _touches(one, placed, places)), None)
        if free is None and label.needed:  # better on a mark than not at all
            free = next((one for one in _tries(label) if not _touches(one, placed, [])), None)
        placed += [] if free is None else [free]
    return placed


def _groups(between: Sequence[tuple[str, tuple[float, float]]]) -> Iterator[list[tuple[str, tuple[float, float]]]]:
    """Weights in a row whose marks lie so close that their labels would touch."""
    group: list[tuple[str, tuple[float, float]]] = []
    for name, (x, y) in between:
        if group and (abs(x - group[-1][1][0]) * _SCREENS[0][0] / 100 > 24 or abs(y - group[-1][1][1]) > 16):
            yield group
            group = []
        group.append((name, (x, y)))
    if group:
        yield group


def _joined(group: Sequence[tuple[str, tuple[float, float]]]) -> _Label:
    (first, _), (last, _) = group[0], group[-1]
    place = group[len(group) // 2][1]
    return _Label(first if first == last else f"{first} to {last}", *place)


def _tries(label: _Label) -> Iterator[_Label]:
    return (label._replace(move=move) for move in (*_BESIDE, *(_FURTHER if label.needed else ())))


def _touches(label: _Label, placed: Sequence[_Label], marks: Sequence[tuple[float, float]]) -> bool:
    """Whether it lies on another label or on a mark, or leaves the picture, on a narrow or a wide screen."""
    for width, letter in _SCREENS:
        left, top, right, bottom = label.box(width, letter)
        if left < -width * _LEFT / _WIDE or right > width * (100 - _LEFT) / _WIDE or top < 0 or bottom > _TALL:
            return True
        others = [other.box(width, letter) for other in placed]
        others += [(x / 100 * width - 5, y - 5, x / 100 * width + 5, y + 5) for x, y in marks]
        if any(left < r and l < right and top < b and t < bottom for l, t, r, b in others):  # noqa: E741
            return True
    return False
