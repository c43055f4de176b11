"""The front of a sweep on the page: marks where the rates are, the picked weight ringed, words that touch nowhere."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alignkeep.charts.figures import Labelled
from alignkeep.errors import DataError
from alignkeep.judging.statistics import mcnemar, wilson
from alignkeep.merge.figures import front_chart, fronts_of
from alignkeep.merge.swept import SWEEP_NAME, SweepResult
from alignkeep.report.sources import read_sources
from alignkeep.report.stage import report
from alignkeep.types import Trade
from test_report import NASTY, write_demo

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
TASKS = (0, 0, 1, 4, 20, 90, 180, 240, 280, 300, 310)  # of 400
REFUSALS = (196, 196, 195, 190, 188, 170, 150, 110, 60, 30, 22)  # of 200


def trade(weight: float, task: int, refusal: int) -> Trade:
    import numpy as np

    one, base = np.arange(200) < refusal, np.arange(200) < REFUSALS[0]
    rates = {"task_accuracy": wilson(task, 400), "harm_refusal": wilson(refusal, 200), "over_refusal": wilson(0, 0)}
    return Trade(weight, rates, {"harm_refusal": mcnemar(one, base)} if weight else {})


def swept(picked: float = 0.5, weights=WEIGHTS, tasks=TASKS, refusals=REFUSALS, **claims) -> SweepResult:
    trades = tuple(map(trade, weights, tasks, refusals))
    return SweepResult(
        trades=trades,
        base=trades[0].metrics,
        tuned=trades[-1].metrics,
        picked=picked,
        rule="safe",
        margin=0.05,
        why=f"weight {picked:g} is the largest that is safe",
        front=tuple(weights),
        prompts={"task": 400, "harmful": 200},
        settings={"weight_0_is_base": True, "weight_1_is_tuned": True, **claims},
    )


def drawn(found: SweepResult) -> ElementTree.Element:
    return ElementTree.fromstring(str(front_chart("front", "Title", "Words", found)))


def classed(chart: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [element for element in chart.iter() if name in element.get("class", "").split()]


def places(chart: ElementTree.Element) -> list[tuple[float, float]]:
    """Where the marks stand, percent across and pixels down."""
    at = [element for element in chart.iter("svg") if any("mark" in inner.get("class", "") for inner in element)]
    return sorted((float(element.get("x", "").rstrip("%")), float(element.get("y", ""))) for element in at)


def test_marks_stand_where_the_rates_are():
    """Three weights at task 0, 50 and 100 % of 400 and refusal 100, 50 and 0 % of 200: both axes go from 0 to 100, so
    the marks lie on a straight line from the upper left to the lower right, at its ends and its middle."""
    (x0, y0), (x1, y1), (x2, y2) = places(drawn(swept(0.5, (0.0, 0.5, 1.0), (0, 200, 400), (200, 100, 0))))
    assert x0 < x1 < x2
    assert y0 < y1 < y2
    assert (x1, y1) == pytest.approx(((x0 + x2) / 2, (y0 + y2) / 2))


def test_lines_reach_as_far_as_the_intervals():
    """The scale is told by the ticks of 0 and 100 %."""
    chart = drawn(swept(0.5, (0.0, 0.5, 1.0), (0, 200, 400), (200, 100, 0)))
    (left, _), *_, (right, _) = places(chart)
    across = classed(chart, "whisker")[2]  # the second mark's, across
    low, high = (float(across.get(key, "").rstrip("%")) for key in ("x1", "x2"))
    interval = wilson(200, 400)
    assert low == pytest.approx(left + (right - left) * interval.low, abs=0.02)
    assert high == pytest.approx(left + (right - left) * interval.high, abs=0.02)


def test_the_picked_weight_alone_has_a_ring_and_bold_words():
    chart = drawn(swept(0.7))
    (ring,) = classed(chart, "ring")
    (words,) = classed(chart, "value")
    assert words.text == "0.7 picked"
    holder = next(element for element in chart.iter("svg") if ring in list(element))
    assert places(chart).count((float(holder.get("x", "").rstrip("%")), float(holder.get("y", "")))) == 1


def test_ends_are_called_base_and_tuned_and_neighbours_share_their_words():
    texts = [element.text for element in classed(drawn(swept()), "label")]
    assert texts[:2] == ["0 (base)", "1 (tuned)"]
    assert "0.1 to 0.4" in texts
    assert len(places(drawn(swept()))) == len(WEIGHTS)


def test_ends_that_no_weight_gives_stand_beside_the_weights():
    """DARE of weight 1 is not the tuned model, a subspace merge of weight 0 not the base."""
    found = swept(weight_0_is_base=False, weight_1_is_tuned=False)
    chart = drawn(found)
    assert {"base", "tuned"} <= {element.text for element in classed(chart, "label")}
    assert len(places(chart)) == len(WEIGHTS) + 2
    (figure,) = fronts_of([Labelled("merge", found)])
    assert [row[0] for row in figure.table.rows] == [
        "base", "0", "0.1", "0.2", "0.3", "0.4", "0.5, picked", "0.6", "0.7", "0.8", "0.9", "1", "tuned",
    ]  # fmt: skip


def test_the_table_has_every_measured_rate_and_the_paired_change():
    """At 0.5: 90 of 400 tasks; 170 refusals of 200 where the base has 196, so 13 points fewer."""
    (figure,) = fronts_of([Labelled("merge", swept())])
    assert figure.table.header == ("Weight", "Task", "Harm refusal", "Change of harm refusal, points")
    row = figure.table.rows[5]
    assert row[0] == "0.5, picked"
    assert row[1].startswith("22.5")
    assert row[2].startswith("85.0")
    assert row[3].startswith("−13.0")
    assert figure.table.rows[0][3] == ""


def boxes(chart: ElementTree.Element, width: float, letter: float) -> list[tuple[float, float, float, float]]:
    """Left, top, right, bottom of all words in the plot, where plot and letters are so many pixels wide."""
    found = []
    for words in (*classed(chart, "label"), *classed(chart, "value")):
        long = letter * len(words.text or "")
        left = width * float(words.get("x", "").rstrip("%")) / 100 + float(words.get("dx", ""))
        left -= {"start": 0.0, "middle": long / 2, "end": long}[words.get("text-anchor", "")]
        found.append((left, float(words.get("y", "")) - 11, left + long, float(words.get("y", "")) + 3))
    return found


@settings(max_examples=40, deadline=None)
@example([(0, 0)] * 3, 1)
@example([(400, 200)] * 21, 7)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 200)), min_size=3, max_size=21),
    st.integers(0, 20),
)
def test_no_two_words_touch_and_the_picked_weight_is_always_named(pairs, picked):
    """Over the closed domain (all alike, all apart, at the corners), on a phone and on a wide screen."""
    weights = [index / 20 for index in range(len(pairs) - 1)] + [1.0]
    tasks, refusals = zip(*pairs, strict=True)
    chart = drawn(swept(weights[picked % len(weights)], weights, tasks, refusals))
    assert len(classed(chart, "value")) == 1
    for width, letter in ((265.0, 6.4), (900.0, 7.4)):
        for (left, top, right, bottom), (l, t, r, b) in itertools.combinations(boxes(chart, width, letter), 2):  # noqa: E741
            assert left >= r or l >= right or top >= b or t >= bottom


def test_axes_hold_every_interval_and_stay_within_a_hundred():
    """Rates of 95 % and more: the axes begin where the lowest interval does, and end at 100."""
    chart = drawn(swept(0.5, (0.0, 0.5, 1.0), (380, 390, 399), (199, 195, 190)))
    ticks = [float(tick.text or "") for tick in classed(chart, "tick")]
    up, across = ticks[: ticks.index(100) + 1], ticks[ticks.index(100) + 1 :]
    assert 80 < up[0] <= 100 * wilson(190, 200).low
    assert 80 < across[0] <= 100 * wilson(380, 400).low
    assert up[-1] == across[-1] == 100


def test_the_page_shows_a_sweep_where_there_is_one_and_nothing_where_there_is_none(tmp_path: Path):
    out = write_demo(tmp_path / "run")
    without = report([out]).page.read_text(encoding="utf-8")
    assert "Choosing the merge weight" not in without
    write(out / "merge", swept())
    page = report([out]).page.read_text(encoding="utf-8")
    assert page.count('<section id="front"') == 1
    assert '<a href="#front">Choosing the merge weight</a>' in page
    assert "Weight 0.5 is the largest that is safe." in page
    write(out / "other" / "merge", swept(0.9))
    page = report([out]).page.read_text(encoding="utf-8")
    assert re.findall(r'<section id="(front[^"]*)"', page) == ["front", "front-2"]
    assert "Choosing the merge weight: other" in page


def test_a_sweep_that_is_not_finished_is_passed_over_and_a_broken_one_is_named(tmp_path: Path):
    out = write_demo(tmp_path / "run")
    write(out / ".merge.partial", swept())
    assert all(SWEEP_NAME not in one.names for one in read_sources([out]).finished)
    write(out / "merge", swept()).write_text("{")
    with pytest.raises(DataError, match=r"merge/sweep\.json"):
        report([out])


def test_hostile_words_in_a_sweep_file_stay_words(tmp_path: Path):
    from dataclasses import replace

    out = write_demo(tmp_path / "run")
    write(out / "merge", replace(swept(), why=" ".join(NASTY).encode("utf-8", "replace").decode()))
    page = report([out]).page.read_text(encoding="utf-8")
    assert page.count("<script") == 1  # ours
    assert "<img" not in page


def write(folder: Path, found: SweepResult) -> Path:
    folder.mkdir(parents=True)
    return found.write(folder)
