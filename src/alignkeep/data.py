"""Prompts and examples out of rows: every fault of the data is found here, before any work is spent.

A prompt row holds `prompt` (text, or messages that end with the user's turn) and may hold `system`, `kind`,
`category`, `language` and the one right answer as `expected` or `completion`. An example row holds `prompt` and
`completion`, or `messages` that end with the assistant's turn, and may hold `system`, `weight` and `tools`. A row to
compare answers on holds `prompt` and `reference`. Other columns are left alone. Plain text is taken as a chat of one
question and one answer. The forms in which other people have chats are recognised by their columns (formats.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast, get_args

from alignkeep.errors import DataError
from alignkeep.formats import ASKED, LEARNED, Format, missing, recognised, renamed
from alignkeep.rows import Row, fingerprint_data, local_file, read_rows
from alignkeep.types import Example, Kind, Message, Prompt, Reference, Role, ToolTurn

__all__ = [
    "Read",
    "Row",
    "fingerprint_data",
    "has_columns",
    "local_file",
    "read_examples",
    "read_prompts",
    "read_references",
    "read_rows",
    "read_texts",
]

T = TypeVar("T", Prompt, Example, Reference)

_OWN: Mapping[str, str] = {}
_REFERENCES = ("reference", "chosen", "completion")


class Read(list[T]):
    """What the rows of a file say, in file order; `notes` tell the user in which form it was found."""

    notes: tuple[str, ...] = ()


def read_prompts(reference: str, *, kind: Kind | None = None, columns: Mapping[str, str] = _OWN) -> Read[Prompt]:
    """One prompt per row, in file order. A `kind` given here holds for all rows, whatever their column says; `columns`
    maps our names of columns to the file's.

    Raises DataError with file and line for a missing column, a wrong type, empty text, an unknown role or kind, and for
    columns that are not there or that say two things.
    """
    rows, notes = _rows(reference, columns, ASKED, "`prompt`")
    return _read([_prompt(row, kind) for row in rows], notes)


def read_examples(reference: str, *, columns: Mapping[str, str] = _OWN) -> Read[Example]:
    """One example per row, in file order; weight 1 where the row has none.

    Every assistant turn is learned, those inside a `prompt` of several turns too. In the forms of other people a row
    whose answer is empty, as public sets have a few, is left out, which the notes say. Raises DataError as
    `read_prompts` does, and for weights that are negative, not finite, or all zero.
    """
    rows, notes = _rows(reference, columns, LEARNED, "`prompt` and `completion`, or `messages`", answered=True)
    examples = _read([_example(row) for row in rows], notes)
    if all(example.weight == 0 for example in examples):
        raise DataError(
            reference,
            seen=f"weight 0 on all {len(examples)} examples",
            expected="a positive weight somewhere",
            remedy="drop the column `weight` or mend it",
        )
    return examples


def example_of(values: Mapping[str, object], where: str) -> Example:
    """One row as `read_examples` reads it; `where` names it in errors."""
    if not isinstance(values, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DataError(
            where, seen=f"a {type(values).__name__}", expected="a row of `prompt` and `completion`, or of `messages`",
            remedy="give rows, or examples",
        )  # fmt: skip
    (row,), _ = recognised([Row(dict(values), where)], LEARNED, "`prompt` and `completion`, or `messages`")
    return _example(row)


def read_references(reference: str, *, required: bool = True, columns: Mapping[str, str] = _OWN) -> Read[Reference]:
    """One prompt with the answer it is compared with per row, in file order: the column `reference`, else `chosen`,
    else `completion`. Other columns are kept for the reward, but for `rejected`.

    Raises DataError as `read_prompts` does, and for a row without such an answer where one is `required`.
    """
    expected = "`prompt` and `reference` (or `chosen`, or `completion`)"
    rows, notes = _rows(reference, columns, ASKED, expected if required else "`prompt`", answered=required)
    return _read([_reference(row, required) for row in rows], notes)


def read_texts(reference: str, *, columns: Mapping[str, str] = _OWN) -> Read[Prompt] | Read[Example]:
    """Rows with an answer as examples, rows without as prompts; the first row decides."""
    (first, *_), _ = _rows(reference, columns, ASKED, "`prompt`, or `messages`")
    answered = any(map(first.has, ("completion", "chosen")))
    return read_examples(reference, columns=columns) if answered else read_prompts(reference, columns=columns)


def has_columns(reference: str, columns: Mapping[str, str]) -> bool:
    """Whether the file has all of the columns that `columns` names."""
    return set(columns.values()) <= {name for row in read_rows(reference) for name in row.values}


def _rows(
    reference: str, columns: Mapping[str, str], formats: Sequence[Format], expected: str, *, answered: bool = False
) -> tuple[list[Row], tuple[str, ...]]:
    """The rows in our own columns, and what the user is told of their form. Where they are to be `answered`, those of
    other people's forms that are not are left out."""
    rows, notes = read_rows(reference), list[str]()
    if columns:
        rows = renamed(rows, columns)
        notes.append(f"{reference}: {', '.join(f'`{theirs}` is {ours}' for ours, theirs in columns.items())}")
    rows, form = recognised(rows, formats, expected, columns)
    if not form.says:
        return rows, tuple(notes)
    notes.append(f"{reference}: read as {form.name}: {form.says}")
    empty = [row for row in rows if answered and not _is_answered(row)]
    if len(empty) == len(rows):
        raise DataError(reference, seen="no row with an answer", expected="some", remedy="give a file that has answers")
    if empty:
        rows = [row for row in rows if _is_answered(row)]
        notes.append(f"{len(empty)} of its rows have an empty answer and were left out (the first is {empty[0].where})")
    return rows, tuple(notes)


def _is_answered(row: Row) -> bool:
    given = next((row.values[name] for name in ("messages", *_REFERENCES) if row.has(name)), "")
    last = given[-1] if isinstance(given, list) and given else given
    if isinstance(last, dict):
        last = last.get("content") or last.get("tool_calls")
    return bool(last.strip() if isinstance(last, str) else last)


def _read(found: list[T], notes: tuple[str, ...]) -> Read[T]:
    read = Read(found)
    read.notes = notes
    return read


def _reference(row: Row, required: bool) -> Reference:
    messages = _asked(row)
    column = next((name for name in _REFERENCES if row.has(name)), None)
    if column is None and required:
        raise missing(row, "`prompt` and `reference` (or `chosen`, or `completion`)")
    answer = None if column is None else _turns(row, column, "assistant")[-1].content
    others = {
        name: value for name, value in row.values.items() if name not in ("prompt", "system", "rejected", *_REFERENCES)
    }
    return Reference(messages, answer, others)


def _prompt(row: Row, kind: Kind | None) -> Prompt:
    messages = _asked(row)
    given = _label(row, "kind") or "unknown"
    if given not in get_args(Kind):
        raise row.wrong("kind", repr(given), " | ".join(get_args(Kind)), "use one of these")
    return Prompt(
        messages=messages,
        kind=kind or cast(Kind, given),
        category=_label(row, "category"),
        language=_label(row, "language") or "en",
        expected=_expected(row),
    )


def _asked(row: Row) -> tuple[Message, ...]:
    """The chat that the column `prompt` holds, behind the row's system message."""
    if row.values.get("tools"):
        raise row.wrong("tools", "tools", "prompts without them: only examples have tools", "drop the column")
    messages = _turns(row, "prompt", "user")
    called = next((at for at, message in enumerate(messages) if isinstance(message, ToolTurn)), None)
    if called is not None:
        raise row.wrong(
            f"prompt[{called}]", f"a turn with tools by {messages[called].role!r}",
            "system | user | assistant, and text: only examples have tools", "drop the row",
        )  # fmt: skip
    if messages[-1].role != "user":
        raise row.wrong("prompt", f"a last turn by {messages[-1].role}", "a last turn by user", "drop later turns")
    return _with_system(row, messages)


def _expected(row: Row) -> str | None:
    """The right answer: `expected` (a number is fine) before `completion`."""
    for column in ("expected", "completion"):
        value = row.values.get(column)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if value is not None:
            return _turns(row, column, "assistant")[-1].content
    return None


def _example(row: Row) -> Example:
    column = next((name for name in ("messages", "completion", "chosen") if row.has(name)), None)
    if column is None:
        raise row.wrong("completion", "empty text", "some text", "fill it in or drop this row")
    messages = _turns(row, column, "assistant")
    # `chosen` beside a prompt may be the whole chat.
    if column != "messages" and not (column == "chosen" and messages[0].role != "assistant"):
        messages = (*_turns(row, "prompt", "user"), *messages)
    if messages[-1].role != "assistant":
        raise row.wrong(
            column, f"a last turn by {messages[-1].role}", "a last turn by assistant", "end with the answer"
        )
    return Example(_with_system(row, messages), _weight(row), _tools(row))


def _tools(row: Row) -> str | None:
    """The tools as the JSON of what a chat template takes; they come as a list, or as JSON of one."""
    given = row.values.get("tools")
    try:
        tools: Any = json.loads(given) if isinstance(given, str) and given.strip() else given
    except ValueError as error:
        raise row.wrong("tools", "text that is no JSON", "a list of tools, or JSON of one", "mend it") from error
    if not tools:
        return None
    tools = [_wrapped(row, f"tools[{at}]", one) for at, one in enumerate(tools if isinstance(tools, list) else [tools])]
    return json.dumps(tools, ensure_ascii=False)


def _wrapped(row: Row, place: str, value: Any) -> dict[str, Any]:
    """A function, or a call of one, as OpenAI and the chat templates write it."""
    inner = value.get("function", value) if isinstance(value, dict) else None
    if not (isinstance(inner, dict) and isinstance(inner.get("name"), str) and inner["name"].strip()):
        raise row.wrong(place, repr(value)[:60], "an object with the `name` of a function", "mend this row")
    return value if "function" in value else {"type": "function", "function": value}


def _calls(row: Row, place: str, given: Any) -> list[dict[str, Any]]:
    """The calls of a turn; arguments that are JSON in text, as OpenAI has them, become what they say."""
    calls = list[dict[str, Any]]()
    for at, one in enumerate(given if isinstance(given, list) else [given]):
        call = _wrapped(row, f"{place}.tool_calls[{at}]", one)
        told = call["function"].get("arguments")
        try:
            told = json.loads(told) if isinstance(told, str) and told.strip() else told or {}
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise row.wrong(f"{place}.tool_calls[{at}]", "arguments that are no JSON object", "an object", "mend it")
        calls.append({**call, "function": {**call["function"], "arguments": told}})
    return calls


def _weight(row: Row) -> float:
    value = row.values.get("weight")
    if value is None:
        return 1.0
    try:
        weight = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise row.wrong("weight", repr(value), "a finite number, 0 or more", "mend it")
    return weight


def _with_system(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages behind the row's own system message; two system messages contradict each other."""
    system = row.values.get("system")
    if system is None or system == "":
        return messages
    if messages[0].role == "system":
        raise row.wrong("system", "a system message here and in the turns", "one", "drop one of them")
    return (Message("system", _content(row, "system", system)), *messages)


def _turns(row: Row, column: str, speaker: Role) -> tuple[Message, ...]:
    """The column as messages; plain text is one turn of `speaker`."""
    value = row.values[column]
    if isinstance(value, str):
        return (Message(speaker, _content(row, column, value)),)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise row.wrong(column, f"a {type(value).__name__}", "text or a list of messages", "mend this row")
    if not value:
        raise row.wrong(column, "no messages", "at least one", "mend or drop this row")
    return tuple(_message(row, f"{column}[{index}]", item) for index, item in enumerate(value))


def _message(row: Row, place: str, item: object) -> Message:
    calls = isinstance(item, dict) and item.get("role") == "assistant" and item.get("tool_calls")
    if not isinstance(item, dict) or "role" not in item or ("content" not in item and not calls):
        seen = f"the keys {', '.join(map(str, item))}" if isinstance(item, dict) else f"a {type(item).__name__}"
        raise row.wrong(place, seen, "a message with `role` and `content`", "mend this row")
    role = item["role"]
    if role not in get_args(Role):
        raise row.wrong(place, f"the role {role!r}", " | ".join(get_args(Role)), "rename the role or drop the row")
    if role == "system" and not place.endswith("[0]"):
        raise row.wrong(place, "a system message in the middle", "one at the start", "move or drop it")
    content = "" if calls and item.get("content") is None else item["content"]
    text = _content(row, place, content, may_be_empty=bool(calls) or role in ("system", "tool"))
    if not calls and role != "tool":
        return Message(role, text)
    fields = {name: item[name] for name in ("name", "tool_call_id") if role == "tool" and item.get(name) is not None}
    fields |= {"tool_calls": _calls(row, place, calls)} if calls else {}
    return ToolTurn(role, text, json.dumps(fields, ensure_ascii=False))


def _content(row: Row, place: str, value: object, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise row.wrong(place, f"content of type {type(value).__name__}", "text", "give plain text")
    if not may_be_empty and not value.strip():
        raise row.wrong(place, "empty text", "some text", "fill it in or drop this row")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can spell half a surrogate pair, which no tokenizer takes.
        raise row.wrong(place, f"half a character (\\u{ord(value[error.start]):x})", "whole text", "mend it") from error
    return value


def _label(row: Row, column: str) -> str | None:
    value = row.values.get(column)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise row.wrong(column, f"a {type(value).__name__}", "text", "give text")
    return value
