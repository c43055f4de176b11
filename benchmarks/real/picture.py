"""docs/real-model.png: what tunes cost the real model and what each method gives back, from the small results.

    python benchmarks/real/picture.py [--out docs/real-model.png]

Needs a browser (chromium), which draws the page's own chart.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright
from table import ROOT, scorecard

from alignkeep.charts import scatter as drawing
from alignkeep.types import Estimate

# What is shown: cell, name in the picture, series (0: base, 1: tunes, 2: what gives back).
SHOWN = (
    ("aligned", "base", 0),
    ("sst2", "SST-2", 1),
    ("sst2_p10", "10 % harmful", 1),
    ("sst2_p10_curated", "curated", 2),
    ("sst2_p10_kl_anchor", "KL anchor", 2),
    ("sst2_p10_kl_anchor_4", "KL anchor x 4", 2),
    ("sst2_p10_replay", "replay", 2),
    ("sst2_p10_alignguard", "AlignGuard", 2),
    ("sst2_p10_fisher", "Fisher merge", 2),
    ("sst2_p10_linear", "linear merge", 2),
    ("sst2_p10_inject", "injected", 2),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "real-model.png")
    out = parser.parse_args().out
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no browser: install chromium")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 900, "height": 420}, device_scale_factor=2)
        page.set_content(document())
        page.locator("main").screenshot(path=out)
        browser.close()


def document() -> str:
    spots = {cell: spot for cell, name, series in SHOWN if (spot := of(cell, name, series)) is not None}
    base, tune = spots["aligned"], spots["sst2_p10"]
    paths = [[base, one] for cell, one in spots.items() if one.series == 1]
    paths += [[tune, one] for one in spots.values() if one.series == 2]
    chart = drawing.scatter_chart(
        "real", "SmolLM2-135M: harm refusal against the task", "See the tables of docs/real-model.md",
        [*spots.values()], paths, across="SST-2, % right", up="harmful prompts refused, %",
    )  # fmt: skip
    style = (Path(drawing.__file__).parent / "style.css").read_text(encoding="utf-8")
    head = f"<!doctype html><html lang=en><meta charset=utf-8><style>{style} main {{padding: 16px}}</style>"
    return f"{head}<main>{chart}</main></html>"


def of(cell: str, name: str, series: int) -> drawing.Spot | None:
    card = scorecard(cell)
    if card is None:
        return None
    across, up = (
        Estimate(*(card["metrics"][key][part] for part in ("value", "low", "high", "n")))
        for key in ("task_accuracy", "harm_refusal")
    )
    return drawing.Spot(name, series, across, up)


if __name__ == "__main__":
    main()
