"""Prompts and examples out of rows: every fault of the data is found here, before any work is spent.

A prompt row holds `prompt` (text, or messages that end with the user's turn) and may hold `system`, `kind`,
`category`, `language` and the one right answer as `expected` or `completion`. An example row holds `prompt` and
`completion`, or `messages` that end with the assistant's turn, and may hold `system` and `weight`. A row to compare
answers on holds `prompt` and `reference`. Other columns are left alone. Plain text is taken as a chat of one question
and one answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast, get_args

from alignkeep.errors import DataError
from alignkeep.rows import Row, fingerprint_data, local_file, read_rows
from alignkeep.types import Example, Kind, Message, Prompt, Reference, Role

__all__ = [
    "Row",
    "fingerprint_data",
    "local_file",
    "read_examples",
    "read_prompts",
    "read_references",
    "read_rows",
]

_REFERENCES = ("reference", "chosen", "completion")


def read_prompts(reference: str, *, kind: Kind | None = None) -> list[Prompt]:
    """One prompt per row, in file order. A `kind` given here holds for all rows, whatever their column says.

    Raises DataError with file and line for a missing column, a wrong type, empty text, an unknown role or kind.
    """
    return [_prompt(row, kind) for row in read_rows(reference)]


def read_examples(reference: str) -> list[Example]:
    """One example per row, in file order; weight 1 where the row has none.

    Every assistant turn is learned, those inside a `prompt` of several turns too. Raises DataError as `read_prompts`
    does, and for weights that are negative, not finite, or all zero.
    """
    examples = [_example(row) for row in read_rows(reference)]
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
    return _example(Row(dict(values), where))


def read_references(reference: str, *, required: bool = True) -> list[Reference]:
    """One prompt with the answer it is compared with per row, in file order: the column `reference`, else `chosen`,
    else `completion`. Other columns are kept for the reward, but for `rejected`.

    Raises DataError as `read_prompts` does, and for a row without such an answer where one is `required`.
    """
    return [_reference(row, required) for row in read_rows(reference)]


def _reference(row: Row, required: bool) -> Reference:
    messages = _asked(row)
    column = next((name for name in _REFERENCES if _has(row, name)), None)
    if column is None and required:
        raise _missing(row, "`prompt` and `reference` (or `chosen`, or `completion`)")
    answer = None if column is None else _turns(row, column, "assistant")[-1].content
    others = {
        name: value for name, value in row.values.items() if name not in ("prompt", "system", "rejected", *_REFERENCES)
    }
    return Reference(messages, answer, others)


def _prompt(row: Row, kind: Kind | None) -> Prompt:
    messages = _asked(row)
    given = _label(row, "kind") or "unknown"
    if given not in get_args(Kind):
        raise _wrong(row, "kind", repr(given), " | ".join(get_args(Kind)), "use one of these")
    return Prompt(
        messages=messages,
        kind=kind or cast(Kind, given),
        category=_label(row, "category"),
        language=_label(row, "language") or "en",
        expected=_expected(row),
    )


def _asked(row: Row) -> tuple[Message, ...]:
    """The chat that the column `prompt` holds, behind the row's system message."""
    messages = _turns(row, "prompt", "user") if _has(row, "prompt") else None
    if messages is None:
        raise _missing(row, "`prompt`")
    if messages[-1].role != "user":
        raise _wrong(row, "prompt", f"a last turn by {messages[-1].role}", "a last turn by user", "drop later turns")
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
    if _has(row, "messages"):
        messages, column = _turns(row, "messages", "assistant"), "messages"
    elif _has(row, "prompt") and _has(row, "completion"):
        messages = (*_turns(row, "prompt", "user"), *_turns(row, "completion", "assistant"))
        column = "completion"
    else:
        raise _missing(row, "`prompt` and `completion`, or `messages`")
    if messages[-1].role != "assistant":
        raise _wrong(
            row, column, f"a last turn by {messages[-1].role}", "a last turn by assistant", "end with the answer"
        )
    return Example(_with_system(row, messages), _weight(row))


def _weight(row: Row) -> float:
    value = row.values.get("weight")
    if value is None:
        return 1.0
    try:
        weight = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise _wrong(row, "weight", repr(value), "a finite number, 0 or more", "mend it")
    return weight


def _with_system(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages behind the row's own system message; two system messages contradict each other."""
    system = row.values.get("system")
    if system is None or system == "":
        return messages
    if messages[0].role == "system":
        raise _wrong(row, "system", "a system message here and in the turns", "one", "drop one of them")
    return (Message("system", _content(row, "system", system)), *messages)


def _turns(row: Row, column: str, speaker: Role) -> tuple[Message, ...]:
    """The column as messages; plain text is one turn of `speaker`."""
    value = row.values[column]
    if isinstance(value, str):
        return (Message(speaker, _content(row, column, value)),)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise _wrong(row, column, f"a {type(value).__name__}", "text or a list of messages", "mend this row")
    if not value:
        raise _wrong(row, column, "no messages", "at least one", "mend or drop this row")
    return tuple(_message(row, f"{column}[{index}]", item) for index, item in enumerate(value))


def _message(row: Row, place: str, item: object) -> Message:
    if not isinstance(item, dict) or "role" not in item or "content" not in item:
        seen = f"the keys {', '.join(map(str, item))}" if isinstance(item, dict) else f"a {type(item).__name__}"
        raise _wrong(row, place, seen, "a message with `role` and `content`", "mend this row")
    role = item["role"]
    if role not in get_args(Role):
        raise _wrong(row, place, f"the role {role!r}", " | ".join(get_args(Role)), "rename the role or drop the row")
    if role == "system" and not place.endswith("[0]"):
        raise _wrong(row, place, "a system message in the middle", "one at the start", "move or drop it")
    return Message(role, _content(row, place, item["content"], may_be_empty=role == "system"))


def _content(row: Row, place: str, value: object, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise _wrong(row, place, f"content of type {type(value).__name__}", "text", "give plain text")
    if not may_be_empty and not value.strip():
        raise _wrong(row, place, "empty text", "some text", "fill it in or drop this row")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can spell half a surrogate pair, which no tokenizer takes.
        raise _wrong(
            row, place, f"half a character (\\u{ord(value[error.start]):x})", "whole text", "mend it"
        ) from error
    return value


def _label(row: Row, column: str) -> str | None:
    value = row.values.get(column)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _wrong(row, column, f"a {type(value).__name__}", "text", "give text")
    return value


def _has(row: Row, column: str) -> bool:
    return row.values.get(column) is not None


def _missing(row: Row, expected: str) -> DataError:
    seen = ", ".join(f"{name} (empty)" if value is None else str(name) for name, value in row.values.items())
    return DataError(
        row.where, seen=f"the columns {seen or 'none'}", expected=expected, remedy="rename or add the column"
    )


def _wrong(row: Row, place: str, seen: str, expected: str, remedy: str) -> DataError:
    return DataError(f"{row.where}: {place}", seen=seen, expected=expected, remedy=remedy)
