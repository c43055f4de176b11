"""Examples as tokens, cut to a length, with some of every answer left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from alignkeep.errors import DataError
from alignkeep.models.chat import IGNORED, EncodedExample, encode_example
from alignkeep.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """In the order of the examples; of the `truncated` the end was cut off."""

    rows: list[EncodedExample]
    truncated: int


def encoded(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], length: int, what: str) -> Encoded:
    """The first `length` tokens of each.

    Raises DataError for no examples, for one of which nothing of the answer is left, and for one that the chat template
    refuses; `what` and its number name it.
    """
    rows: list[EncodedExample] = []
    truncated = 0
    for number, example in enumerate(examples, start=1):
        try:
            ids, labels = encode_example(tokenizer, example)
        except DataError as error:
            raise DataError(
                f"{what} {number}, {error.where}", seen=error.seen, expected=error.expected, remedy=error.remedy
            ) from error
        # The label of the first token is never predicted.
        if all(label == IGNORED for label in labels[1:length]):
            raise DataError(
                f"{what} {number}",
                seen=f"no token of the answer among the first {length} of {len(ids)}",
                expected="some of each answer within max_length and the model's context",
                remedy="raise max_length, or shorten or drop this example",
            )
        truncated += len(ids) > length
        rows.append(EncodedExample(ids[:length], labels[:length]))
    if not rows:
        raise DataError(f"{what}s", seen="none", expected="prompts with answers", remedy="give some")
    return Encoded(rows, truncated)
