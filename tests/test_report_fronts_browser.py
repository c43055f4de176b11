"""The front of a sweep in a real browser: accessible in light and dark, narrow and wide, nothing on top of another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from alignkeep.report.stage import report
from test_report import write_demo
from test_report_browser import CHROMIUM, browser, faults, opened  # noqa: F401  # the browser is a fixture
from test_report_fronts import swept, write

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")


@pytest.fixture(scope="module")
def front_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small page with two fronts: of a usual sweep, and of one whose ends stand apart."""
    out = write_demo(tmp_path_factory.mktemp("fronts"))
    for answers in out.rglob("answers.jsonl"):
        answers.unlink()
    write(out / "poisoned" / "merge", swept())
    write(out / "poisoned" / "other", swept(1.0, weight_0_is_base=False, weight_1_is_tuned=False))
    return report([out / "poisoned"]).page


@pytest.mark.parametrize(("scheme", "width"), [("dark", 1280), ("light", 360)])
def test_axe_finds_no_fault_in_a_front(
    browser: Browser,  # noqa: F811
    front_page: Path,
    scheme: Literal["light", "dark"],
    width: int,
):
    page = opened(browser, front_page, width=width, scheme=scheme, bypass=True)
    assert faults(page) == []


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_words_of_a_front_touch_nowhere_and_marks_lie_within_it(browser: Browser, front_page: Path, width: int):  # noqa: F811
    page = opened(browser, front_page, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("front", "front-2"):
        found = page.evaluate(
            """name => {
              const chart = document.querySelector(`#${name} svg.chart`), place = chart.getBoundingClientRect();
              const all = query => [...chart.querySelectorAll(query)].map(one => [one, one.getBoundingClientRect()]);
              const texts = all('text');
              const touching = texts.flatMap(([a, p], i) => texts.slice(i + 1)
                .filter(([, q]) => Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1
                                && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3)
                .map(([b]) => `${a.textContent} / ${b.textContent}`));
              const outside = [...all('.mark'), ...all('.ring'), ...texts].filter(([, p]) =>
                p.left < place.left - 2 || p.right > place.right + 2 || p.top < place.top - 2
                || p.bottom > place.bottom + 2).map(([one]) => one.outerHTML);
              return {touching, outside, ring: all('.ring').length};
            }""",
            name,
        )
        assert found == {"touching": [], "outside": [], "ring": 1}


def test_a_ring_is_seen_on_light_and_on_dark(browser: Browser, front_page: Path):  # noqa: F811
    """Its line is dark on the light page and light on the dark one."""
    for scheme, dark in (("light", True), ("dark", False)):
        page = opened(browser, front_page, scheme=scheme)
        red = page.evaluate("+getComputedStyle(document.querySelector('.ring')).stroke.match(/\\d+/)[0]")
        assert (red < 80) is dark
        assert page.locator("#front svg.chart").screenshot() != page.locator("#front-2 svg.chart").screenshot()
