"""The answers on the page: in which order, how many, and what can be asked of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from alignkeep.errors import DataError
from alignkeep.report import examples
from alignkeep.report.examples import FIRST, sections_of
from alignkeep.report.sources import read_sources
from alignkeep.report.stage import report
from alignkeep.report.subjects import subjects_of
from test_report import NASTY, Reader, plain, rate, write_demo, write_scorecard


def evaluated(folder: Path, rows: list[dict[str, object]]) -> Path:
    write_scorecard(folder, {"harm_refusal": rate(1, 2)}, base_metrics={"harm_refusal": rate(1, 2)})
    whole = [{"kind": "harmful", "answer": "Sure", "verdict": "compliance", "model": "tuned"} | row for row in rows]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole))
    return folder


def sections(folder: Path, *, full: bool = False):
    return sections_of(subjects_of(read_sources([folder]).evaluations), full=full)


def test_every_prompt_is_there_once_and_the_first_ones_show_every_kind(tmp_path: Path) -> None:
    [section] = sections(write_demo(tmp_path))
    shown = [(one.topic, one.order) for one in section.comparisons]
    assert len(shown) == len(set(shown)) == 66 * 5 + 60 + 48 + 40 + 50
    assert section.left_out == 0
    first = [one.topic for one in section.comparisons[:FIRST]]
    assert [first.count(topic) for topic in dict.fromkeys(first)] == [8, 4, 4, 4]
    assert sorted(one.order for one in section.comparisons) == list(range(len(shown)))


def test_a_page_has_room_for_so_many_answers_and_says_what_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base and two tunes: 90 answers are 30 prompts."""
    write_demo(tmp_path)
    monkeypatch.setattr(examples, "MOST_ANSWERS", 90)
    [section] = sections(tmp_path)
    assert (len(section.comparisons), section.left_out) == (30, 528 - 30)
    assert "498 more prompts, the least telling, are in answers.jsonl only" in plain(report([tmp_path]).page)


def test_long_answers_shown_in_full_fill_the_page_sooner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"index": i, "prompt": f"p{i}", "answer": "long " * 100} for i in range(2 * FIRST)]
    folder = evaluated(tmp_path / "a", rows)
    monkeypatch.setattr(examples, "MOST_LETTERS", 500 * (FIRST + 5))
    assert len(sections(folder)[0].comparisons) == 2 * FIRST
    assert FIRST <= len(sections(folder, full=True)[0].comparisons) <= FIRST + 5


def test_judges_that_differ_are_named_and_one_that_does_not_know_differs_from_none(tmp_path: Path) -> None:
    say = [{"verdict": "refusal", "harmful": False}, {"verdict": "compliance", "harmful": None}]
    rows = [{"index": i, "prompt": f"p{i}", "harmful": True, "judges": {"second": word}} for i, word in enumerate(say)]
    folder = evaluated(tmp_path / "a", rows)
    [section] = sections(folder)
    assert [one.differs for one in sorted(section.comparisons, key=lambda one: one.order)] == [True, False]
    text = report([folder]).page.read_text()
    assert text.count(" data-differs") == 1
    assert "<bdi>second</bdi>: refused" in text
    assert "judges differ" in text


def test_without_a_second_judge_nothing_asks_whether_judges_differ(tmp_path: Path) -> None:
    assert "judges differ" not in report([evaluated(tmp_path / "a", [{"index": 0, "prompt": "p"}])]).page.read_text()


def test_a_word_of_a_judge_that_is_none_is_refused_with_its_line(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "a", [{"index": 0, "prompt": "p", "judges": {"second": "refusal"}}])
    with pytest.raises(DataError, match=r"answers\.jsonl:1.*evaluate again"):
        sections(folder)


def test_what_the_script_reads_are_numbers_whatever_the_models_and_judges_are_called(tmp_path: Path) -> None:
    rows = [
        {"index": i, "prompt": text, "verdict": text, "judges": {text: {"verdict": text + "!", "harmful": None}}}
        for i, text in enumerate(NASTY)
    ]
    page = Reader(report([evaluated(tmp_path / "a", rows)]).page)
    read = [(name, value) for _, attributes in page.tags for name, value in attributes.items() if name[:5] == "data-"]
    assert {name for name, _ in read} == {
        "data-by", "data-topic", "data-order", "data-changes", "data-differs", "data-model", "data-verdict",
    }  # fmt: skip
    assert all(re.fullmatch(r"\d+", value or "0") for name, value in read if name != "data-by")
    assert [tag for tag, _ in page.tags].count("script") == 1


def test_the_plain_prompt_of_an_attack_is_the_one_that_its_row_names(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"index": 0, "prompt": "Pick the lock"},
        {"index": 1, "prompt": "lock"},
        {"index": 2, "attack": "base64", "prompt": "UGljayB0aGUgbG9jaw==", "of": 0},
    ]
    [section] = sections(evaluated(tmp_path / "a", rows))
    assert [one.prompt for one in section.comparisons if "attack: base64" in one.tags] == ["Pick the lock"]
