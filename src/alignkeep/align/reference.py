"""The reference answer of a row of TRL's: checked, as tokens, and in the form in which a completion is scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignkeep.errors import DataError
from alignkeep.models.chat import IGNORED, encode_example
from alignkeep.types import Example, Message

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


def reference_tokens(tokenizer: Any, prompt: Any, reference: Any) -> list[int]:
    """The tokens of the answer up to and with its end, as the chat template writes them; behind a plain text prompt the
    text and the end token."""
    text = answer_text(reference)
    if isinstance(prompt, str):
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    labels = encode_example(tokenizer, Example((*as_messages(prompt), Message("assistant", text)))).labels
    return labels[next(at for at in reversed(range(len(labels))) if labels[at] == IGNORED) + 1 :]


def check_references(rows: Any) -> None:
    """Raises DataError for data without the column, or with rows in which it is empty."""
    names: Sequence[str] | None = getattr(rows, "column_names", None)
    if names is not None and COLUMN not in names:
        raise DataError(
            "GRAOTrainer, train_dataset",
            seen=f"the columns {', '.join(names)}",
            expected=f"`{COLUMN}`, the answer that each prompt's samples are compared with",
            remedy="add it, or use GRPO, which needs none",
        )
    if names is None or not hasattr(rows, "__len__"):
        return  # a stream is read once
    empty = [number for number, one in enumerate(rows[COLUMN], start=1) if not one or not answer_text(one).strip()]
    if empty:
        raise DataError(
            f"GRAOTrainer, train_dataset, row {empty[0]}",
            seen=f"an empty `{COLUMN}` ({len(empty)} rows)",
            expected="an answer",
            remedy="fill it in or drop the row",
        )
