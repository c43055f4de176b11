"""Examples as the rows a trainer reads: tokens, labels, and one weight per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alignkeep.errors import DataError, ShapeError
from alignkeep.models.chat import IGNORED, encode_example
from alignkeep.types import Example

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase
    from trl.trainer.sft_config import SFTConfig


@dataclass
class EncodedRows:
    """The kept examples in their order; `dropped` had weight 0, of the `truncated` a part of the answer was cut off."""

    input_ids: list[list[int]] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    dropped: int = 0
    truncated: int = 0

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
) -> EncodedRows:
    """Encode the examples of positive weight, cut to `max_length` tokens.

    Raises DataError where a cut leaves nothing of an answer to learn from, ShapeError for a token beyond the model's
    `vocabulary`.
    """
    rows, lost, longest = EncodedRows(), [], 0
    for number, (example, weight) in enumerate(zip(examples, weights, strict=True), start=1):
        if weight == 0:
            rows.dropped += 1
            continue
        ids, labels = encode_example(tokenizer, example)
        longest = max(longest, len(ids))
        if max(ids) >= vocabulary:
            raise ShapeError(
                f"{where}, example {number}",
                seen=f"token {max(ids)} in a model of {vocabulary} embeddings",
                expected="a tokenizer that fits the model",
                remedy="use the tokenizer the model was trained with, or resize the embeddings",
            )
        kept = labels[:max_length]
        # The label of the first token is never predicted.
        if all(label == IGNORED for label in kept[1:]):
            lost.append(number)
        rows.truncated += any(label != IGNORED for label in labels[max_length:])
        rows.input_ids.append(ids[:max_length])
        rows.labels.append(kept)
        rows.weights.append(weight)
    if lost:
        raise DataError(
            where,
            seen=f"{len(lost)} of {len(rows.weights)} examples with no answer token within max_length={max_length}"
            f" (the first is example {lost[0]})",
            expected="some of each answer within max_length and the model's context",
            remedy=f"raise max_length (the longest example has {longest} tokens), or shorten or drop those examples",
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
