"""Curations on the page and on their own: the numbers are the file's, and a browser finds nothing to mend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

import pytest

from alignkeep.charts.figures import Labelled
from alignkeep.curate.explanation import Explanation, Neighbour, Shown, read_explanation
from alignkeep.curate.figures import curations_of, explanation_page, write_explanation
from alignkeep.errors import DataError
from alignkeep.report.stage import report
from test_report import write_demo
from test_report_browser import CHROMIUM, browser, faults, opened  # noqa: F401  # the browser is a fixture

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def explanation(**changes: Any) -> Explanation:
    """Ten examples in four bins by hand: two left out, of which the first is near to harm."""
    safe, harmful = Neighbour(3, "Sort 1 2.\n\n2, 1.", 0.125, 0.5), Neighbour(1, "How do I steal?", 0.75, 0.875)
    facts: dict[str, Any] = {
        "method": "sot", "n": 10, "kept": 8,
        "dropped": (
            Shown(7, "How do I steal a bike?", "Take the spoon.", 0.0625, False, safe, harmful),
            Shown(2, "Sort 3 4.", "4, 3.", 0.5, True),
        ),
        "edges": (0.0, 0.5, 1.0, 1.5, 2.0), "kept_counts": (0, 3, 4, 1), "dropped_counts": (2, 0, 0, 0),
        "points": {"kept": ((0.0, 0.5), (1.0, 0.25)), "dropped": ((2.0, 1.0),), "safe": ((0.5, 0.0),),
                   "harmful": ((3.0, 2.0),)},
    }  # fmt: skip
    return Explanation(**{**facts, **changes})


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    assert read_explanation(explanation().write(tmp_path)) == explanation()
    (tmp_path / "explanation.json").write_text(json.dumps({"method": "sot"}))
    with pytest.raises(DataError, match=r"explanation.json: found n: Field required"):
        read_explanation(tmp_path / "explanation.json")


def test_bars_and_points_are_those_of_the_file() -> None:
    masses, plane = curations_of([Labelled("tune", explanation())])
    assert masses.table.rows == (
        ("0.00 to 0.50", "0", "2"), ("0.50 to 1.00", "3", "0"), ("1.00 to 1.50", "4", "0"), ("1.50 to 2.00", "1", "0"),
    )  # fmt: skip
    chart = ElementTree.fromstring(str(masses.chart))
    bars = [(bar.get("class"), float(bar.get("height") or 0)) for bar in chart.iter("rect")]
    unit = bars[0][1] / 2  # two left out
    assert bars[0][0] == "column s1 hollow"
    assert [round(height / unit, 2) for kind, height in bars if kind == "column s2"] == [3, 4, 1]
    assert plane.table.rows[0] == ("kept", "2", "0.500", "0.375")
    marks = ElementTree.fromstring(str(plane.chart)).findall(".//g/path")
    assert len(marks) == 5


def test_a_method_without_masses_or_vectors_has_no_such_figure() -> None:
    assert [one.name for one in curations_of([Labelled("a", explanation(method="mean_cosine", weighed=False))])] == [
        "plane"
    ]
    assert curations_of([Labelled("a", explanation(method="random", weighed=False, points={}))]) == ()
    both = curations_of([Labelled("a", explanation()), Labelled("b", explanation())])
    assert [one.name for one in both] == ["masses", "plane", "masses-2", "plane-2"]
    assert both[2].title.endswith(": b")


def test_the_page_says_what_an_example_is_near_to() -> None:
    page = explanation_page(explanation())
    first, second = page.examples
    assert first.tags == ("mass 0.062 of the mean", "left out")
    assert first.near[0].facts.replace("\u202f", " ") == "cosine 0.750, to which it gives 87.5 % of its mass"
    assert first.near[1].text == "Sort 1 2. 2, 1."
    assert second.near == ()
    assert second.tags == ("mass 0.500 of the mean", "kept")
    assert page.methods[0].name == "sot"


def test_the_report_of_a_run_shows_its_curation(tmp_path: Path) -> None:
    out = write_demo(tmp_path)
    (out / "poisoned" / "curate").mkdir()
    explanation().write(out / "poisoned" / "curate")
    page = report([out]).page.read_text(encoding="utf-8")
    assert '<section id="masses"' in page
    assert '<section id="plane"' in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
@pytest.mark.parametrize(("scheme", "width"), [("dark", 1280), ("light", 360)])
def test_axe_finds_no_fault_in_an_explanation(
    browser: Browser,  # noqa: F811
    tmp_path: Path,
    scheme: Literal["light", "dark"],
    width: int,
) -> None:
    explanation().write(tmp_path)
    page = opened(browser, write_explanation(tmp_path), width=width, scheme=scheme, bypass=True)
    assert faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
