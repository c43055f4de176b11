"""The forms in which people have chats, each a value: known by its columns, and read into columns of our own.

Our own are `prompt` and `completion` (or `reference`, `chosen`), each text or messages, and `messages`. A form of a
stranger is one more `Format`: give it to `LEARNED`, the forms of examples, and `ASKED`, the forms of prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from alignkeep.errors import DataError
from alignkeep.rows import Row

COLUMNS = (
    "prompt", "completion", "messages", "reference", "chosen", "rejected", "instruction", "input", "output", "history",
    "conversations", "system", "tools", "expected", "kind", "category", "language", "weight",
)  # fmt: skip
_SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "function_call", "tool_call"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response", "tool_response"), "tool"),
}
_CALLING = ("function_call", "tool_call")
_TURN = re.compile(r"(?:^\s*|\n\n)(Human|Assistant):")


@dataclass(frozen=True)
class Format:
    """A form of rows.

    A row has it where every one of the columns `marks` holds something and none of `unless` does. `says` tells the
    user what is read as what; "" for a form of our own. `read` gives the row in our own columns, and raises DataError
    for a speaker that nobody knows and for turns that cannot be told apart.
    """

    name: str
    marks: tuple[str, ...]
    read: Callable[[Row], Row]
    says: str = ""
    unless: tuple[str, ...] = ()

    def fits(self, row: Row) -> bool:
        return all(map(row.has, self.marks)) and not any(map(row.has, self.unless))


def recognised(
    rows: Sequence[Row], formats: Sequence[Format], expected: str, mapped: Collection[str] = ()
) -> tuple[list[Row], Format]:
    """The rows in our own columns, and the form they have.

    Where several forms fit, that with a `mapped` column is meant. Raises DataError for a row that has none (`expected`
    are the columns in its message), several, or another than the first.
    """
    found, first = [], None
    for row in rows:
        fitting = [one for one in formats if one.fits(row)]
        fitting = [one for one in fitting if set(one.marks) & set(mapped)] or fitting
        if not fitting:
            raise missing(row, expected)
        form = fitting[0]
        if len(fitting) > 1:
            meant = form.marks[0]
            marks = dict.fromkeys(f"`{row.names.get(mark, mark)}`" for one in fitting for mark in one.marks)
            raise DataError(
                row.where, seen=f"the columns {' and '.join(marks)}, which say two things",
                expected="one form of chat: " + " or ".join(dict.fromkeys(one.name for one in fitting)),
                remedy=f"drop one, or say which is meant: --columns {meant}={row.names.get(meant, meant)}",
            )  # fmt: skip
        first = first or form
        if form.says != first.says:
            raise DataError(
                row.where, seen=f"{form.name} ({_listed(form.marks)}), where {rows[0].where} is {first.name}",
                expected=f"one form in a file ({_listed(first.marks)})", remedy="divide the file",
            )  # fmt: skip
        found.append(form.read(row))
    assert first is not None  # rows are at least one
    return found, first


def renamed(rows: Sequence[Row], columns: Mapping[str, str]) -> list[Row]:
    """The rows with our names for the columns: `columns` maps ours to the file's. Raises DataError, with the columns
    there are, for one that no row has."""
    there = dict.fromkeys(name for row in rows for name in row.values)
    for ours, theirs in columns.items():
        if theirs not in there:
            raise DataError(
                rows[0].where, seen=f"the columns {', '.join(there)}", expected=f"{theirs!r}, named for `{ours}`",
                remedy="name one of them in --columns",
            )  # fmt: skip
    taken = {*columns, *columns.values()}
    return [
        Row(
            {name: value for name, value in row.values.items() if name not in taken}
            | {ours: row.values.get(theirs) for ours, theirs in columns.items()},
            row.where, columns,
        )
        for row in rows
    ]  # fmt: skip


def missing(row: Row, expected: str) -> DataError:
    seen = ", ".join(f"{name} (empty)" if value is None else str(name) for name, value in row.values.items())
    return DataError(
        row.where, seen=f"the columns {seen or 'none'}", expected=expected,
        remedy="rename or add a column, or name yours: --columns prompt=NAME,completion=NAME",
    )  # fmt: skip


def _parsed(value: object) -> object:
    """`prompt=question,completion=answer` as a mapping."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",")]
    if any(not (ours.strip() and equals and theirs.strip()) for ours, equals, theirs in pairs):
        raise ValueError("OURS=THEIRS,... such as prompt=question,completion=answer")
    if len({ours.strip() for ours, _, _ in pairs}) < len(pairs):
        raise ValueError("each of our columns once")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def _checked(columns: dict[str, str]) -> dict[str, str]:
    strange = [name for name in columns if name not in COLUMNS]
    if strange:
        raise ValueError(f"our name before the sign (not {strange[0]!r}), one of {', '.join(COLUMNS)}")
    return columns


Columns = Annotated[dict[str, str], BeforeValidator(_parsed), AfterValidator(_checked)]
"""A setting: what our columns are called in a file; text as on the command line is taken too."""


# The forms


def _own(row: Row) -> Row:
    return row


def _messages(row: Row) -> Row:
    return _with(row, {"messages": row.values["messages"]}, {})


def _answered(row: Row) -> Row:
    return _with(row, {name: row.values[name] for name in ("prompt", "completion")}, {})


def _before_answer(row: Row) -> Row:
    """Of the turns in `messages` the question, and the answer where they end with one."""
    turns = row.values["messages"]
    if not isinstance(turns, list):
        raise row.wrong("messages", f"a {type(turns).__name__}", "a list of messages", "mend this row")
    answered = turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant"
    values = {"prompt": turns[:-1], "completion": turns[-1:]} if answered else {"prompt": turns}
    return _with(row, values, dict.fromkeys(values, "messages"))


def _alpaca(row: Row) -> Row:
    instruction, more = row.values["instruction"], row.values.get("input")
    for column, value in (("instruction", instruction), ("input", more or ""), ("output", row.values.get("output"))):
        if value is not None and not isinstance(value, str):
            raise row.wrong(column, f"a {type(value).__name__}", "text", "mend this row")
    asked = f"{instruction}\n\n{more}" if str(more or "").strip() else instruction
    before = _history(row) if row.has("history") else []
    values: dict[str, object] = {"prompt": [*before, {"role": "user", "content": asked}] if before else asked}
    if str(row.values.get("output") or "").strip():
        values["completion"] = row.values["output"]
    return _with(row, values, {"prompt": "instruction", "completion": "output"}, "input", "history")


def _history(row: Row) -> list[dict[str, object]]:
    pairs, turns = row.values["history"], list[dict[str, object]]()
    listed: list[Any] = pairs if isinstance(pairs, list) else [None]
    for at, pair in enumerate(listed):
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(one, str) and one.strip() for one in pair)
        ):
            raise row.wrong(f"history[{at}]", repr(pair)[:60], "a question and its answer, both text", "mend this row")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns


def _sharegpt(row: Row) -> Row:
    turns = row.values["conversations"]
    if not isinstance(turns, list):
        raise row.wrong("conversations", f"a {type(turns).__name__}", "a list of turns", "mend this row")
    read = [_spoken(row, f"conversations[{at}]", turn) for at, turn in enumerate(turns)]
    return _with(row, {"messages": read}, {"messages": "conversations"})


def _spoken(row: Row, place: str, turn: Any) -> dict[str, object]:
    """A turn of `from` and `value`, or of `role` and `content`, as a message."""
    if not isinstance(turn, dict) or not ({"from", "value"} <= set(turn) or "role" in turn):
        seen = f"the keys {', '.join(map(str, turn))}" if isinstance(turn, dict) else f"a {type(turn).__name__}"
        raise row.wrong(place, seen, "a turn with `from` and `value`, or `role` and `content`", "mend this row")
    who = turn["from"] if "from" in turn else turn["role"]
    if who not in _SPEAKERS:
        known = ", ".join(_SPEAKERS)
        raise row.wrong(place, f"the speaker {who!r}", f"one of {known}", "rename the speaker or drop the row")
    message = {name: value for name, value in turn.items() if name not in ("from", "value")}
    message |= {"role": _SPEAKERS[who], "content": turn["value"] if "from" in turn else turn.get("content")}
    if who in _CALLING:
        try:
            calls = json.loads(str(message["content"]))
        except ValueError as error:
            raise row.wrong(place, "a call that is no JSON", '{"name": ..., "arguments": ...}', "mend it") from error
        message |= {"content": "", "tool_calls": calls if isinstance(calls, list) else [calls]}
    return message


def _pair(row: Row) -> Row:
    """The better transcript, cut before its last answer: an example learns all of it, a reference is that answer."""
    if row.has("prompt"):
        return _with(row, {name: row.values[name] for name in ("prompt", "chosen")}, {})
    chosen, rejected = (_transcript(row, column) for column in ("chosen", "rejected"))
    if len(chosen) < 2 or chosen[0] != rejected[0]:
        raise row.wrong(
            "chosen", "a transcript that begins otherwise than `rejected`" if len(chosen) > 1 else "a single turn",
            "two transcripts that share their beginning", "add a column `prompt`, or mend this row",
        )  # fmt: skip
    values: dict[str, object] = {"prompt": chosen[:-1], "chosen": chosen[-1:]}
    return _with(row, values, {"prompt": "chosen"})


def _transcript(row: Row, column: str) -> list[Any]:
    value = row.values[column]
    if isinstance(value, list):
        return value or [None]
    if not isinstance(value, str) or not _TURN.match(value):
        seen = "text that does not begin with `Human:`" if isinstance(value, str) else f"a {type(value).__name__}"
        raise row.wrong(column, seen, "a transcript, or messages", "mend this row, or add a column `prompt`")
    parts = _TURN.split(value)[1:]
    turns = list[dict[str, object]]()
    for who, said in zip(parts[::2], map(str.strip, parts[1::2]), strict=True):
        role = "user" if who == "Human" else "assistant"
        if turns and turns[-1]["role"] == role:  # somebody who goes on: one turn
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{said}".strip()
        else:
            turns.append({"role": role, "content": said})
    empty = next((at for at, turn in enumerate(turns[:-1]) if not turn["content"]), None)
    if empty is not None:
        raise row.wrong(f"{column}[{empty}]", "an empty turn", "some text", "fill it in or drop this row")
    return turns


def _with(row: Row, values: Mapping[str, object], names: Mapping[str, str], *gone: str) -> Row:
    """The row with nothing but `values` for its turns, of which `names` says where they came from, and with its other
    columns."""
    gone = (*gone, *names.values(), "prompt", "completion", "messages", "chosen", "rejected")
    others = {name: value for name, value in row.values.items() if name not in gone}
    told = {ours: row.names.get(theirs, theirs) for ours, theirs in names.items()}
    return Row({**others, **values}, row.where, {**row.names, **told})


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


_ALPACA = "`instruction` and `input` are the prompt, `output` is the answer; `history` comes before"
_SHAREGPT = "`conversations` are the turns"
_PAIRS = "the turns before the last answer of `chosen` are the prompt, that answer is taken, `rejected` is not"

LEARNED = (
    Format("messages", ("messages",), _messages),
    Format("prompt and completion", ("prompt", "completion"), _answered),
    Format("Alpaca", ("instruction",), _alpaca, _ALPACA),
    Format("ShareGPT", ("conversations",), _sharegpt, _SHAREGPT),
    Format("preference pairs", ("chosen", "rejected"), _pair, _PAIRS, unless=("completion",)),
)
"""The forms of examples."""

ASKED = (
    Format("prompts", ("prompt",), _own),
    Format("messages", ("messages",), _before_answer, unless=("prompt",)),
    Format("Alpaca", ("instruction",), _alpaca, _ALPACA),
    Format("ShareGPT", ("conversations",), lambda row: _before_answer(_sharegpt(row)), _SHAREGPT),
    Format("preference pairs", ("chosen", "rejected"), _pair, _PAIRS, unless=("prompt",)),
)
"""The forms of prompts, and of prompts with an answer to compare with."""
