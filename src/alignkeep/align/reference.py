"""The reference answer of a row of TRL's: checked, as tokens, and in the form in which a completion is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkeep.errors import DataError
from alignkeep.models.chat import written_before
from alignkeep.types import Message

COLUMN = "reference"


def answer_text(answer: Any) -> str:
    """The words of an answer, given as text or as messages, of which the last counts."""
    return answer if isinstance(answer, str) else str(answer[-1]["content"])


def as_messages(prompt: Any) -> tuple[Message, ...]:
    """A prompt, given as text or as messages, as a chat."""
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    return tuple(Message(turn["role"], turn["content"]) for turn in prompt)


def as_completion(prompt: Any, reference: Any) -> Any:
    """The reference as TRL hands a sampled answer to a reward function: text behind text, messages behind messages."""
    text = answer_text(reference)
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def reference_tokens(
    tokenizer: Any, prompt: Any, reference: Any, *, ends: Sequence[int] = (), template: Mapping[str, Any] | None = None
) -> list[int]:
    """The tokens of the answer as a sample would have them: what follows the generation prompt, up to and with the
    first of `ends` (the tokenizer's end token where none is given), which is added where the chat template writes none.

    `template` are TRL's arguments to the chat template. Raises DataError where the rendered chat does not go on from
    the generation prompt, or writes something of its own in front of the answer: a reasoning template may open a
    thought that the answer does not have, or write an empty one, and to learn that is to learn not to think.
    """
    text, last = answer_text(reference), tokenizer.eos_token_id
    if isinstance(prompt, str):
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], last]
    options = dict(template or {})
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **options)
    chat = [*prompt, {"role": "assistant", "content": text}]
    whole = tokenizer.apply_chat_template(chat, tokenize=False, **options)
    if not whole.startswith(asked):
        raise _unlike_samples(f"a prompt that ends with {asked[-24:]!r}, after which the reference is not rendered")
    opening = written_before(tokenizer, as_messages(prompt), text, whole[len(asked) :], len(asked), **options)
    if opening:
        raise _unlike_samples(f"{opening!r}, which the template writes in front of the reference")
    before, ids = (tokenizer(one, add_special_tokens=False, verbose=False)["input_ids"] for one in (asked, whole))
    if ids[: len(before)] == before:
        ids = ids[len(before) :]
    else:  # a token across the border, which no sample can have
        ids = tokenizer(whole[len(asked) :], add_special_tokens=False, verbose=False)["input_ids"]
    stop = next((at for at, token in enumerate(ids) if token in (ends or (last,))), None)
    return [*ids, last] if stop is None else ids[: stop + 1]


def _unlike_samples(seen: str) -> DataError:
    return DataError(
        "chat template",
        seen=seen,
        expected="references that go on where the model begins to answer",
        remedy="give the template's arguments (trainer.chat_template_kwargs: {enable_thinking: false}), references "
        "with their thoughts, or a chat_template without such a thought; or use grpo, which needs no references",
    )


def check_references(rows: Any) -> None:
    """Raises DataError for data without the column, or with rows in which it is empty."""
    names: Sequence[str] | None = getattr(rows, "column_names", None)
    if names is not None and COLUMN not in names:
        raise _missing(f"the columns {', '.join(names)}", f"`{COLUMN}`, the answer that a prompt's samples meet")
    if names is None or not hasattr(rows, "__len__"):
        return  # a stream is read once, row by row
    for number, row in enumerate(rows[COLUMN], start=1):
        check_reference({COLUMN: row}, f", row {number}")


def check_reference(row: Mapping[str, Any], where: str = "") -> None:
    """The same of one row."""
    one: Any = row.get(COLUMN)
    if not one:
        raise _missing(f"an empty `{COLUMN}`", "an answer", where)
    if not isinstance(one, str):
        last: Any = one[-1] if isinstance(one, list | tuple) else None
        if not isinstance(last, Mapping) or last.get("role") != "assistant" or not isinstance(last.get("content"), str):
            expected = "an answer: text, or turns that end with one of the assistant whose content is text"
            raise _missing(f"the `{COLUMN}` {repr(one)[:80]}", expected, where)
    if not answer_text(one).strip():
        raise _missing(f"an empty `{COLUMN}`", "an answer", where)


def _missing(seen: str, expected: str, where: str = "") -> DataError:
    return DataError(
        f"GRAOTrainer, the data{where}", seen=seen, expected=expected,
        remedy="mend or drop the row, or use GRPO, which needs none",
    )  # fmt: skip
