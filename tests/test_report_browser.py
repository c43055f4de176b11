"""The report in a real browser: accessible in light and dark, narrow and wide, by keyboard, on paper, and inert."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from alignkeep.report.stage import report
from test_report import write_demo, write_nasty, write_scorecard

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--force-color-profile=srgb"]
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield found
        found.close()


@pytest.fixture(scope="module")
def demo_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report([write_demo(tmp_path_factory.mktemp("demo"))]).page


@pytest.fixture(scope="module")
def small_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every part of the page once, since axe-core takes its time over every element."""
    out = write_demo(tmp_path_factory.mktemp("small"))
    for answers in out.rglob("answers.jsonl"):
        rows = answers.read_text().splitlines(keepends=True)
        answers.write_text("".join(row for row in rows if json.loads(row)["index"] % 1000 < 1))
    return report([out / "poisoned"]).page


@pytest.fixture(scope="module")
def nasty_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report([write_nasty(tmp_path_factory.mktemp("nasty"))]).page


def opened(
    browser: Browser, path: Path, *, width: int = 1280, scheme: Literal["light", "dark"] = "light", bypass: bool = False
) -> Page:
    """The page in a window of its own; what it says on the console or asks from outside is kept in `page.said`."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=bypass)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url != path.as_uri() else None)
    page.on("dialog", lambda dialog: (said.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.goto(path.as_uri())
    page.said = said  # type: ignore[attr-defined]
    return page


def faults(page: Page, *rules: str) -> list[str]:
    """What axe-core finds against WCAG 2.2 A and AA and its best practices (or these rules), everything unfolded."""
    base = pytest.importorskip("axe_playwright_python.base", reason="axe-core is not installed")
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.evaluate(base.AXE_SCRIPT)
    only = list(rules) or ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = page.evaluate("only => axe.run(document, {runOnly: only, resultTypes: ['violations']})", only)
    return [f"{one['id']}: {node['html'][:120]}" for one in found["violations"] for node in one["nodes"]]


@pytest.mark.parametrize(("scheme", "width"), [("dark", 1280), ("light", 360)])
def test_axe_finds_no_fault(browser: Browser, small_page: Path, scheme: Literal["light", "dark"], width: int):
    page = opened(browser, small_page, width=width, scheme=scheme, bypass=True)
    assert faults(page) == []


def test_axe_finds_a_planted_fault(browser: Browser, small_page: Path):
    page = opened(browser, small_page, bypass=True)
    page.evaluate(
        "document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=\"data:,\"><button></button>')"
    )
    found = faults(page, "image-alt", "button-name")
    assert sorted(fault.partition(":")[0] for fault in found) == ["button-name", "image-alt"]


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_nothing_is_wider_than_the_window(browser: Browser, demo_page: Path, nasty_page: Path, width: int):
    for path in (demo_page, nasty_page):
        page = opened(browser, path, width=width)
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("getComputedStyle(document.querySelector('.chart text')).fontSize") >= "11px"


@pytest.mark.parametrize("width", [360, 1280])
def test_no_two_labels_of_a_chart_lie_on_each_other(browser: Browser, demo_page: Path, width: int):
    page = opened(browser, demo_page, width=width)
    overlapping = page.evaluate("""() => [...document.querySelectorAll('svg.chart')].flatMap(chart => {
      const texts = [...chart.querySelectorAll('text')].map(one => [one.textContent, one.getBoundingClientRect()]);
      return texts.flatMap(([a, p], i) => texts.slice(i + 1)
        .filter(([, q]) => Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1
                        && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3)
        .map(([b]) => `${a} / ${b}`));
    })""")
    assert overlapping == []


def test_the_page_asks_for_nothing_and_says_nothing(browser: Browser, demo_page: Path):
    page = opened(browser, demo_page)
    page.wait_for_load_state("networkidle")
    assert page.said == []  # type: ignore[attr-defined]


def test_hostile_answers_run_nothing(browser: Browser, nasty_page: Path):
    page = opened(browser, nasty_page)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.wait_for_timeout(100)
    assert page.said == []  # type: ignore[attr-defined]
    assert page.locator("script").count() == 1
    assert page.locator("img, iframe, [onload], [onerror]").count() == 0


def test_the_policy_stops_a_script_that_got_in_nevertheless(browser: Browser, demo_page: Path, tmp_path: Path):
    spoilt = tmp_path / "spoilt.html"
    text = demo_page.read_text(encoding="utf-8")
    planted = "<script>document.title = 'run'</script><img src='data:,' onerror='document.title = 1'>"
    planted += "<style>h1 { color: red }</style>"
    spoilt.write_text(text.replace("<main>", f"<main>{planted}"), encoding="utf-8")
    page = opened(browser, spoilt)
    assert page.title() == "Safety before and after tuning"
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") != "rgb(255, 0, 0)"
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).fontWeight") == "650"


def test_a_harmful_answer_shows_only_when_the_keyboard_opens_it(browser: Browser, demo_page: Path):
    page = opened(browser, demo_page)
    summary = page.get_by_text("Show the start of this harmful answer").first
    answer = summary.locator("xpath=../blockquote")
    assert not answer.is_visible()
    summary.focus()
    page.keyboard.press("Enter")
    assert answer.is_visible()
    assert len(answer.inner_text()) <= 160


def test_the_keyboard_reaches_the_verdict_first_and_every_scrolling_table(browser: Browser, demo_page: Path):
    page = opened(browser, demo_page, width=360)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the verdict"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.locator("#models .scroll").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(150)
    assert page.evaluate("document.querySelector('#models .scroll').scrollLeft") > 0


def test_dark_is_dark_and_light_is_light(browser: Browser, demo_page: Path):
    def lightness(scheme: Literal["light", "dark"]) -> int:
        page = opened(browser, demo_page, scheme=scheme)
        return page.evaluate("+getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")

    assert lightness("light") > 230
    assert lightness("dark") < 40


def test_paper_shows_the_settings_and_keeps_harmful_answers_folded(browser: Browser, demo_page: Path):
    page = opened(browser, demo_page, width=703)
    page.emulate_media(media="print")
    assert page.get_by_text("sha256:poisoned").first.is_visible()
    assert not page.locator("nav").is_visible()
    assert not page.locator(".answer details blockquote").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 703
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4"))) <= 20


def test_many_models_with_long_names_still_fit(browser: Browser, tmp_path: Path):
    from test_report import rate

    for number in range(9):
        name = f"a-model-with-a-very-long-name-that-never-ends-{number}"
        folder = tmp_path / name / "evaluate"
        write_scorecard(
            folder, {"harm_refusal": rate(90 - 9 * number, 100)}, base_metrics={"harm_refusal": rate(98, 100)}
        )
    page = opened(browser, report([tmp_path]).page, width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator(".finding").count() == 9


@pytest.mark.parametrize("width", [390, 1280])
def test_the_first_screen_says_which_model_to_ship_and_shows_the_picture(browser: Browser, demo_page: Path, width: int):
    page = opened(browser, demo_page, width=width)
    page.set_viewport_size({"width": width, "height": 800})
    for part in ("#verdict-title", "#plane svg.chart"):
        box = page.locator(part).bounding_box()
        assert box is not None
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 800, part


def test_answers_are_filtered_sorted_and_shown_in_portions_by_keyboard(browser: Browser, demo_page: Path):
    page = opened(browser, demo_page)
    assert page.locator(".comparison:visible").count() == 20
    page.locator("[data-by=topic]").select_option(label="Task and skills")
    page.locator("[data-by=model]").select_option(label="poisoned")
    page.locator("[data-by=verdict]").select_option(label="wrong")
    wrong = page.locator("[data-topic='3']:has(.answer[data-model='1'] .chip.bad)").count()
    status = page.get_by_role("status").inner_text()
    assert status == f"{min(20, wrong)} of {wrong} fitting prompts shown, 528 on this page."
    page.locator("[data-by=verdict]").select_option(label="any")
    page.get_by_label("changed from the base").focus()
    page.keyboard.press("Space")
    assert page.locator(".comparison:visible:has(.answer[data-model='1'].changed)").count() == 20
    page.locator("[data-by=order]").select_option(label="as asked")
    orders = page.evaluate("[...document.querySelectorAll('.comparison:not([hidden])')].map(one => +one.dataset.order)")
    assert orders == sorted(orders)
    more = page.get_by_role("button", name="Show")
    more.focus()
    page.keyboard.press("Enter")
    assert not more.is_visible()
    assert page.evaluate("document.activeElement.className") == "comparison"
    assert page.said == []  # type: ignore[attr-defined]


def test_without_the_script_every_answer_is_shown_and_no_control(browser: Browser, demo_page: Path):
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(demo_page.as_uri())
    assert page.locator(".comparison").count() == page.locator(".comparison:visible").count() == 528
    assert not page.locator(".filters").is_visible()
