"""Models in a plane: one rate across, another up, each with its crossed 95 % intervals and its name beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from alignkeep.charts.svg import marker, number, picture, round_ticks, style_of
from alignkeep.charts.text import visible
from alignkeep.types import Estimate

_TOP, _TALL, _LEFT, _WIDE = 22, 320, 9, 87  # pixels above the plot and its height; percent beside it and across it
_EDGE, _ROOM = 2.0, 18  # percent and pixels within the plot that are left free on every side
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
class Spot:
    """One model. `picked` gives it a ring; the name of one that is not `needed` may be joined with its neighbours' or
    left out where names would touch."""

    name: str
    series: int
    across: Estimate
    up: Estimate
    picked: bool = False
    needed: bool = True


class Region(NamedTuple):
    """A part of the plane, as the rates between which it lies: where `words` hold."""

    across: tuple[float, float]
    up: tuple[float, float]
    words: str = "allowed"


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
    style: str = "label"

    def box(self, width: float, letter: float) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in pixels, where plot and letters are so wide."""
        (dx, dy, anchor), long = self.move, letter * len(self.text)
        left = self.x / 100 * width + dx - {"start": 0.0, "middle": long / 2, "end": long}[anchor]
        return left, self.y + dy - 11, left + long, self.y + dy + 3


def scatter_chart(
    name: str,
    title: str,
    description: str,
    spots: Sequence[Spot],
    paths: Sequence[Sequence[Spot]],
    *,
    across: str,
    up: str,
    region: Region | None = None,
) -> Markup:
    """`name` is the unique id, `across` and `up` say what the axes are, in percent. The models of a path are joined, in
    its order; those that are not needed are drawn first, the picked one last. The region is shaded, as far as it is
    in the picture, which grows to show where it ends."""
    ends = ((), ()) if region is None else (region.across, region.up)
    frame = _Frame(_ticks([one.across for one in spots], ends[0]), _ticks([one.up for one in spots], ends[1]))
    inner = [] if region is None else [_shade(frame, region)]
    inner += [_path(frame, path) for path in paths]
    inner += [_cross(frame, spot) for spot in spots]
    inner += [_mark(frame, spot) for spot in sorted(spots, key=lambda spot: (spot.needed, spot.picked))]
    labels = _labels(frame, spots)
    inner += [_words(label) for label in labels]
    inner += [] if region is None else [_words(label) for label in _region_name(frame, region, spots, labels)]
    plot = Markup('<svg class="at" x="{}%" y="{}" width="{}%" height="{}">{}</svg>').format(
        _LEFT, _TOP, _WIDE, _TALL, Markup("").join(inner)
    )
    return picture(name, title, description, _TOP + _TALL + 40, [_grid(frame, across, up), plot])


def _ticks(rates: Sequence[Estimate], ends: Sequence[float]) -> tuple[float, ...]:
    """Round percentages, 0 to 100 at most, that hold every rate with its interval, and every end that is a bound."""
    bounds = [end for end in ends if 0 < end < 1]
    lows, highs = [rate.low for rate in rates] + bounds, [rate.high for rate in rates] + bounds
    ticks = round_ticks(100 * min(lows), 100 * max(highs))
    return tuple(tick for tick in ticks if tick <= 100)


def _shade(frame: _Frame, region: Region) -> Markup:
    """The region, its edges dashed where they are bounds and not the ends of the picture."""
    left, right, top, bottom = _corners(frame, region)
    if left >= right or top >= bottom:
        return Markup("")
    drawn = Markup('<rect class="region" x="{}%" y="{}" width="{}%" height="{}"/>').format(
        number(left), number(top), number(right - left), number(bottom - top)
    )
    line = Markup('<line class="bound" x1="{}%" x2="{}%" y1="{}" y2="{}"/>')
    level = [edge for edge in (top, bottom) if 0 < edge < _TALL]
    upright = [edge for edge in (left, right) if 0 < edge < 100]
    drawn += Markup("").join(line.format(number(left), number(right), number(edge), number(edge)) for edge in level)
    return drawn + Markup("").join(line.format(number(x), number(x), number(top), number(bottom)) for x in upright)


def _corners(frame: _Frame, region: Region) -> tuple[float, float, float, float]:
    """Left, right, top and bottom within the picture; what is no bound reaches to the picture's end."""
    left, right = (0.0 if region.across[0] <= 0 else frame.x(region.across[0])), frame.x(region.across[1])
    top, bottom = frame.y(region.up[1]), (float(_TALL) if region.up[0] <= 0 else frame.y(region.up[0]))
    right, top = (100.0 if region.across[1] >= 1 else right), (0.0 if region.up[1] >= 1 else top)
    return max(left, 0.0), min(right, 100.0), max(top, 0.0), min(bottom, float(_TALL))


def _region_name(frame: _Frame, region: Region, spots: Sequence[Spot], labels: Sequence[_Label]) -> Iterator[_Label]:
    """The region's words just within its lower or upper edge, where no mark and no other name is."""
    left, right, top, bottom = _corners(frame, region)
    places = [(frame.x(spot.across.value), frame.y(spot.up.value)) for spot in spots]
    tries = [
        _Label(region.words, x, y, move=(dx, 0, anchor), style="allowed")
        for y in (bottom - 7, top + 15)
        for x, dx, anchor in ((left, 6, "start"), (right, -6, "end"), ((left + right) / 2, 0, "middle"))
    ]
    if left < right and top < bottom:
        yield from [one for one in tries if not _touches(one, labels, places)][:1]


def _grid(frame: _Frame, across: str, up: str) -> Markup:
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
    lines.append(axis.format(0, 12, "start", up))
    lines.append(axis.format(_LEFT + _WIDE / 2, _TOP + _TALL + 35, "middle", across))
    return Markup("").join(lines)


def _path(frame: _Frame, path: Sequence[Spot]) -> Markup:
    places = [(frame.x(spot.across.value), frame.y(spot.up.value)) for spot in path]
    return Markup(
        '<svg width="100%" height="{0}" viewBox="0 0 100 {0}" preserveAspectRatio="none">'
        '<polyline class="path" points="{1}"/></svg>'
    ).format(_TALL, " ".join(f"{number(x)},{number(y)}" for x, y in places))


def _cross(frame: _Frame, spot: Spot) -> Markup:
    line = Markup('<line class="whisker s{}" x1="{}%" x2="{}%" y1="{}" y2="{}"/>')
    x, y = number(frame.x(spot.across.value)), number(frame.y(spot.up.value))
    low, high = number(frame.x(spot.across.low)), number(frame.x(spot.across.high))
    bottom, top = number(frame.y(spot.up.low)), number(frame.y(spot.up.high))
    style = style_of(spot.series)
    return line.format(style, low, high, y, y) + line.format(style, x, x, bottom, top)


def _mark(frame: _Frame, spot: Spot) -> Markup:
    ring = Markup('<circle class="ring" r="10"/>') if spot.picked else Markup("")
    return Markup('<svg class="at" x="{}%" y="{}">{}{}</svg>').format(
        number(frame.x(spot.across.value)), number(frame.y(spot.up.value)), ring, marker(spot.series)
    )


def _words(label: _Label) -> Markup:
    dx, dy, anchor = label.move
    return Markup('<text class="{}" x="{}%" y="{}" dx="{}" text-anchor="{}">{}</text>').format(
        "value" if label.picked else label.style, number(label.x), number(label.y + dy), dx, anchor, visible(label.text)
    )


def _labels(frame: _Frame, spots: Sequence[Spot]) -> list[_Label]:
    """The picked model first, then those that are needed, then the rest; of these neighbours that are too close for two
    labels share one."""
    places = [(frame.x(spot.across.value), frame.y(spot.up.value)) for spot in spots]
    needed = [spot.picked or spot.needed for spot in spots]
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
    """Models in a row whose marks lie so close that their labels would touch."""
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
