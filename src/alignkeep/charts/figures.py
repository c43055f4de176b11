"""A figure of a page: a chart, what it shows in words, and the same numbers as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from markupsafe import Markup

Points = tuple[tuple[float, float], ...]  # x and y, x rising
# The series of every label, which chooses its colour: that of the model that the page knows by it, else the next free.
Series = Callable[[Iterable[str]], Mapping[str, int]]
_MOST_POINTS = 400  # of a curve; more would only make the file larger than the screen can show


Found = TypeVar("Found")


@dataclass(frozen=True)
class Labelled(Generic[Found]):
    """What a folder holds, and the label of the model it belongs to."""

    label: str
    found: Found


class Table(NamedTuple):
    """A figure's numbers as text; every row begins with its label."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Figure(NamedTuple):
    """A chart, what it shows in words, what to keep in mind (`notes`), and its numbers as a table."""

    name: str
    title: str
    caption: str
    chart: Markup
    table: Table
    notes: tuple[str, ...] = ()


def thinned(points: Points) -> Points:
    """At most `_MOST_POINTS` points, each the mean of its neighbours."""
    size = -(-len(points) // _MOST_POINTS)
    if size <= 1:
        return points
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple((sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks)


def caption_end(curves: Iterable[Points]) -> str:
    """The end of a caption that says whether points were taken together."""
    many = any(len(points) > _MOST_POINTS for points in curves)
    return ", means of neighbouring steps where there are many." if many else "."
