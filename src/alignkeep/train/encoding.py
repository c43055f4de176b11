"""Examples as the rows a trainer reads: tokens, labels, and one weight per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from alignkeep.errors import DataError, ShapeError
from alignkeep.models.chat import IGNORED
from alignkeep.models.examples import begins_late, encoded_example
from alignkeep.types import Example

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase
    from trl.trainer.sft_config import SFTConfig


@dataclass
class EncodedRows:
    """The kept examples in their order; `dropped` had weight 0, of the `truncated` a part of the answer was cut off.

    Of the `late` no token of the answer is within the length: they were left out, or their last tokens taken.
    """

    input_ids: list[list[int]] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    dropped: int = 0
    truncated: int = 0
    late: int = 0

    @property
    def tokens(self) -> int:
        return sum(map(len, self.input_ids))


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    weights: Sequence[float],
    *,
    max_length: int,
    vocabulary: int,
    where: str,
    too_long: Literal["drop", "cut", "refuse"] = "drop",
) -> EncodedRows:
    """Encode the examples of positive weight, cut to `max_length` tokens; those whose answer only begins beyond it are
    dropped, or their last tokens taken (cut).

    Raises DataError where nothing is left, where such an example is to be refused, and for one that the chat template
    refuses, ShapeError for a token beyond the model's `vocabulary`.
    """
    rows, late, longest = EncodedRows(), [], 0
    for number, (example, weight) in enumerate(zip(examples, weights, strict=True), start=1):
        if weight == 0:
            rows.dropped += 1
            continue
        ids, labels = encoded_example(tokenizer, example, f"{where}, example {number}")
        longest = max(longest, len(ids))
        if max(ids) >= vocabulary:
            raise ShapeError(
                f"{where}, example {number}",
                seen=f"token {max(ids)} in a model of {vocabulary} embeddings",
                expected="a tokenizer that fits the model",
                remedy="use the tokenizer the model was trained with, or resize the embeddings",
            )
        if begins_late(labels, max_length):
            late.append(number)
            if too_long != "cut":
                continue
            ids, labels = ids[-max_length:], labels[-max_length:]
        rows.truncated += any(label != IGNORED for label in labels[max_length:])
        rows.input_ids.append(ids[:max_length])
        rows.labels.append(labels[:max_length])
        rows.weights.append(weight)
    rows.late = len(late)
    if late and (too_long == "refuse" or not rows.weights):
        raise DataError(
            where,
            seen=f"{len(late)} of {len(examples) - rows.dropped} examples with no answer token within "
            f"max_length={max_length} (the first is example {late[0]})",
            expected="some of each answer within max_length and the model's context",
            remedy=f"raise max_length (the longest example has {longest} tokens), set too_long: cut, or shorten them",
        )
    return rows


def as_dataset(rows: EncodedRows, arguments: SFTConfig, max_length: int) -> Dataset:
    """The rows as TRL's dataset with `loss_weights`, packed here where packing is on (TRL's would lose the column)."""
    import datasets
    from trl.data_utils import pack_dataset

    tokens = datasets.List(datasets.Value("int64"))
    features = {"input_ids": tokens, "labels": tokens, "loss_weights": datasets.List(datasets.Value("float32"))}
    weights = [[weight] * len(ids) for weight, ids in zip(rows.weights, rows.input_ids, strict=True)]
    columns = {"input_ids": rows.input_ids, "labels": rows.labels, "loss_weights": weights}
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    if arguments.shuffle_dataset:
        dataset = dataset.shuffle(seed=arguments.seed)
    if arguments.packing:
        bars = datasets.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            dataset = pack_dataset(dataset, max_length, arguments.packing_strategy)
        finally:
            if bars:
                datasets.enable_progress_bars()
    return dataset
