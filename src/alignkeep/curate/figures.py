"""Why a curation chose as it did: masses in bins, the sets in a plane, and the examples that were left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from alignkeep.charts.document import render
from alignkeep.charts.figures import Figure, Labelled, Series, Table
from alignkeep.charts.svg import marker, number, picture, round_ticks
from alignkeep.charts.text import percent, shorten, visible
from alignkeep.checkpoint.files import write_text
from alignkeep.citations import bibtex, cite
from alignkeep.curate.explanation import EXPLANATION_NAME, Explanation, Neighbour, Shown, read_explanation
from alignkeep.curate.methods import cited
from alignkeep.stage import Finished
from alignkeep.works import Citation

PAGE_NAME = "explain.html"
_LEFT, _WIDE, _TOP, _TALL = 8, 88, 30, 220  # percent across, pixels down
_KINDS = {"kept": ("kept", 2), "dropped": ("left out", 1), "safe": ("safe anchor", 3), "harmful": ("harmful", 4)}


class Line(NamedTuple):
    """One reference beside an example, in words."""

    who: str
    tone: str
    text: str
    facts: str


class Left(NamedTuple):
    """One example with the references it lies next to."""

    title: str
    asked: str
    answered: str
    tags: tuple[str, ...]
    near: tuple[Line, ...]


class ExplanationPage(NamedTuple):
    title: str
    about: tuple[tuple[str, str], ...]
    lead: str
    figures: tuple[Figure, ...]
    examples: tuple[Left, ...]
    methods: tuple[Citation, ...]
    bibtex: str


def write_explanation(folder: Path) -> Path:
    """`explain.html` beside a curation's `explanation.json`; the same file gives the same bytes."""
    found = read_explanation(folder / EXPLANATION_NAME)
    page = folder / PAGE_NAME
    text = render(__name__, "explain.html", explanation_page(found))
    if not page.is_file() or page.read_text(encoding="utf-8") != text:
        write_text(page, text)
    return page


def explanation_page(found: Explanation) -> ExplanationPage:
    """The page as plain values."""
    methods = cite(cited(found.method))
    by_mass = found.weighed
    lead = (
        f"The {len(found.dropped)} examples of least mass, the least first. Texts are shortened to 160 characters."
        if by_mass
        else f"{len(found.dropped)} of the examples that were left out, in the order of the file. "
        "Texts are shortened to 160 characters."
    )
    return ExplanationPage(
        title="Which examples were left out, and why",
        about=(
            ("Method", found.title or found.method),
            ("Examples", str(found.n)),
            ("Kept", str(found.kept)),
        ),
        lead=lead,
        figures=_figures("", "", found),
        examples=tuple(_left(one, by_mass) for one in found.dropped),
        methods=methods,
        bibtex=bibtex(methods),
    )


def figures_of(finished: Sequence[Finished], series: Series) -> tuple[Figure, ...]:
    """The figures of the curations among these folders."""
    ours = [one for one in finished if EXPLANATION_NAME in one.names]
    return curations_of([Labelled(one.label, read_explanation(one.folder / EXPLANATION_NAME)) for one in ours])


def curations_of(found: Sequence[Labelled[Explanation]]) -> tuple[Figure, ...]:
    """The figures of every curation, in their order."""
    figures: list[Figure] = []
    for place, one in enumerate(found, start=1):
        behind = "" if place == 1 else f"-{place}"
        figures += _figures(behind, "" if len(found) == 1 else f": {one.label}", one.found)
    return tuple(figures)


def _figures(behind: str, beside: str, found: Explanation) -> tuple[Figure, ...]:
    drawn = [_masses(f"masses{behind}", beside, found)] if found.weighed else []
    if any(found.points.values()):
        drawn.append(_plane(f"plane{behind}", beside, found))
    return tuple(drawn)


def _masses(name: str, beside: str, found: Explanation) -> Figure:
    title = f"Mass of every example{beside}"
    caption = (
        f"{found.n} examples by the mass that push and pull gave them, in units of the mean; {found.kept} are kept. "
        "Filled bars count the kept, hollow ones above them those left out."
    )
    bins = list(zip(found.edges, found.edges[1:], found.kept_counts, found.dropped_counts, strict=False))
    rows = tuple((f"{low:.2f} to {high:.2f}", str(kept), str(left)) for low, high, kept, left in bins if kept or left)
    chart = _histogram(name, title, caption, found)
    return Figure(name, title, caption, chart, Table(("Mass", "Kept", "Left out"), rows))


def _histogram(name: str, title: str, description: str, found: Explanation) -> Markup:
    ticks = round_ticks(0, max(map(sum, zip(found.kept_counts, found.dropped_counts, strict=True))))
    right = found.edges[-1]

    def x(value: float) -> str:
        return number(_LEFT + _WIDE * value / right)

    def y(value: float) -> float:
        return _TOP + _TALL * (1 - value / ticks[-1])

    parts = [
        Markup(
            '<line class="grid" x1="{0}%" x2="{1}%" y1="{2}" y2="{2}"/>'
            '<text class="tick" x="{0}%" y="{3}" dx="-8" text-anchor="end">{4}</text>'
        ).format(_LEFT, _LEFT + _WIDE, number(y(tick)), number(y(tick) + 4), f"{tick:g}")
        for tick in ticks
    ]
    bar = Markup('<rect class="column {}" x="{}%" width="{}%" y="{}" height="{}"/>')
    width = number(_WIDE * found.edges[1] / right * 0.9)
    for low, kept, left in zip(found.edges[:-1], found.kept_counts, found.dropped_counts, strict=True):
        if kept:
            parts.append(bar.format("s2", x(low), width, number(y(kept)), number(y(0) - y(kept))))
        if left:
            parts.append(
                bar.format("s1 hollow", x(low), width, number(y(kept + left)), number(y(kept) - y(kept + left)))
            )
    below = _TOP + _TALL + 18
    for tick in round_ticks(0, right):
        if tick <= right:
            parts.append(_word("tick", x(tick), below, "middle", f"{tick:g}"))
    parts.append(_word("axis", "0", 12, "start", "examples"))
    parts.append(_word("axis", str(_LEFT + _WIDE // 2), below + 18, "middle", "mass, in units of the mean"))
    return picture(name, title, description, below + 26, parts)


def _plane(name: str, beside: str, found: Explanation) -> Figure:
    title = f"The sets in a plane{beside}"
    counts = ", ".join(f"{len(found.points.get(kind, ()))} {word}" for kind, (word, _) in _KINDS.items())
    caption = (
        f"Examples and references along the two directions in which they spread most ({counts}; of larger sets some). "
        "Harmful references lie to the right and above on average."
    )
    rows = tuple(
        (word, str(len(points)), *(f"{sum(axis) / len(points):.3f}" for axis in zip(*points, strict=True)))
        for kind, (word, _) in _KINDS.items()
        if (points := found.points.get(kind, ()))
    )
    chart = _scatter(name, title, caption, found)
    return Figure(name, title, caption, chart, Table(("Set", "Points", "Mean across", "Mean up"), rows))


def _scatter(name: str, title: str, description: str, found: Explanation) -> Markup:
    every = [point for points in found.points.values() for point in points]
    (left, right), (low, high) = ((min(axis), max(axis)) for axis in zip(*every, strict=True))
    tall = 320
    spot = Markup('<svg class="at" x="{}%" y="{}"><g transform="scale(.6)">{}</g></svg>')
    parts: list[Markup] = []
    for kind, (_, series) in _KINDS.items():
        mark = marker(series)
        for across, up in found.points.get(kind, ()):
            x = 3 + 94 * (across - left) / ((right - left) or 1)
            y = _TOP + 8 + (tall - 16) * (1 - (up - low) / ((high - low) or 1))
            parts.append(spot.format(number(x), number(y), mark))
    for place, (word, series) in enumerate(_KINDS.values()):
        parts.append(Markup('<svg class="at" x="{}%" y="12">{}</svg>').format(2 + 25 * place, marker(series)))
        parts.append(Markup('<text class="label" x="{}%" y="16" dx="10">{}</text>').format(2 + 25 * place, word))
    return picture(name, title, description, _TOP + tall + 6, parts)


def _word(kind: str, x: str, y: int, anchor: str, text: str) -> Markup:
    return Markup('<text class="{}" x="{}%" y="{}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, visible(text)
    )


def _left(one: Shown, by_mass: bool) -> Left:
    mass = (f"mass {one.mass:.3f} of the mean",) if by_mass else ()
    near = [
        _line("nearest harmful reference", "bad", one.harmful),
        _line("nearest safe anchor", "good", one.safe),
    ]
    return Left(
        title=f"Example {one.index}",
        asked=shorten(one.asked),
        answered=shorten(one.answered),
        tags=(*mass, "kept" if one.kept else "left out"),
        near=tuple(line for line in near if line is not None),
    )


def _line(who: str, tone: str, found: Neighbour | None) -> Line | None:
    if found is None:
        return None
    share = "" if found.share is None else f", to which it gives {percent(found.share)} of its mass"
    text = shorten(found.text) if found.text else f"row {found.index}"
    return Line(who, tone, text, f"cosine {found.cosine:.3f}{share}")
