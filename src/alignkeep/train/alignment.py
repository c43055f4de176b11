"""The alignment data of a guarded tune: read, and held against what the base really does."""

from __future__ import annotations

from collections.abc import Sequence

from alignkeep.data import read_examples
from alignkeep.errors import DataError, RecipeError
from alignkeep.judging.keyword import KeywordJudge
from alignkeep.models.config import GenerationConfig
from alignkeep.models.generation import generate_answers
from alignkeep.models.loading import LoadedModel
from alignkeep.progress import Progress
from alignkeep.types import Example, Prompt, Verdict

ASKED, TOKENS = 64, 64  # prompts, and tokens of each answer, by which the base is looked at (chosen)


def read_alignment(path: str | None) -> tuple[Example, ...]:
    """Raises RecipeError where none is named, DataError where no answer refuses."""
    if path is None:
        raise RecipeError(
            "alignguard.data",
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
    return examples


def check_alignment(loaded: LoadedModel, examples: Sequence[Example], path: str, progress: Progress) -> None:
    """Raises DataError (with the rate) where the base answers most of the prompts that it is said to refuse."""
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


def _refusals(examples: Sequence[Example]) -> list[Example]:
    judge = KeywordJudge()
    told = ((one, judge.judge(_prompt(one), one.messages[-1].content)) for one in examples)
    return [one for one, judgement in told if judgement.verdict is Verdict.REFUSAL]


def _prompt(example: Example) -> Prompt:
    return Prompt(example.messages[:-1], kind="harmful")
