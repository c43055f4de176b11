"""The tables of docs/real-model.md, from the small results of the study.

    python benchmarks/real/table.py [--page docs/real-model.md]

What stands between `<!-- cells: NAMES -->` and `<!-- end -->` on the page is written anew: a row for each cell that is
done, with its 95 % intervals. Cells that are not done are named below, so that nothing is missing unseen.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "real"
RECIPES = ROOT / "examples" / "real"
_COLUMNS = {
    "harm_refusal": "harm refusal",
    "over_refusal": "over-refusal",
    "benign_compliance": "benign compliance",
    "task_accuracy": "SST-2",
}
_BLOCK = re.compile(r"(<!-- (cells|fronts|probe): ([\w ]+) -->\n).*?(<!-- end -->)", re.S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "real-model.md")
    page = parser.parse_args().page
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """The page with every block written anew."""
    writers = {"cells": cells_table, "fronts": fronts_table, "probe": probe_table}
    return _BLOCK.sub(lambda found: f"{found[1]}{writers[found[2]](found[3].split())}{found[4]}", text)


def cells_table(names: list[str]) -> str:
    """A row of measured shares for each cell. `raw` is the base of the cell `aligned`."""
    lines = [f"| model | {' | '.join(_COLUMNS.values())} |", f"| --- | {' | '.join(['---:'] * len(_COLUMNS))} |"]
    missing = []
    for name in names:
        card = scorecard("aligned" if name == "raw" else name)
        if card is None:
            missing.append(name)
            continue
        metrics = card["base_metrics" if name == "raw" else "metrics"]
        lines.append(f"| `{name}` | {' | '.join(share(metrics[key]) for key in _COLUMNS)} |")
    return "\n".join(lines) + "\n" + open_cells(missing)


def fronts_table(names: list[str]) -> str:
    """A row for each weight of each sweep, on validation data; the weight that was picked is marked."""
    lines = ["| merge | weight | harm refusal | over-refusal | SST-2 |", "| --- | ---: | ---: | ---: | ---: |"]
    missing = []
    for name in names:
        found = result(name)
        sweep = None if found is None else found.get("merge/sweep.json")
        if sweep is None:
            missing.append(name)
            continue
        for point in sweep["weights"]:
            metrics = point["metrics"]
            weight = f"{point['weight']:g}" + (" (picked)" if point["weight"] == sweep["picked"] else "")
            shares = (share(metrics[key]) for key in ("harm_refusal", "over_refusal", "task_accuracy"))
            lines.append(f"| `{name}` | {weight} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n" + open_cells(missing)


def probe_table(rates: list[str]) -> str:
    """What linear readings of the raw model refuse wrongly, a row for each set they were trained on (probe.py)."""
    found: dict[str, Any] = json.loads((RESULTS.parent / "real_probe.json").read_text(encoding="utf-8"))
    titles = ["area under the curve", *(f"over-refusal at {rate} % harm refusal" for rate in rates)]
    lines = [
        f"| trained on | prompts | block | {' | '.join(titles)} |",
        f"| --- | {' | '.join(['---:'] * (2 + len(titles)))} |",
    ]
    for name, row in found.items():
        value, low, high = (row["area"][key] for key in ("value", "low", "high"))
        area = f"{value:.2f} [{low:.2f}, {high:.2f}]"
        shares = (share(row[f"over at {rate}%"]) for rate in rates)
        prompts = " + ".join(map(str, row["prompts"]))
        lines.append(f"| {name} | {prompts} | {row['layer']} | {area} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def share(metric: dict[str, Any]) -> str:
    """`97.4 [92.5, 99.1]`, in percent."""
    if metric["value"] is None:
        return "no data"
    return f"{100 * metric['value']:.1f} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]"


def open_cells(names: list[str]) -> str:
    return f"\nNot measured yet: {', '.join(f'`{name}`' for name in names)}.\n" if names else ""


def scorecard(name: str) -> dict[str, Any] | None:
    found = result(name)
    return None if found is None else found.get("evaluate/scorecard.json")


def result(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


if __name__ == "__main__":
    main()
