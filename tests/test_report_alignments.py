"""Alignments on the page: the numbers are those of log and record; nothing where there is none or it is broken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from alignkeep.align.figures import Alignment, alignments_of
from alignkeep.align.figures import figures_of as align_figures
from alignkeep.charts.figures import Figure
from alignkeep.report.page import page_of
from alignkeep.report.sources import read_sources
from alignkeep.report.stage import report
from alignkeep.report.subjects import series_of, subjects_of
from test_report import NASTY, write_demo

RESULT = {
    "steps": 20, "prompts": 40, "samples": 384, "cut": 0.0625, "unscored": 0.0,
    "ras": {"value": 0.5, "low": 0.25, "high": 0.75, "n": 16},
    "ras_or_tie": {"value": 0.625, "low": 0.375, "high": 0.875, "n": 16},
    "ras_before": {"value": 0.125, "low": 0.0625, "high": 0.375, "n": 16},
    "nag": {"value": 0.25, "low": -0.125, "high": 0.5, "n": 16},
}  # fmt: skip
ROWS: tuple[dict[str, Any], ...] = (
    {"step": 0, "held_out/ras": 0.125, "held_out/ras_or_tie": 0.25},
    {"step": 10, "loss": 4.5, "reward": -0.5, "grao/imitation": -4.0, "grao/exploration": 0.5, "grao/regulariser": -1},
    {"step": 10, "held_out/ras": 0.375, "held_out/ras_or_tie": 0.5},
    {"step": 20, "loss": -1.5, "reward": 0.5, "grao/imitation": -0.5, "grao/exploration": 1.5, "grao/regulariser": 0.5},
    {"step": 20, "held_out/ras": 0.5, "held_out/ras_or_tie": 0.625},
)
REWARD = {"spec": "testbed", "criterion": "helpful"}


def write(
    folder: Path,
    *,
    method: str = "grao",
    rows: tuple[dict[str, Any], ...] = ROWS,
    reward: Mapping[str, str] = REWARD,
    **changes: Any,
) -> None:
    """An alignment by hand: looks at steps 0, 10 and 20, two logged steps; of GRPO without GRAO's columns."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = [{k: v for k, v in row.items() if method == "grao" or not k.startswith("grao/")} for row in rows]
    (folder / "training_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    facts = {"stage": "align", "config": {"method": method, "reward": reward}, "inputs": {"held_out.data": "sha256:h"}}
    (folder / "record.json").write_text(json.dumps(facts | {"result": RESULT | changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_demo(tmp_path)


def drawn(folder: Path) -> tuple[Figure, ...]:
    sources = read_sources([folder])
    subjects = subjects_of(sources.evaluations)
    return align_figures(sources.finished, lambda labels: series_of(labels, subjects))


def words(text: str) -> str:
    """Without the thin blanks of numbers."""
    return text.replace("\u202f", " ")


def test_the_tables_have_the_numbers_of_log_and_record(folder: Path) -> None:
    """The record knows the intervals of the first look and of the last; the one between has its numbers alone."""
    write(folder / "poisoned" / "align")
    better, terms = drawn(folder)
    assert [tuple(map(words, row)) for row in better.table.rows] == [
        ("poisoned", "0", "12.5 % (6.2–37.5 %)", "25.0 %"),
        ("poisoned", "10", "37.5 %", "50.0 %"),
        ("poisoned", "20", "50.0 % (25.0–75.0 %)", "62.5 % (37.5–87.5 %)"),
    ]
    assert " of 16 prompts " in better.caption
    assert words(better.notes[0]) == (
        "poisoned: gain +25.0 points (−12.5 to +50.0, n = 16); 6.2 % of the 384 samples cut off at the longest answer."
    )
    assert terms.table.rows == (
        ("Imitation", "2", "-4.000", "-0.500"), ("Exploration", "2", "0.500", "1.500"),
        ("Regulariser", "2", "-1.000", "0.500"),
    )  # fmt: skip


def test_a_run_is_drawn_in_the_colour_of_its_model(folder: Path) -> None:
    """Series 0 is the base, 1 and 2 what was tuned from it, the largest loss first; an unknown model is the next."""
    for name in ("base", "benign_drift", "poisoned", "unknown"):
        write(folder / name / "align")
    chart = ElementTree.fromstring(str(drawn(folder)[0].chart))
    assert [line.get("class") for line in chart.iter("polyline")] == [f"curve s{series}" for series in (0, 2, 1, 3)]


def test_the_loss_of_an_alignment_is_not_among_the_losses_of_tunes(folder: Path) -> None:
    before = page_of(read_sources([folder])).figures
    write(folder / "poisoned" / "align")
    after = page_of(read_sources([folder])).figures
    assert [one for one in after if one.name not in {"ras", "terms"}] == list(before)
    assert len(after) == len(before) + 2


def test_without_alignments_there_is_no_figure(folder: Path) -> None:
    assert drawn(folder) == alignments_of([Alignment("empty")], lambda labels: {}) == ()


def test_grpo_has_no_terms_and_a_run_without_held_out_prompts_no_looks(folder: Path) -> None:
    write(folder / "poisoned" / "align", method="grpo")
    assert [one.name for one in drawn(folder)] == ["ras"]
    write(folder / "poisoned" / "align", rows=ROWS[1::2], ras=None, ras_or_tie=None, ras_before=None, nag=None)
    (terms,) = drawn(folder)
    assert terms.name == "terms"
    assert words(terms.notes[-1]) == "6.2 % of the 384 samples cut off at the longest answer."


def test_several_runs_are_one_figure_and_one_of_terms_each(folder: Path) -> None:
    write(folder / "benign_drift" / "align", cut=0.0, unscored=0.25)
    write(folder / "grpo" / "align", method="grpo", cut=0.0001)
    write(folder / "poisoned" / "align", cut=0.0)
    better, first, second = drawn(folder)
    assert [one.name for one in (better, first, second)] == ["ras", "terms", "terms-2"]
    assert first.title.endswith(": benign_drift")
    assert second.title.endswith(": poisoned")
    gain = "gain +25.0 points (−12.5 to +50.0, n = 16)"
    assert [words(note) for note in better.notes[:-1]] == [
        f"benign_drift: {gain}; 25.0 % of the 384 samples without a reward.", f"grpo: {gain}.", f"poisoned: {gain}.",
    ]  # fmt: skip  # shares of nothing, and one that would be printed as nothing, are not told


def test_runs_that_were_judged_differently_are_said_not_to_compare(folder: Path) -> None:
    def warned() -> bool:
        return any("cannot be compared" in note for note in drawn(folder)[0].notes)

    write(folder / "poisoned" / "align")
    write(folder / "grpo" / "align", method="grpo")
    assert not warned()
    write(folder / "grpo" / "align", method="grpo", reward={"spec": "judge:other", "criterion": "helpful"})
    assert warned()


BROKEN = (
    *(None, "x", [1], {}, {"value": "x"}, {"value": 0.5}, {"value": None, "low": 0, "high": 1, "n": 0}),
    *({"value": float("nan"), "low": 0, "high": 1, "n": 9}, {"value": 0.5, "low": 0, "high": 10**400, "n": 9}),
)


@pytest.mark.parametrize("broken", BROKEN)
def test_a_record_with_broken_numbers_is_drawn_without_them(broken: Any, folder: Path) -> None:
    names = ("ras", "ras_or_tie", "ras_before", "nag", "cut", "unscored", "samples")
    write(folder / "poisoned" / "align", **dict.fromkeys(names, broken))
    better, _ = drawn(folder)
    assert words(better.table.rows[-1][2]) == "50.0 %"
    assert len(better.notes) == 1, "that the reward flatters"
    assert " of prompts " in better.caption


@pytest.mark.parametrize("broken", [None, "x", [1], True, -0.5, float("nan"), 1e308, 10**400])
def test_a_look_or_step_that_is_no_number_is_passed_over(broken: Any, folder: Path) -> None:
    more: tuple[dict[str, Any], ...]
    more = ({"step": 30, "held_out/ras": broken}, {"step": [broken], "held_out/ras": 0.5, "grao/imitation": 1.0})
    write(folder / "poisoned" / "align", rows=(*ROWS, *more))
    better, terms = drawn(folder)
    assert len(better.table.rows) == 3
    assert terms.table.rows[0][1] == "2"


@pytest.mark.parametrize("broken", [None, "x", True, float("nan"), 1e308, -(10**400)])
def test_a_term_that_is_no_number_is_passed_over(broken: Any, folder: Path) -> None:
    write(folder / "poisoned" / "align", rows=(*ROWS, {"step": 30, "loss": broken, "grao/imitation": broken}))
    assert drawn(folder)[1].table.rows[0] == ("Imitation", "2", "-4.000", "-0.500")


def test_an_interval_of_another_share_is_not_shown(folder: Path) -> None:
    write(folder / "poisoned" / "align", ras={"value": 0.875, "low": 0.75, "high": 1.0, "n": 16})
    assert words(drawn(folder)[0].table.rows[-1][2]) == "50.0 %"


def _without_result(facts: dict[str, Any]) -> None:
    del facts["result"]


def _with_words(facts: dict[str, Any]) -> None:
    facts |= {"result": "x", "config": [], "inputs": 3}


@pytest.mark.parametrize("spoil", [_without_result, _with_words])
def test_a_record_that_says_nothing_leaves_the_log(
    spoil: Callable[[dict[str, Any]], None], folder: Path, tmp_path: Path
) -> None:
    write(folder / "poisoned" / "align")
    record = folder / "poisoned" / "align" / "record.json"
    facts = json.loads(record.read_text())
    spoil(facts)
    record.write_text(json.dumps(facts))
    assert len(drawn(folder)[0].table.rows) == 3
    assert "Better than the reference" in report([folder], out=tmp_path / "page").page.read_text(encoding="utf-8")


def test_both_are_on_the_page_and_a_hostile_name_is_a_word(folder: Path, tmp_path: Path) -> None:
    names = [text.replace("/", "") for text in (NASTY[0], NASTY[1], NASTY[9])]
    for name in names:
        write(folder / name / "align")
    page = report([folder], out=tmp_path / "page").page.read_text(encoding="utf-8")
    found = re.findall(r'<section id="([^"]+)"', page)
    assert {"ras", "terms", "terms-2", "terms-3"} <= set(found)
    assert len(found) == len(set(found))
    assert not any(name in page for name in names)
