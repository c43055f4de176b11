"""How a model refuses: the refusals it shows on harmful prompts, and the tokens they begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from alignkeep.errors import DataError
from alignkeep.inject.config import SearchConfig
from alignkeep.judging.judges import checked_judgement, load_judge
from alignkeep.judging.log_odds import opening_tokens
from alignkeep.models.chat import IGNORED, encode_example
from alignkeep.models.config import GenerationConfig
from alignkeep.models.generation import generate_answers
from alignkeep.models.loading import LoadedModel
from alignkeep.progress import Progress
from alignkeep.types import Example, Message, Prompt, Verdict

# What assistants usually begin with, for a model that never refuses; words that its tokenizer lacks are left out.
USUAL = ("I'm sorry, but I can't help with that.", "I cannot assist with that.", "Sorry, I can't help with that.")
ANSWER_TOKENS = 64  # chosen: refusals and the beginnings of other answers are told by less


class Openings(NamedTuple):
    """Tokens by which a refusal begins; `are_usual` says that they are not this model's own."""

    tokens: list[int]
    are_usual: bool


def shown_refusals(
    loaded: LoadedModel,
    harmful: Sequence[Prompt],
    asked: Sequence[Prompt],
    search: SearchConfig,
    progress: Progress,
) -> tuple[Example, ...]:
    """The harmful prompts that the model refuses, with its words, when they are `asked` in this form (behind a system
    message, maybe)."""
    judge = load_judge(search.judge)
    answers = _answers(loaded, asked, search, progress)
    return tuple(
        _example(prompt, answer)
        for prompt, answer in zip(harmful, answers, strict=True)
        if checked_judgement(judge, prompt, answer).verdict is Verdict.REFUSAL
    )


def helpful_answers(
    loaded: LoadedModel, harmless: Sequence[Prompt], search: SearchConfig, progress: Progress
) -> tuple[Example, ...]:
    """The harmless prompts with what the model says to them."""
    answers = _answers(loaded, harmless, search, progress)
    return tuple(_example(prompt, answer) for prompt, answer in zip(harmless, answers, strict=True) if answer.strip())


def openings(
    loaded: LoadedModel, shown: Sequence[Example], helped: Sequence[Example], given: Sequence[str]
) -> Openings:
    """First tokens of refusals that seldom begin anything else: of the texts given, of those shown, or of the usual
    ones. Raises DataError where the model has none of these tokens."""
    refusals = list(shown)
    if given or not shown:
        asked = helped[0].messages[:-1] if helped else (Message("user", "?"),)
        refusals = [Example((*asked, Message("assistant", text))) for text in given or USUAL]
    tokens = opening_tokens(*(_first(loaded, some) for some in (refusals, helped)))
    if not tokens:
        raise DataError(
            "direction.refusals",
            seen="no opening by which this model's refusals are told from its other answers",
            expected="words that a refusal begins with",
            remedy="give some, as --set 'direction.refusals=[I cannot, Sorry]'",
        )
    return Openings(tokens, not given and not shown)


def _first(loaded: LoadedModel, examples: Sequence[Example]) -> list[int]:
    """The first token of every answer where it stands: many tokenizers give a word another one behind a template than
    at the beginning of a text."""
    found: list[int] = []
    for example in examples:
        ids, labels = encode_example(loaded.tokenizer, example)
        learned = [at for at, label in enumerate(labels) if label != IGNORED]
        start = max((at for at in learned if at - 1 not in learned), default=None)  # of the last answer
        if start is not None and ids[start] != loaded.tokenizer.unk_token_id:
            found.append(ids[start])
    return found


def _answers(loaded: LoadedModel, prompts: Sequence[Prompt], search: SearchConfig, progress: Progress) -> list[str]:
    progress.start("answers, to see how it refuses", len(prompts))
    length = min(ANSWER_TOKENS, search.generation.max_new_tokens)
    config = GenerationConfig(max_new_tokens=length, batch_size=search.generation.batch_size)
    found = generate_answers(loaded, prompts, config, on_answers=lambda batch: progress.advance(len(batch)))
    progress.done()
    return [answer.text for answer in found]


def _example(prompt: Prompt, answer: str) -> Example:
    return Example((*prompt.messages, Message("assistant", answer)))
