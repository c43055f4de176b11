"""The site that `make site` has built, in a browser: accessible, no wider than a phone, loading nothing of others."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from test_report_browser import browser, faults  # noqa: F401

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HTML = Path(__file__).parents[1] / "build" / "site" / "html"
pytestmark = pytest.mark.skipif(not (HTML / "index.html").is_file(), reason="no site is built here: make site")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing: requests are no output of a test."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(HTML))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "scheme", "width"),
    [("", "dark", 1280), ("first-hour/", "light", 390), ("reference/evaluate/", "light", 1280)],
)
def test_axe_finds_no_fault_and_nothing_comes_from_elsewhere(
    browser: Browser, address: str, name: str, scheme: Literal["light", "dark"], width: int,  # noqa: F811
) -> None:  # fmt: skip
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith(address) else None)
    page.goto(address + name)
    page.wait_for_selector("nav.md-code__nav[aria-label]", state="attached")  # the theme's script has run, and ours
    assert faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert said == []
