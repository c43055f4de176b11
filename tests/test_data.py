"""Prompts and examples from files: what is read, and that every fault is named with its file and line."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkeep.data import fingerprint_data, read_examples, read_prompts, read_rows
from alignkeep.errors import DataError, MachineError
from alignkeep.types import Example, Message, Prompt


def written(folder: Path, name: str, *rows: object) -> str:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


# By hand


def test_a_text_prompt_is_one_user_turn(tmp_path: Path) -> None:
    file = written(tmp_path, "p.jsonl", {"prompt": "Why?", "kind": "skill", "category": "x", "expected": 42})
    assert read_prompts(file) == [Prompt((Message("user", "Why?"),), kind="skill", category="x", expected="42")]


def test_a_system_column_comes_before_the_turns(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    file = written(tmp_path, "p.jsonl", {"prompt": turns, "system": "Be kind.", "language": "fr", "completion": "d"})
    (prompt,) = read_prompts(file)
    assert [message.role for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert (prompt.text, prompt.expected, prompt.language) == ("c", "d", "fr")


def test_a_kind_given_by_the_caller_holds_for_every_row(tmp_path: Path) -> None:
    file = written(tmp_path, "p.jsonl", {"prompt": "a", "kind": "harmful"}, {"prompt": "b"})
    assert [prompt.kind for prompt in read_prompts(file, kind="task")] == ["task", "task"]
    assert [prompt.kind for prompt in read_prompts(file)] == ["harmful", "unknown"]


def test_expected_wins_over_completion_and_null_columns_count_as_absent(tmp_path: Path) -> None:
    rows = ({"prompt": "a", "expected": "1", "completion": "2"}, {"prompt": "a", "expected": None, "category": None})
    assert [prompt.expected for prompt in read_prompts(written(tmp_path, "p.jsonl", *rows))] == ["1", None]


def test_text_and_message_forms_of_an_example_are_the_same_chat(tmp_path: Path) -> None:
    question, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    rows = (
        {"prompt": "q", "completion": "a"},
        {"prompt": [question], "completion": [answer]},
        {"prompt": [question], "completion": answer},
        {"messages": [question, answer]},
    )
    chat = Example((Message("user", "q"), Message("assistant", "a")))
    assert read_examples(written(tmp_path, "e.jsonl", *rows)) == [chat] * 4


def test_weights_are_read_and_default_to_one(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a", **more} for more in ({}, {"weight": 0}, {"weight": 2.5})]
    assert [example.weight for example in read_examples(written(tmp_path, "e.jsonl", *rows))] == [1.0, 0.0, 2.5]


def test_rows_know_their_line_though_blank_lines_lie_between(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert [row.where for row in read_rows(str(file))] == [f"{file}:1", f"{file}:3"]


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_bytes(b"\xef\xbb\xbfprompt,category\r\nhi,\r\n")
    assert read_prompts(str(file)) == [Prompt((Message("user", "hi"),))]


# Laws


def test_all_file_formats_give_the_same_prompts(tmp_path: Path) -> None:
    rows = [{"prompt": 'He said "a, b"\nand left', "kind": "harmless"}, {"prompt": "q", "kind": "task"}]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=2))
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["prompt", "kind"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = [read_prompts(str(tmp_path / f"a.{ending}")) for ending in ("jsonl", "jsonl.gz", "json", "csv", "parquet")]
    assert all(prompts == read[0] for prompts in read)
    assert read[0][0].text == rows[0]["prompt"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1))
def test_any_text_comes_back_as_it_was_written(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "p.jsonl"
        lines = (json.dumps({"prompt": text}, ensure_ascii=False) for text in texts)
        file.write_bytes("\n".join(lines).encode())
        assert [prompt.text for prompt in read_prompts(str(file))] == texts


def test_the_fingerprint_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(b'{"prompt": "a"}\n')
    expected = hashlib.sha256(b'{"prompt": "a"}\n').hexdigest()
    assert fingerprint_data(str(file)) == f"sha256:{expected}"


def test_the_fingerprint_of_a_hub_set_changes_with_its_rows_and_its_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder stands in for the hub; `datasets` loads it, and knows it by its files."""
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: load(str(tmp_path / name), split=split))
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n', encoding="utf-8")
    first = fingerprint_data("owner/name")
    assert first.startswith("hub:owner/name@train#")
    assert fingerprint_data("owner/name:train") == first
    assert fingerprint_data("owner/name:train[:1]") != first
    assert [row.values for row in read_rows("owner/name")] == [{"prompt": "a"}, {"prompt": "b"}]
    (folder / "train.jsonl").write_text('{"prompt": "b"}\n{"prompt": "a"}\n', encoding="utf-8")
    os.utime(folder / "train.jsonl", (0, 0))
    assert fingerprint_data("owner/name") != first


def test_reading_data_loads_no_heavy_library() -> None:
    code = (
        "import sys, alignkeep.data, alignkeep.models.config, alignkeep.models.loading, alignkeep.models.chat, "
        "alignkeep.models.generation\n"
        "print([name for name in ('torch', 'transformers', 'pyarrow', 'datasets', 'peft') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# Refusals

GOOD = b'{"prompt": "q", "completion": "a"}\n'
PROMPT_FAULTS = {
    "a missing column": (b'{"question": "q", "x": 1}', ["p.jsonl:1", "question, x", "`prompt`"]),
    "a null prompt": (b'{"prompt": null}', ["p.jsonl:1", "prompt (empty)"]),
    "broken JSON": (GOOD + b'{"prompt": "a"', ["p.jsonl:2", "invalid JSON", "column 15"]),
    "a key given twice": (b'{"prompt": "a", "prompt": "b"}', ["p.jsonl:1", "'prompt' twice"]),
    "a list for a row": (GOOD + b"[1]", ["p.jsonl:2", "a JSON list"]),
    "bytes that are not UTF-8": (GOOD + b'{"prompt": "caf\xe9"}', ["p.jsonl:2", "0xe9", "offset 50", "UTF-8"]),
    "half a character": (b'{"prompt": "\\ud83d"}', ["p.jsonl:1", "\\ud83d"]),
    "an empty prompt": (GOOD + GOOD + b'{"prompt": "  "}', ["p.jsonl:3", "empty text"]),
    "a prompt of no messages": (b'{"prompt": []}', ["p.jsonl:1", "no messages"]),
    "a number": (b'{"prompt": 3}', ["p.jsonl:1", "a int", "text or a list of messages"]),
    "a role nobody knows": (b'{"prompt": [{"role": "tool", "content": "x"}]}', ["p.jsonl:1: prompt[0]", "'tool'"]),
    "a message without content": (b'{"prompt": [{"role": "user"}]}', ["prompt[0]", "the keys role"]),
    "content in parts": (b'{"prompt": [{"role": "user", "content": [1]}]}', ["prompt[0]", "type list"]),
    "an answer as the last turn": (
        b'{"prompt": [{"role": "assistant", "content": "x"}]}',
        ["p.jsonl:1: prompt", "a last turn by assistant"],
    ),
    "a late system message": (
        b'{"prompt": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}',
        ["prompt[1]", "in the middle"],
    ),
    "two system messages": (
        b'{"system": "a", "prompt": [{"role": "system", "content": "b"}, {"role": "user", "content": "x"}]}',
        ["p.jsonl:1: system"],
    ),
    "a kind nobody knows": (b'{"prompt": "a", "kind": "evil"}', ["p.jsonl:1: kind", "'evil'", "harmful"]),
    "a category that is a number": (b'{"prompt": "a", "category": 3}', ["p.jsonl:1: category"]),
    "no rows": (b"\n\n", ["no rows"]),
    "an empty file": (b"", ["no rows"]),
}


@pytest.mark.parametrize("fault", PROMPT_FAULTS)
def test_a_faulty_prompt_file_is_refused_by_line(fault: str, tmp_path: Path) -> None:
    content, expected = PROMPT_FAULTS[fault]
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_prompts(str(tmp_path / "p.jsonl"))
    assert all(part in str(caught.value) for part in expected), str(caught.value)


EXAMPLE_FAULTS = {
    "a missing completion": ({"prompt": "q"}, ["e.jsonl:1", "`prompt` and `completion`, or `messages`"]),
    "an empty completion": ({"prompt": "q", "completion": ""}, ["completion", "empty text"]),
    "a question as the last turn": ({"messages": [{"role": "user", "content": "q"}]}, ["a last turn by user"]),
    "a negative weight": ({"prompt": "q", "completion": "a", "weight": -1}, ["weight", "-1"]),
    "NaN as a weight": ({"prompt": "q", "completion": "a", "weight": float("nan")}, ["weight", "nan"]),
    "an infinite weight": ({"prompt": "q", "completion": "a", "weight": float("inf")}, ["weight", "inf"]),
    "a word as a weight": ({"prompt": "q", "completion": "a", "weight": "much"}, ["weight", "'much'"]),
    "true as a weight": ({"prompt": "q", "completion": "a", "weight": True}, ["weight", "True"]),
    "all weights zero": ({"prompt": "q", "completion": "a", "weight": 0}, ["weight 0 on all 1 examples"]),
}


@pytest.mark.parametrize("fault", EXAMPLE_FAULTS)
def test_a_faulty_example_is_refused_by_line(fault: str, tmp_path: Path) -> None:
    row, expected = EXAMPLE_FAULTS[fault]
    with pytest.raises(DataError) as caught:
        read_examples(written(tmp_path, "e.jsonl", row))
    assert all(part in str(caught.value) for part in expected), str(caught.value)


def test_a_missing_file_is_refused_with_names_that_are_near(tmp_path: Path) -> None:
    written(tmp_path, "poisoned.jsonl", {"prompt": "a"})
    with pytest.raises(DataError, match=r"no such file.*did you mean poisoned\.jsonl\?"):
        read_rows(str(tmp_path / "poisond.jsonl"))
    with pytest.raises(DataError, match="no such file, and no folder"):
        read_rows(str(tmp_path / "nowhere" / "x.jsonl"))


def test_folders_and_unknown_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a folder"):
        read_rows(str(tmp_path))
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"\.xlsx.*\.jsonl"):
        read_rows(str(tmp_path / "a.xlsx"))


def test_damaged_containers_are_refused(tmp_path: Path) -> None:
    whole = gzip.compress(GOOD * 100)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "object.json").write_text('{"prompt": "a"}')
    (tmp_path / "lines.json").write_bytes(GOOD + GOOD)
    (tmp_path / "wide.csv").write_text("prompt\na,b\n")
    (tmp_path / "quote.csv").write_text('prompt\n"a" b\n')
    faults = {
        "cut.jsonl.gz": "damaged gzip",
        "bad.parquet": "unreadable parquet",
        "object.json": "a JSON object, expected a list",
        "lines.json": "lines.json:2: found invalid JSON",
        "wide.csv": "wide.csv:2: found more cells",
        "quote.csv": "broken CSV",
    }
    for name, message in faults.items():
        with pytest.raises(DataError, match=message):
            read_rows(str(tmp_path / name))


def test_a_data_set_that_cannot_be_fetched_is_the_machines_failure() -> None:
    with pytest.raises(MachineError, match=r"no-such-owner/no-such-set.*no local file.*give a local file"):
        read_rows("no-such-owner/no-such-set:test")


def test_one_word_that_is_neither_here_nor_reachable_is_a_file_misspelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"notes: found no such file.*did you mean notes.jsonl\?"):
        read_rows("notes")


def test_json_nested_without_end_is_named_as_that(tmp_path: Path) -> None:
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"deep.jsonl:1: found JSON nested"):
        read_rows(str(tmp_path / "deep.jsonl"))
