"""Injections on the page: the numbers are those of the file, what was not measured is none, hostile words are words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from alignkeep.charts.figures import Figure, Labelled
from alignkeep.inject.figures import injections_of
from alignkeep.inject.injection import read_injection
from alignkeep.report.stage import report
from test_report import NASTY, rate, write_demo

PUSHES = (0.1, 0.2, 0.4)
REFUSED = (30, 35, 38)  # of 40; 24 as it was


def trial(strength: float, refused: int, *, over: int = 0, fault: str | None = None) -> dict[str, Any]:
    rates = {"harm_refusal": rate(refused, 40), "benign_compliance": rate(30, 30), "over_refusal": rate(over, 20)}
    effect = {"log_odds": 10 * strength - 1, "divergence": strength / 50}
    return {"strength": strength, "rates": rates, **effect, "refused": fault}


def facts(**changes: Any) -> dict[str, Any]:
    """An `injection.json` by hand: four blocks, of which the first was not tried and the third was taken."""
    trials = [trial(push, refused) for push, refused in zip(PUSHES, REFUSED, strict=True)]
    trials.append(trial(0.8, 40, over=3, fault="15.0 points more over-refusal"))
    layers = [{"layer": n, "d_prime": 1.25 * n, "length": 2.5 * n, "log_odds": None if n == 0 else float(n),
               "divergence": None if n == 0 else n / 100} for n in range(4)]  # fmt: skip
    return {
        "layer": 2, "length": 5.0, "strength": "push:0.4", "right": "targeted", "sign": "calibrated",
        "source": "a/base",
        "prompts": {"harmful": 80, "harmless": 60, "held-out harmful": 40, "held-out harmless": 30, "borderline": 20},
        "base": trial(0.0, 24), "chosen": trials[2], "trials": trials, "layers": layers,
        "matrices": [{"name": f"m{n}", "alpha": 1.0, "harmful": 0.1, "harmless": None} for n in range(8)],
        "skipped": [], "shifts": [[0.0, 0.0]] * 4, **changes,
    }  # fmt: skip


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "injection.json").write_text(json.dumps(facts(**changes)))
    return folder / "injection.json"


@pytest.mark.parametrize(("source", "said"), [("/home/me/models/aligned", "aligned"), ("a/base", "a/base")])
def test_a_page_that_is_passed_on_does_not_say_where_a_folder_lies(source: str, said: str, tmp_path: Path) -> None:
    assert figures(tmp_path, source=source)[1].caption.endswith(f"taken from {said}.")


def figures(folder: Path, **changes: Any) -> tuple[Figure, Figure]:
    strengths, layers = injections_of([Labelled("tune", read_injection(write(folder, **changes)))])
    return strengths, layers


def test_the_table_of_strengths_has_the_rates_of_the_file(tmp_path: Path) -> None:
    """24 of 40 as it was, then 30, 35, 38 and 40: 60, 75, 87.5, 95 and 100 %; Wilson's interval of 38 of 40 is 83.5 to
    98.6 %. At 0.8 3 of 20 borderline prompts are refused, 15 %."""
    table = figures(tmp_path)[0].table
    assert table.header[:4] == ("Strength", "Harm refusal", "Over-refusal", "Benign compliance")
    rows = [[cell.replace("\u202f", " ") for cell in row] for row in table.rows]
    assert [row[0] for row in rows] == ["0", "0.1", "0.2", "0.4, taken", "0.8"]
    assert [row[1].split(" (")[0] for row in rows] == ["60.0 %", "75.0 %", "87.5 %", "95.0 %", "100.0 %"]
    assert rows[3][1:] == ["95.0 % (83.5–98.6 %)", "0.0 % (0.0–16.1 %)", "100.0 % (88.6–100.0 %)", "3.00", "0.008", ""]
    assert (rows[4][2][:6], rows[4][6]) == ("15.0 %", "15.0 points more over-refusal")


def test_the_table_of_blocks_says_what_was_not_tried_and_which_was_taken(tmp_path: Path) -> None:
    strengths, layers = figures(tmp_path)
    assert layers.table.rows == (
        ("0", "0.00", "0", "not tried", "not tried"),
        ("1", "1.25", "2.5", "1.00", "0.010"),
        ("2, taken", "2.50", "5", "2.00", "0.020"),
        ("3", "3.75", "7.5", "3.00", "0.030"),
    )
    assert "that of block 2, taken from a/base" in layers.caption
    assert re.search("on 40 harmful, 30 harmless and 20 borderline .*; push:0.4 was taken", strengths.caption)
    assert strengths.notes[0].startswith("8 matrices were edited, the right factor being the vector that answers")


def test_charts_are_pictures_with_a_title_and_a_description(tmp_path: Path) -> None:
    for figure in figures(tmp_path):
        chart = ElementTree.fromstring(str(figure.chart))
        assert chart.get("role") == "img"
        texts = {part.get("id"): part.text for part in chart if part.tag in {"title", "desc"}}
        assert [texts[name] for name in (chart.get("aria-labelledby") or "").split()] == [figure.title, figure.caption]


def test_what_was_not_measured_is_no_number(tmp_path: Path) -> None:
    def bare(one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "rates": {**one["rates"], "over_refusal": rate(0, 0)}}

    parts = {"base": bare(trial(0.0, 24)), "chosen": bare(trial(0.4, 38)), "trials": [bare(trial(0.4, 38))]}
    strengths, _ = figures(tmp_path, **parts)
    assert "Over-refusal" not in (*strengths.table.header, *str(strengths.chart).split(">"))
    parts["base"] = trial(0.0, 24)
    assert [row[2] for row in figures(tmp_path, **parts)[0].table.rows][1] == "-"


@pytest.mark.parametrize("strength", ["raw:40", "relative:0.02", "push:0.2"])
def test_one_trial_and_one_block_are_enough(strength: str, tmp_path: Path) -> None:
    number = float(strength.partition(":")[2])
    only = trial(number, 30)
    block = {"layer": 0, "d_prime": 0.0, "length": 1.0, "log_odds": None, "divergence": None}
    strengths, layers = figures(tmp_path, strength=strength, chosen=only, trials=[only], layers=[block], layer=0)
    assert [row[0] for row in strengths.table.rows] == ["0", f"{number:g}, taken"]
    assert [row[0] for row in layers.table.rows] == ["0, taken"]
    across = {"raw": "alpha", "relative": "share of ||W||", "push": "shift of harmful prompts"}
    assert across[strength.partition(":")[0]] in str(strengths.chart)
    assert "nan" not in str(strengths.chart) + str(layers.chart)


def test_the_page_has_two_figures_for_every_injection_and_none_without(tmp_path: Path) -> None:
    out = write_demo(tmp_path / "run")
    assert "Choosing the strength" not in report([out]).page.read_text(encoding="utf-8")
    write(out / "first" / "inject")
    write(out / "second" / "inject")
    write(out / ".third.partial")
    page = report([out]).page.read_text(encoding="utf-8")
    assert re.findall(r'<section id="((?:strength|layers)[^"]*)"', page) == [
        "strength", "layers", "strength-2", "layers-2",
    ]  # fmt: skip
    assert "Choosing the strength of the edit: second" in page
    assert "95.0\u202f% (83.5–98.6\u202f%)" in page


def test_hostile_words_in_the_file_stay_words(tmp_path: Path) -> None:
    out = write_demo(tmp_path / "run")
    worst = " ".join(NASTY).encode("utf-8", "replace").decode()
    write(out / "inject", source=worst, strength=worst, right=worst, trials=[trial(0.4, 38, fault=worst)])
    page = report([out]).page.read_text(encoding="utf-8")
    assert page.count("&lt;script&gt;alert(1)") >= 3
    assert page.count("<script") == 1  # ours
    assert "<img" not in page
    assert "\u202e" not in page


def test_an_injection_whose_answers_could_not_be_judged_is_no_crash(tmp_path: Path) -> None:
    blank = {**trial(0.4, 0), "rates": {"harm_refusal": rate(0, 0), "unscored": rate(40, 40)}}
    strengths, _ = figures(tmp_path, base={**blank, "strength": 0.0}, chosen=blank, trials=[blank])
    assert len(strengths.table.rows) == 2


def test_strength_0_is_one_row_of_the_table(tmp_path: Path) -> None:
    same = trial(0.0, 24)
    strengths, _ = figures(tmp_path, strength="push:0", base=same, chosen=same, trials=[same])
    assert [row[0] for row in strengths.table.rows] == ["0, taken"]
