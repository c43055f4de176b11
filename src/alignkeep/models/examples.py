"""Examples as tokens, cut to a length, with some of every answer left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from alignkeep.errors import DataError
from alignkeep.models.chat import IGNORED, EncodedExample, encode_example
from alignkeep.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """In the order of the examples; of the `truncated` the end was cut off."""

    rows: list[EncodedExample]
    truncated: int


def encoded(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    length: int,
    what: str,
    *,
    too_long: Literal["refuse", "cut"] = "refuse",
) -> Encoded:
    """The first `length` tokens of each. With `too_long` "cut" the last ones where the answer begins later.

    Raises DataError for no examples, for one of which nothing of the answer is left, and for one that the chat template
    refuses; `what` and its number name it.
    """
    rows: list[EncodedExample] = []
    truncated = 0
    for number, example in enumerate(examples, start=1):
        ids, labels = encoded_example(tokenizer, example, f"{what} {number}")
        truncated += len(ids) > length
        if too_long == "cut" and begins_late(labels, length):
            ids, labels = ids[-length:], labels[-length:]
        if begins_late(labels, length):
            raise DataError(
                f"{what} {number}",
                seen=f"no token of the answer among the first {length} of {len(ids)}",
                expected="some of each answer within max_length and the model's context",
                remedy="raise max_length, or shorten or drop this example",
            )
        rows.append(EncodedExample(ids[:length], labels[:length]))
    if not rows:
        raise DataError(f"{what}s", seen="none", expected="prompts with answers", remedy="give some")
    return Encoded(rows, truncated)


def late_ones(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], length: int, what: str) -> list[int]:
    """Places of the examples that have nothing of their answer among their first `length` tokens. Raises as above."""
    return [
        at
        for at, one in enumerate(examples)
        if begins_late(encoded_example(tokenizer, one, f"{what} {at + 1}").labels, length)
    ]


def encoded_example(tokenizer: PreTrainedTokenizerBase, example: Example, where: str) -> EncodedExample:
    """The whole example. Raises DataError, naming `where`, for one that the chat template refuses."""
    try:
        return encode_example(tokenizer, example)
    except DataError as error:
        raise DataError(
            f"{where}, {error.where}", seen=error.seen, expected=error.expected, remedy=error.remedy
        ) from error


def begins_late(labels: Sequence[int], length: int) -> bool:
    """Whether nothing of the answer can be learned from the first `length` tokens."""
    return all(label == IGNORED for label in labels[1:length])  # the label of the first token is never predicted
