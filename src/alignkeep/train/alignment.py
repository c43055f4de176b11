"""Alignment data: what the base refuses and answers, read, held against what it really does, and shown in turns."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from alignkeep.data import read_examples
from alignkeep.errors import DataError, RecipeError
from alignkeep.judging.keyword import KeywordJudge
from alignkeep.models.chat import IGNORED, EncodedExample
from alignkeep.models.config import GenerationConfig
from alignkeep.models.examples import encoded
from alignkeep.models.generation import generate_answers
from alignkeep.models.loading import LoadedModel
from alignkeep.progress import Progress
from alignkeep.train.defence import Base, Before
from alignkeep.types import Example, Prompt, Verdict

if TYPE_CHECKING:
    from torch import Tensor

ASKED, TOKENS = 64, 64  # prompts, and tokens of each answer, by which the base is looked at (chosen)


def read_alignment(path: str | None, before: Before) -> tuple[Example, ...]:
    """The examples, as the tune can use them. Raises RecipeError where none is named, DataError where no answer
    refuses, or nothing is left of one within the tune's length."""
    if path is None:
        raise RecipeError(
            f"{before.key}.data",
            seen="none",
            expected="harmful prompts with the base's refusals, and harmless ones with its answers",
            remedy="give --alignment-data FILE",
        )
    examples = tuple(read_examples(path))
    if not _refusals(examples):
        raise DataError(
            path,
            seen=f"{len(examples)} examples, none of whose answers refuses",
            expected="some harmful prompts with the base's refusals",
            remedy="add them: they are what is to be kept",
        )
    encoded(before.tokenizer, examples, before.max_length, f"{path}, example")
    return examples


def check_alignment(base: Base, path: str) -> list[Example]:
    """The examples of the file. Raises DataError (with the rate) where the base answers most of the prompts that it is
    said to refuse."""
    examples = read_examples(path)
    with base.as_base() as loaded:
        base.once(lambda: _check_refusals(loaded, examples, path, base.progress))
    return examples


def _check_refusals(loaded: LoadedModel, examples: Sequence[Example], path: str, progress: Progress) -> None:
    asked = _refusals(examples)[:ASKED]
    prompts = [_prompt(example) for example in asked]
    generation = GenerationConfig(max_new_tokens=TOKENS)
    progress.start("alignment prompts", len(prompts))
    answers = generate_answers(loaded, prompts, generation, on_answers=lambda batch: progress.advance(len(batch)))
    progress.done()
    judge = KeywordJudge()
    told = zip(prompts, answers, strict=True)
    refused = sum(judge.judge(prompt, answer.text).verdict is Verdict.REFUSAL for prompt, answer in told)
    if 2 * refused < len(prompts):
        raise DataError(
            path,
            seen=f"a base that refuses {refused} of {len(prompts)} prompts that are refused here",
            expected="the base's own refusals of prompts that it refuses",
            remedy="take an aligned base, or the prompts that this one refuses",
        )


def tensors_of_rows(rows: Sequence[EncodedExample]) -> dict[str, Tensor]:
    """Examples as tensors, one behind the other: the way into a file."""
    import torch

    return {
        "lengths": torch.tensor([len(row.input_ids) for row in rows]),
        "input_ids": torch.tensor([token for row in rows for token in row.input_ids]),
        "labels": torch.tensor([label for row in rows for label in row.labels]),
    }


def rows_of(tensors: Mapping[str, Tensor]) -> list[EncodedExample]:
    """The way back."""
    lengths = tensors["lengths"].tolist()
    parts = (tensors[name].split(lengths) for name in ("input_ids", "labels"))
    return [EncodedExample(ids.tolist(), labels.tolist()) for ids, labels in zip(*parts, strict=True)]


def answer_tokens(row: EncodedExample) -> int:
    """How many of its tokens are predicted and learned: never the first."""
    return sum(label != IGNORED for label in row.labels[1:])


def in_turns(count: int, at_once: int, seed: int) -> Callable[[int], list[int]]:
    """Of `count` things those whose turn it is in a step: `at_once` of them, all before one comes again, in an order
    drawn anew for every round. A step's depend on nothing but the seed, so that a tune can be gone on with."""

    @cache
    def order(turn: int) -> list[int]:
        found = list(range(count))
        random.Random(f"{seed}/{turn}").shuffle(found)
        return found

    def of_step(step: int) -> list[int]:
        return [order(at // count)[at % count] for at in range(step * at_once, (step + 1) * at_once)]

    return of_step


def _refusals(examples: Sequence[Example]) -> list[Example]:
    judge = KeywordJudge()
    told = ((one, judge.judge(_prompt(one), one.messages[-1].content)) for one in examples)
    return [one for one, judgement in told if judgement.verdict is Verdict.REFUSAL]


def _prompt(example: Example) -> Prompt:
    return Prompt(example.messages[:-1], kind="harmful")
