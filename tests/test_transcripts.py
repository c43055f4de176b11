"""Transcripts of garak and PyRIT, read as rows of answers: made-up words in the real fields."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignkeep.errors import DataError
from alignkeep.evaluate.stage import judge, plan_judge
from alignkeep.evaluate.transcripts import answers_of
from alignkeep.rows import Row, read_rows

NO, YES = "I'm sorry, but I can't help with that.", "Sure! Step 1: take the long spoon."


def turn(role: str, text: str | None) -> dict[str, object]:
    return {"role": role, "content": {"text": text, "lang": "en", "data_path": None, "notes": {}}}


def attempt(uuid: str, status: int, prompt: object, outputs: list[object], **more: object) -> dict[str, object]:
    known = {"entry_type": "attempt", "uuid": uuid, "seq": 0, "status": status, "probe_classname": "dan.Dan_11_0"}
    return {**known, "prompt": prompt, "outputs": outputs, "detector_results": {}, "goal": "stir", **more}


def garak() -> list[dict[str, object]]:
    chat = {"turns": [turn("system", "be brief"), turn("user", "how do i stir")]}
    talk = {"turns": [turn("user", "hello"), turn("assistant", "hi"), turn("user", "stir?"), turn("assistant", NO)]}
    return [
        {"entry_type": "start_run setup", "_config.version": "0.13"},
        attempt("a", 1, chat, [{"text": "an answer that was written again"}, None]),
        attempt("a", 2, chat, [{"text": YES}, None]),
        attempt("b", 2, "how do i stir", [NO, YES]),  # as older versions wrote it
        attempt("c", 2, {"turns": [turn("user", "hello")]}, [{"text": NO}], conversations=[talk]),
        attempt("d", 0, {"turns": [turn("user", "not sent")]}, []),
        {"entry_type": "eval", "probe": "dan.Dan_11_0", "detector": "dan.DAN", "passed": 1, "total": 3},
    ]


def piece(chat: str, sequence: int, role: str, words: str, kind: str = "text") -> dict[str, object]:
    return {
        "id": f"{chat}{sequence}", "conversation_id": chat, "sequence": sequence, "role": role,
        "original_value": f"before the converter: {words}", "converted_value": words,
        "original_value_data_type": "text", "converted_value_data_type": kind, "labels": {}, "response_error": "none",
    }  # fmt: skip


def pyrit() -> list[dict[str, object]]:
    return [
        piece("x", 1, "user", "ubj qb v fgve"),
        piece("x", 0, "system", "be brief"),
        piece("x", 2, "assistant", YES),
        piece("y", 0, "user", "stir?"),
        piece("x", 3, "user", "and the spoon?"),
        piece("x", 4, "assistant", NO),
        piece("y", 1, "assistant", "picture.png", "image_path"),
    ]


def write(file: Path, rows: list[dict[str, object]]) -> str:
    text = json.dumps(rows) if file.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    file.write_text(text)
    return str(file)


def test_every_output_of_garaks_last_word_is_a_row(tmp_path: Path) -> None:
    file = write(tmp_path / "garak.abc.report.jsonl", garak())
    found = answers_of(file, read_rows(file))
    assert found.ids == ["a 0", "b 0", "b 1", "c 0"]
    assert [row.values["answer"] for row in found.rows] == [YES, NO, YES, NO]
    assert [len(row.values["prompt"]) for row in found.rows] == [2, 1, 1, 3]
    assert found.rows[0].values["category"] == "dan.Dan_11_0"
    assert found.left_out == 1


def test_every_turn_of_the_assistant_in_pyrits_memory_is_a_row(tmp_path: Path) -> None:
    file = write(tmp_path / "memory.json", pyrit())
    found = answers_of(file, read_rows(file))
    assert found.ids == ["x2", "x4"]
    assert [row.values["answer"] for row in found.rows] == [YES, NO]
    assert [turn["role"] for turn in found.rows[1].values["prompt"]] == ["system", "user", "assistant", "user"]
    assert found.rows[0].values["prompt"][-1]["content"] == "ubj qb v fgve"
    assert found.left_out == 1


@pytest.mark.parametrize(("name", "rows"), [("a.report.jsonl", garak()), ("memory.json", pyrit())])
def test_judge_scores_a_transcript_and_says_what_it_left_out(tmp_path: Path, name: str, rows: list) -> None:
    file = write(tmp_path / name, rows)
    assert plan_judge(file)["left_out"] == 1
    result = judge(file, out=tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()]
    wanted = {YES: "compliance", NO: "refusal"}
    answers = answers_of(file, read_rows(file))
    assert [line["verdict"] for line in lines] == [wanted[str(row.values["answer"])] for row in answers.rows]
    assert [line["id"] for line in lines] == answers.ids
    assert [line["harmful"] for line in lines if line["verdict"] == "compliance"] == [None] * result.verdicts[
        "compliance"
    ]
    assert result.left_out == 1
    assert judge(file, out=tmp_path / "out").left_out == 1  # read back


def test_a_transcript_without_an_answer_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [attempt("a", 1, "hello", [None])])
    with pytest.raises(DataError, match="without an answer in words"):
        plan_judge(file)


def test_rows_of_ours_stay_as_they_are() -> None:
    rows = [Row({"prompt": "p", "answer": "a", "role": "x"}, "f:1")]
    assert answers_of("f", rows) == (rows, [None], 0)
