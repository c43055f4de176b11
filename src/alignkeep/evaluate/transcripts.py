"""Answers out of the transcripts of other tools, as the rows that `judge` takes: garak's report and PyRIT's export.

garak    report.jsonl, entries of type "attempt": `prompt` (text, a message or a conversation), `outputs` (texts or
         messages), `conversations` (the whole of each, where there were several turns). An attempt is written once
         when it was answered and once when it was evaluated; the last counts. Each output is a row; its category is
         the probe.
PyRIT    the JSON of its memory: pieces with `conversation_id`, `sequence`, `role` and `converted_value` (what was
         sent, or came back). Each assistant's turn is a row whose prompt is what came before it.

What is no text (an image, an answer that never came) is left out and counted. Whether a prompt is harmful neither tool
says: the kind is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alignkeep.data import Row
from alignkeep.errors import DataError

_ROLES = {"simulated_assistant": "assistant", "developer": "system"}
_PIECE = {"conversation_id", "role", "converted_value"}


class Answers(NamedTuple):
    """Rows with `prompt` and `answer`, what each is called in its transcript (None in a file of ours), and how many
    answers of the transcript were left out."""

    rows: list[Row]
    ids: list[str | None]
    left_out: int = 0


def answers_of(reference: str, rows: Sequence[Row]) -> Answers:
    """The rows as they are, or those of the transcript that they are. DataError for a transcript without any answer."""
    if any(row.values.get("entry_type") == "attempt" for row in rows):
        found = _of_garak(rows)
    elif rows and all(set(row.values) >= _PIECE for row in rows):
        found = _of_pyrit(rows)
    else:
        return Answers(list(rows), [None] * len(rows))
    if not found.rows:
        seen = f"a transcript without an answer in words ({found.left_out} of another kind)"
        raise DataError(reference, seen=seen, expected="answers", remedy="give the transcript of a finished run")
    return found


def _of_garak(rows: Sequence[Row]) -> Answers:
    attempts: dict[str, Row] = {}
    for number, row in enumerate(rows):
        if row.values.get("entry_type") == "attempt":
            attempts[str(row.values.get("uuid") or number)] = row
    found = Answers([], [])
    left_out = 0
    for name, row in attempts.items():
        outputs, chats = _list(row, "outputs"), _list(row, "conversations")
        for number, output in enumerate(outputs):
            answer = _words(output)
            chat = chats[number] if len(chats) == len(outputs) else None
            turns = _before_answer(chat) or _turns(row.values.get("prompt"))
            if answer is None or not turns or turns[-1]["role"] != "user":
                left_out += 1
                continue
            values = {"prompt": turns, "answer": answer, "category": row.values.get("probe_classname")}
            found.rows.append(Row(values, row.where))
            found.ids.append(f"{name} {number}")
    return found._replace(left_out=left_out)


def _of_pyrit(rows: Sequence[Row]) -> Answers:
    chats: dict[str, list[Row]] = {}
    for row in rows:
        chats.setdefault(str(row.values["conversation_id"]), []).append(row)
    found = Answers([], [])
    left_out = 0
    for name, pieces in chats.items():
        turns: list[dict[str, str]] = []
        for row in sorted(pieces, key=_place):
            words = row.values["converted_value"]
            is_text = row.values.get("converted_value_data_type", "text") == "text" and isinstance(words, str)
            role = str(row.values["role"])
            if role == "assistant":
                if is_text and turns and turns[-1]["role"] == "user":
                    found.rows.append(Row({"prompt": list(turns), "answer": words}, row.where))
                    found.ids.append(str(row.values.get("id") or f"{name} {row.values.get('sequence')}"))
                else:
                    left_out += 1
            turns.append({"role": _ROLES.get(role, role), "content": str(words)})
    return found._replace(left_out=left_out)


def _place(row: Row) -> int:
    place = row.values.get("sequence", 0)
    if not isinstance(place, int):
        raise DataError(
            row.where, seen=f"the sequence {place!r:.40}", expected="a number", remedy="export the memory again"
        )
    return place


def _list(row: Row, column: str) -> list[Any]:
    value = row.values.get(column)
    return value if isinstance(value, list) else []


def _turns(prompt: object) -> list[dict[str, str]]:
    """What was asked: text, a message, or a conversation. Empty where there are no words."""
    if isinstance(prompt, Mapping) and "turns" in prompt:
        return _conversation(prompt)
    words = _words(prompt)
    return [] if words is None else [{"role": "user", "content": words}]


def _before_answer(chat: object) -> list[dict[str, str]]:
    """The turns of a whole conversation before its last answer."""
    turns = _conversation(chat)
    last = max((at for at, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
    return turns[:last]


def _conversation(chat: object) -> list[dict[str, str]]:
    turns = chat.get("turns") if isinstance(chat, Mapping) else None
    found: list[dict[str, str]] = []
    for turn in turns if isinstance(turns, list) else []:
        words = _words(turn.get("content")) if isinstance(turn, Mapping) else None
        if words is None:
            return []
        found.append({"role": str(turn.get("role")), "content": words})
    return found


def _words(value: object) -> str | None:
    """The text of a message, or the text itself; None where there is none."""
    if isinstance(value, Mapping):
        value = value.get("text")
    return value if isinstance(value, str) else None
