"""Prompt sets of the field: every row of the table is read from a small sample of its real columns. The words are made
up and harmless; nothing is downloaded."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest

from alignkeep.errors import DataError, MachineError, RecipeError
from alignkeep.evaluate.benchmarks import Benchmark, benchmarks, read_benchmark
from alignkeep.evaluate.suites import load_suite

# As the sets lie on the hub: name -> rows, and the kinds and categories that come out.
SAMPLES: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str | None]]]] = {
    "advbench": (
        [{"prompt": "Write a poem about rain", "target": "Sure, here is a poem about rain"}],
        [("harmful", None)],
    ),
    "harmbench": ([{"prompt": "Describe rain", "category": "weather"}], [("harmful", "weather")]),
    "jailbreakbench": (
        [{"Index": 0, "Goal": "Describe rain", "Target": "Sure", "Behavior": "Rain", "Category": "W", "Source": "Own"}],
        [("harmful", "W")],
    ),
    "jailbreakbench_benign": (
        [{"Index": 0, "Goal": "Describe rain", "Target": "Sure", "Behavior": "Rain", "Category": "W", "Source": "Own"}],
        [("borderline", "W")],
    ),
    "strongreject": ([{"prompt": "Describe rain", "category": "W", "source": "custom"}], [("harmful", "W")]),
    "xstest": (
        [
            {
                "id": 1,
                "prompt": "How do I kill time?",
                "type": "homonyms",
                "label": "safe",
                "focus": "kill",
                "note": "",
            },
            {"id": 2, "prompt": "Describe rain", "type": "contrast", "label": "unsafe", "focus": "rain", "note": ""},
        ],
        [("borderline", "homonyms"), ("harmful", "contrast")],
    ),
    "or_bench": ([{"prompt": "Describe rain", "category": "weather"}], [("borderline", "weather")]),
    "or_bench_toxic": ([{"prompt": "Describe rain", "category": "weather"}], [("harmful", "weather")]),
    "sorry_bench": (
        [
            {"question_id": 1, "category": "3", "turns": ["Describe rain"], "prompt_style": "base"},
            {"question_id": 1, "category": "3", "turns": ["d e s c r i b e"], "prompt_style": "ascii"},
        ],
        [("harmful", "3")],
    ),
    "do_not_answer": (
        [
            {
                "id": 0,
                "risk_area": "Weather",
                "types_of_harm": "Wet",
                "specific_harms": "Very",
                "question": "Is it rain?",
            }
        ],
        [("harmful", "Weather")],
    ),
    "wildguardtest": (
        [
            {"prompt": "Rain?", "adversarial": False, "prompt_harm_label": "harmful", "subcategory": "wet"},
            {"prompt": "Sun?", "adversarial": True, "prompt_harm_label": "unharmful", "subcategory": "benign"},
            {"prompt": "Wind?", "adversarial": True, "prompt_harm_label": None, "subcategory": "benign"},
        ],
        [("harmful", "wet"), ("harmless", "benign")],
    ),
    "hex_phi": ([{"Describe rain": "Describe wind"}], []),  # one split of ten, below
    "air_bench": (
        [{"cate-idx": "1.1.1", "l2-name": "Wet", "l3-name": "Rain", "l4-name": "Much", "prompt": "Describe rain"}],
        [("harmful", "Wet")],
    ),
    "malicious_instruct": ([{"prompt": "Describe rain"}], [("harmful", None)]),
    "catqa": ([{"Category": "Wet", "Subcategory": "Rain", "Question": "Is it rain?"}], [("harmful", "Wet")]),
}
TABLE = benchmarks()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str | None, str]]:
    """The hub as `datasets` gives it: every set holds its sample; what was asked for is remembered."""
    asked: list[tuple[str, str | None, str | None, str]] = []

    def load(path: str, name: str | None = None, *, split: str, revision: str | None = None) -> datasets.Dataset:
        asked.append((path, name, revision, split))
        (found,) = (one for one, row in TABLE.items() if (row.hub, row.config) == (path, name) and split in row.splits)
        return datasets.Dataset.from_list(SAMPLES[found][0])

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_every_set_that_is_named_has_a_sample() -> None:
    assert set(SAMPLES) == set(TABLE)


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "hex_phi"])
def test_a_set_is_read_from_the_hub_in_its_own_columns(name: str, hub: list[Any]) -> None:
    row, (_, wanted) = TABLE[name], SAMPLES[name]
    suite = load_suite(name)
    assert [(prompt.kind, prompt.category) for prompt in suite.prompts] == wanted
    assert hub == [(row.hub, row.config, row.revision, split) for split in row.splits]
    assert suite.name == name
    assert (f"suite {name}: no revision is pinned" in " ".join(suite.notes)) == (row.revision is None)


def test_a_file_without_a_header_gives_its_first_line_too(hub: list[Any]) -> None:
    suite = load_suite("hex_phi")
    assert [prompt.text for prompt in suite.prompts[:2]] == ["Describe rain", "Describe wind"]
    assert len(suite.prompts) == 2 * len(TABLE["hex_phi"].splits)
    assert suite.prompts[0].category == "Category_1_Illegal_Activity"


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "hex_phi"])
def test_a_copy_in_the_same_columns_is_the_same_suite(name: str, hub: list[Any], tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_text("".join(json.dumps(row) + "\n" for row in SAMPLES[name][0]))
    local = load_suite(f"{name}={copy}")
    assert hub == []
    assert local.fingerprint == load_suite(name).fingerprint


def test_a_csv_of_the_authors_is_read_too(tmp_path: Path) -> None:
    copy = tmp_path / "harmbench_behaviors_text_all.csv"
    columns = ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"]
    with copy.open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [columns, ["Describe rain", "standard", "wet", "", "", "a"], ["Sing", "copyright", "dry", "", "", "b"]]
        )
    prompts, _ = read_benchmark("harmbench", str(copy))
    assert [(prompt.text, prompt.category) for prompt in prompts] == [("Describe rain", "wet")]


def test_rows_without_a_label_are_left_out_and_counted(hub: list[Any]) -> None:
    assert "1 rows have no label" in " ".join(load_suite("wildguardtest").notes)


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("xstest", {"prompt": "Describe rain"}, "a column label"),
        ("xstest", {"prompt": "Describe rain", "label": "maybe"}, r"'maybe', expected safe \| unsafe"),
        ("catqa", {"question": "Is it rain?"}, "Question or prompt"),
        ("or_bench", {"prompt": 3}, "expected text"),
        ("sorry_bench", {"turns": ["a"], "prompt_style": "ascii"}, "no row that counts"),
    ],
)
def test_a_copy_that_does_not_fit_is_refused_with_its_place(name: str, row: dict, said: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=said):
        load_suite(f"{name}={copy}")


def test_a_gated_set_that_cannot_be_read_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(MachineError, match=r"--suite advbench=FILE") as refused:
        load_suite("advbench")
    assert "HF_TOKEN" in refused.value.remedy
    with pytest.raises(MachineError) as open_one:
        load_suite("xstest")
    assert "HF_TOKEN" not in open_one.value.remedy


def test_a_name_nearly_right_is_helped() -> None:
    with pytest.raises(RecipeError, match="did you mean harmbench"):
        load_suite("harmbensh")


def test_rows_of_the_table_are_whole() -> None:
    for name, row in TABLE.items():
        assert re.search(r"arXiv:\d{4}\.\d{4,5}$", row.paper), name
    with pytest.raises(RecipeError, match="exactly one of kind and kinds"):
        Benchmark(title="t", hub="a/b", splits=("x",), prompt=("p",), licence="l", paper="p", measures="m")


def test_the_page_lists_every_set() -> None:
    page = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    page = page.partition("### Sets of the field")[2].partition("\n### ")[0]
    assert set(re.findall(r"^\| `(\w+)` \| [\w.-]+/", page, re.MULTILINE)) == set(TABLE)
