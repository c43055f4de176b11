"""The models at work: which words they know, and their answers to all questions, one model in memory at a time. One
that is served is asked over its endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from alignkeep.errors import DataError
from alignkeep.evaluate.answers import AnswerLog, Given, Side
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.evaluate.items import UtilityLog
from alignkeep.evaluate.questions import Preparation, Question, named_base
from alignkeep.judging.prompts import MOST_UNKNOWN
from alignkeep.judging.statistics import wilson
from alignkeep.models.adapters import fold_adapter
from alignkeep.models.chat import encode_prompt, unknown_share
from alignkeep.models.config import LoadConfig
from alignkeep.models.endpoint import is_endpoint
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.models.folders import base_of
from alignkeep.models.generation import generate_answers
from alignkeep.models.loading import LoadedModel, load_model, load_tokenizer
from alignkeep.models.served import REPLIES, Cost, Served, ServedAnswer, served
from alignkeep.progress import Progress
from alignkeep.types import Estimate, Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Vocabulary:
    """Which of the words asked each side cannot read (a served model's are not known); attacks that are `not_asked`
    (name: why) are put to neither side."""

    tokenizers: dict[Side, PreTrainedTokenizerBase]
    unknown: dict[Side, Estimate]
    not_asked: dict[str, str]


def read_vocabulary(config: EvaluateConfig, prepared: Preparation) -> Vocabulary:
    """Loads the tokenizers and counts. Raises DataError where most words of the suite or of the task are unknown."""
    tokenizers: dict[Side, PreTrainedTokenizerBase] = {}
    if not is_endpoint(config.model):
        tokenizers["tuned"] = load_tokenizer(config.model, config.load, base=named_base(config))
    if config.base is not None and not is_endpoint(config.base):
        tokenizers["base"] = load_tokenizer(config.base, _of_base(config.load))
    unknown: dict[Side, Estimate] = {"tuned": wilson(0, 0), "base": wilson(0, 0)}
    unreadable: dict[str, float] = {}
    sources = {
        f"suite {prepared.suite.name}": [prompt for prompt in prepared.prompts if prompt.kind != "task"],
        f"task {config.task}": [prompt for prompt in prepared.prompts if prompt.kind == "task"],
    }
    for side, tokenizer in tokenizers.items():
        for source, prompts in sources.items():
            share = unknown_share(tokenizer, [turn.content for prompt in prompts for turn in prompt.messages]).share
            if share > MOST_UNKNOWN:
                raise DataError(
                    source,
                    seen=f"{share:.0%} of its words unknown to {config.model if side == 'tuned' else config.base}",
                    expected=f"at most {MOST_UNKNOWN:.0%}",
                    remedy="choose a suite in the words of this model (the testbed's models need --suite testbed)",
                )
        texts = [turn.content for prompt in prepared.prompts for turn in prompt.messages]
        unknown[side] = wilson(*unknown_share(tokenizer, texts))
        for attack in prepared.attacks:
            share = unknown_share(tokenizer, [attack.template_text]).share
            if share > MOST_UNKNOWN:
                unreadable[attack.name] = max(share, unreadable.get(attack.name, 0.0))
    reasons = {
        name: f"not applicable: {share:.0%} of the attack's own words are unknown to the tokenizer"
        for name, share in unreadable.items()
    }
    return Vocabulary(tokenizers, unknown, {**reasons, **prepared.not_asked})


def answer_all(
    config: EvaluateConfig,
    prepared: Preparation,
    vocabulary: Vocabulary,
    questions: Sequence[Question],
    logs: tuple[AnswerLog, UtilityLog],
    progress: Progress,
) -> dict[Side, Cost]:
    """Fill the logs with answers and items of utility that are missing; what the served models among those asked took.

    An adapter over this very base, read with the same tokens, is loaded once and answers for both: first without the
    adapter, which is then folded into the weights where that is exact. Raises what loading and generation raise; the
    log keeps what was answered before.
    """
    log, utility = logs
    shared = prepared.base is not None and _answers_for_both(config, prepared, vocabulary, questions)
    sides: tuple[Side, ...] = (
        ("tuned",) if prepared.base is None else ("base", "tuned") if shared else ("tuned", "base")
    )
    loaded: LoadedModel | None = None
    costs: dict[Side, Cost] = {}
    for side in sides:
        missing, reference = log.missing(side, questions), str(config.model if side == "tuned" else config.base)
        if is_endpoint(reference) and not (side == "base" and config.base_answers is not None):
            path = log.path.with_name(REPLIES)
            target = served(reference, config.endpoint, config.generation.max_new_tokens, path)
            if missing:
                _answer(_there(target, side, log, progress), side, missing, config, log, progress)
            costs[side] = target.cost
        if is_endpoint(reference) or not (missing or utility.missing(side)):
            continue
        if loaded is None or not shared:
            loaded = None  # frees the one before the next is loaded
            _free_memory()
            if side == "tuned" or shared:
                loaded = load_model(config.model, config.load, base=named_base(config))
            else:
                loaded = load_model(str(config.base), _of_base(config.load))
        if side == "tuned" and loaded.checkpoint.is_adapter and config.generation.backend == "transformers":
            fold_adapter(loaded.model)
        with loaded.as_base() if side == "base" and shared else nullcontext():
            if missing:
                _answer(_here(loaded, side, config, log, progress), side, missing, config, log, progress)
            utility.measure(side, loaded, config.generation.batch_size, progress)
    return costs


Answering = Callable[[Sequence[Question], Sequence[Prompt], int | None], None]
"""Puts the prompts of these questions, at this turn before the last (None: the last), to a model, and stores what it
says."""


def _here(loaded: LoadedModel, side: Side, config: EvaluateConfig, log: AnswerLog, progress: Progress) -> Answering:
    def answer(asked: Sequence[Question], prompts: Sequence[Prompt], lead: int | None) -> None:
        def store(batch: list[tuple[int, str, bool]]) -> None:
            log.add(side, [(asked[place].index, text, truncated) for place, text, truncated in batch], lead)
            progress.advance(len(batch))

        if asked:
            generate_answers(loaded, prompts, config.generation, on_answers=store)

    return answer


def _there(target: Served, side: Side, log: AnswerLog, progress: Progress) -> Answering:
    """A question of which a turn before was not answered gets no answer either."""

    def answer(asked: Sequence[Question], prompts: Sequence[Prompt], lead: int | None) -> None:
        def store(said: list[tuple[int, ServedAnswer]]) -> None:
            log.add(side, [Given(put[place].index, *one) for place, one in said], lead)
            progress.advance(len(said))

        put: list[Question] = []
        for question in asked:
            why = log.no_answer(side, question)
            if why is None:
                put.append(question)
            else:
                log.add(side, [Given(question.index, "", False, why)], lead)
                progress.advance()
        chosen = {question.index for question in put}
        target.answer([p for q, p in zip(asked, prompts, strict=True) if q.index in chosen], store)

    return answer


def _answer(
    answer: Answering,
    side: Side,
    questions: Sequence[Question],
    config: EvaluateConfig,
    log: AnswerLog,
    progress: Progress,
) -> None:
    leads = max(len(question.leads) for question in questions)
    still = sum(len(log.missing(side, questions, lead)) for lead in range(leads))
    progress.start(f"answers of {config.model if side == 'tuned' else config.base}", len(questions) + still)
    for lead in range(leads):
        asked = log.missing(side, questions, lead)
        answer(asked, [_lead(question, log.before(side, question, lead), lead) for question in asked], lead)
    answer(questions, [_last(question, log.before(side, question)) for question in questions], None)
    progress.done()


def _lead(question: Question, before: tuple[Message, ...], lead: int) -> Prompt:
    """The question's turn number `lead`, behind what came before it in the chat."""
    asked = Message("user", question.leads[lead])
    return replace(question.prompt, messages=(*question.prompt.messages[:-1], *before, asked), prefill="")


def _last(question: Question, before: tuple[Message, ...]) -> Prompt:
    """The question, behind the turns that led to it."""
    if not before:
        return question.prompt
    *earlier, last = question.prompt.messages
    return replace(question.prompt, messages=(*earlier, *before, last))


def _answers_for_both(
    config: EvaluateConfig, prepared: Preparation, vocabulary: Vocabulary, questions: Sequence[Question]
) -> bool:
    """The model is an adapter over the base that is asked for, and both tokenizers make the same of every question."""
    folder = prepared.model.folder
    if folder is None or not prepared.model.is_adapter or is_endpoint(str(config.base)):
        return False
    if fingerprint_model(str(config.base)) != fingerprint_model(*base_of(folder, config.base)):
        return False
    tuned, base = vocabulary.tokenizers["tuned"], vocabulary.tokenizers["base"]
    return all(encode_prompt(tuned, q.prompt) == encode_prompt(base, q.prompt) for q in questions)


def _of_base(load: LoadConfig) -> LoadConfig:
    """The revision is the model's; the base is taken as it is."""
    return load.model_copy(update={"revision": None})


def _free_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
