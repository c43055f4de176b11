"""Answers of a model to many prompts: greedy, batched, each the same as if it had been asked for alone.

The longest prompts come first, so that a lack of memory shows at once, and prompts of like length share a batch, padded
and masked. Where the model allows it an answer that ends makes room for the next prompt (models/decoding.py); others
go through transformers' `generate`, batch after batch, as far as they are right on one (models/batching.py). In float32
the answers do not depend on the batch size, up to rounding (the tests hold 8 = 8 x 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkeep.checkpoint.files import says_no_memory
from alignkeep.errors import DataError, MachineError
from alignkeep.models.batching import Batching, batching, generated, without_router_loss
from alignkeep.models.chat import encode_prompt, render
from alignkeep.models.config import GenerationConfig
from alignkeep.models.loading import LoadedModel
from alignkeep.models.thinking import ThoughtMarks, read_answer
from alignkeep.types import Message, Prompt

if TYPE_CHECKING:
    from alignkeep.models.decoding import Row

OnAnswers = Callable[[list[tuple[int, str, bool]]], None]


class Answer(NamedTuple):
    """What the model said, without special tokens; `truncated` if it had not ended when its room was used up."""

    text: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class _Asked:
    index: int
    ids: list[int]
    room: int  # new tokens it may have; 0 if it has said all
    said: tuple[int, ...] = ()  # a thought, whose tokens are the last ones of `ids`

    def read(self, tokenizer: Any, tokens: list[int], ends: list[int]) -> tuple[str, bool]:
        """The text of the thought and of what follows it, and whether it was cut short."""
        prompt = self.ids[: len(self.ids) - len(self.said)]
        return read_answer(tokenizer, prompt, [*self.said, *tokens], ends)


class Said(NamedTuple):
    """New tokens of one row: up to an end token, or as many as it had room for."""

    row: int  # the index of its prompt
    tokens: list[int]


def generate_answers(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    config: GenerationConfig | None = None,
    *,
    on_answers: OnAnswers | None = None,
    template: Mapping[str, Any] | None = None,
) -> list[Answer]:
    """One answer per prompt, in the order of the prompts. A prefill is not part of its answer. `template` are further
    arguments of the chat template.

    After each batch `on_answers` gets its (index, text, truncated), in an order of its own. An answer has at most
    `max_new_tokens`, fewer where the prompt leaves less of the context. Raises DataError for a prompt that leaves none,
    before anything is generated, and MachineError if memory does not even hold one prompt.
    """
    config = config or GenerationConfig()
    ends = stop_ids(loaded)
    asked = _encode(loaded, prompts, config.max_new_tokens, template)
    if config.thinking_tokens is not None:
        asked = _after_thoughts(loaded, asked, config, ends)
    rows = {one.index: one for one in asked}
    over = [Said(one.index, []) for one in asked if not one.room]
    answers: dict[int, Answer] = {}
    for batch in chain([over] if over else [], _said(loaded, [one for one in asked if one.room], config, ends)):
        read = [(index, *rows[index].read(loaded.tokenizer, tokens, ends)) for index, tokens in batch]
        answers.update((index, Answer(text, truncated)) for index, text, truncated in read)
        if on_answers is not None:
            on_answers(read)
    return [answers[index] for index in range(len(prompts))]


def _after_thoughts(
    loaded: LoadedModel, asked: list[_Asked], config: GenerationConfig, ends: list[int]
) -> list[_Asked]:
    """The prompts with their thoughts behind them, each at most `thinking_tokens` long and closed: what an answer
    follows. A row that ends without a thought has said all; one that begins with its answer goes on with it."""
    marks, context = ThoughtMarks.of(loaded.tokenizer), context_length(loaded)
    most = config.thinking_tokens or 0

    def left(ids: Sequence[int]) -> int:
        return most + config.max_new_tokens if context is None else context - len(ids)

    first = [replace(one, room=min(most, left(one.ids) - len(marks.closing) - 1)) for one in asked]
    thinking = [one for one in first if one.room > 0]
    found = {one.row: one.tokens for batch in _said(loaded, thinking, config, [*ends, marks.end]) for one in batch}
    after = []
    for one in asked:
        tokens = found.get(one.index, [])
        thought = tokens[:-1] if tokens[-1:] == [marks.end] else tokens
        was_open = marks.is_open([*one.ids, *thought])
        if not was_open:  # what it said is the beginning of its answer
            tokens = tokens[: config.max_new_tokens]
        elif thought is tokens and not set(tokens) & set(ends):
            tokens = [*tokens, *marks.closing]
        ids = [*one.ids, *tokens]
        room = min(config.max_new_tokens - (0 if was_open else len(tokens)), left(ids))
        after.append(_Asked(one.index, ids, 0 if set(tokens) & set(ends) else max(0, room), tuple(tokens)))
    return sorted(after, key=lambda one: (-len(one.ids), one.index))


def _said(loaded: LoadedModel, asked: list[_Asked], config: GenerationConfig, ends: list[int]) -> Iterator[list[Said]]:
    """What each row says, by the engine that was chosen; batches as they are done."""
    if not asked:
        return iter(())
    if config.backend == "vllm":
        from alignkeep.models.vllm import answer_batches

        rows = [(one.index, one.ids, one.room) for one in asked]
        return ([Said(*one) for one in batch] for batch in answer_batches(loaded, rows, ends, config.vllm))
    how = batching(loaded.model)
    if how is Batching.ROWS:
        return _decoded(loaded, asked, config.batch_size, ends)
    return _answer_batches(loaded, asked, config.batch_size, how, ends)


def stop_ids(loaded: LoadedModel) -> list[int]:
    """Tokens that end an answer: the tokenizer's and the model's end tokens, and the template's end of a turn.

    The last matters where a chat template was added to a base model: nothing else would end its answers.
    """
    tokenizer = loaded.tokenizer
    found = set(_turn_end(tokenizer))
    for settings in (tokenizer, loaded.model.generation_config, loaded.model.config):
        ids = getattr(settings, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or [])
    return sorted(found)


def context_length(loaded: LoadedModel) -> int | None:
    """How many tokens the model can hold, prompt and answer together; None if its config does not say."""
    config = loaded.model.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def _turn_end(tokenizer: Any) -> list[int]:
    """The special token that follows the words of an assistant's turn in the template, if one does."""
    words = "answer"
    try:
        chat = [Message("user", "question"), Message("assistant", words)]
        tail = render(tokenizer, chat, generation_prompt=False).rpartition(words)[2]
    except DataError:
        return []
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    first = tokenizer(tail, add_special_tokens=False)["input_ids"][:1]
    return [token for token in first if token in special and token != tokenizer.unk_token_id]


def _encode(
    loaded: LoadedModel, prompts: Sequence[Prompt], max_new_tokens: int, template: Mapping[str, Any] | None
) -> list[_Asked]:
    """Prompts as tokens, longest first."""
    context = context_length(loaded)
    asked = []
    for index, prompt in enumerate(prompts):
        ids = encode_prompt(loaded.tokenizer, prompt, template)
        if context is not None and len(ids) >= context:
            raise DataError(
                f"prompt {index}",
                seen=f"{len(ids)} tokens ({len(prompt.text)} characters in the last turn)",
                expected=f"fewer than the model's context of {context} tokens, so that an answer fits behind it",
                remedy="shorten or drop this prompt",
            )
        if not ids:
            raise DataError(
                f"prompt {index}", seen="no tokens", expected="some", remedy="check the prompt and the chat template"
            )
        room = max_new_tokens if context is None else min(max_new_tokens, context - len(ids))
        asked.append(_Asked(index, ids, room))
    return sorted(asked, key=lambda one: (-len(one.ids), one.index))


def _decoded(loaded: LoadedModel, asked: list[_Asked], size: int, ends: list[int]) -> Iterator[list[Said]]:
    """As many answers at a time as a batch has; where memory runs out the batch is halved, for good."""
    from alignkeep.models.decoding import Decoder, Row

    most = size
    rows = [Row(one.index, one.ids, one.room) for one in asked]
    decoder = Decoder(loaded.model, rows, ends, **without_router_loss(loaded.model))
    done: list[Said] = []
    while decoder.active or decoder.waiting:
        try:
            for row in decoder.answers(size):
                done.append(Said(row.index, row.said))
                if len(done) >= most:
                    yield done
                    done = []
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if len(decoder.active) == 1:
                raise _no_room(decoder.active[0]) from error
        if decoder.active:
            size = max(1, decoder.put_back() // 2)
            _free_memory()
    if done:
        yield done


def _answer_batches(
    loaded: LoadedModel, asked: list[_Asked], size: int, how: Batching, ends: list[int]
) -> Iterator[list[Said]]:
    """Batch after batch; where memory runs out the batch is halved, for good, and tried again."""
    size, start = 1 if how is Batching.SINGLE else size, 0
    while start < len(asked):
        # Prompts near the end of the context have less room. They share a batch only with their like, so that none is
        # cut short by a neighbour and none runs past the context.
        room, length = asked[start].room, len(asked[start].ids)
        fits = lambda one: one.room == room and (how is Batching.PADDED or len(one.ids) == length)  # noqa: B023, E731
        batch = list(takewhile(fits, asked[start : start + size]))
        answers = _try_batch(loaded, batch, ends)
        if answers is None:
            size = max(1, len(batch) // 2)
            continue
        yield answers
        start += len(batch)


def _try_batch(loaded: LoadedModel, batch: list[_Asked], ends: list[int]) -> list[Said] | None:
    """The answers, or None if memory ran out and the batch can be halved."""
    try:
        return _answer_batch(loaded, batch, ends)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        if len(batch) == 1:
            raise _no_room(batch[0]) from error
    _free_memory()  # behind the handler, where the exception no longer holds the tensors that are to be freed
    return None


def _no_room(one: _Asked | Row) -> MachineError:
    return MachineError(
        f"prompt {one.index}",
        seen="out of memory with a batch of one",
        expected=f"room for {len(one.ids)} + {one.room} tokens",
        remedy="lower max_new_tokens, use --dtype bfloat16 or a smaller model",
    )


def _free_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _out_of_memory(error: BaseException) -> bool:
    import torch

    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or says_no_memory(error)


def _answer_batch(loaded: LoadedModel, batch: list[_Asked], ends: list[int]) -> list[Said]:
    tokenizer, prompts = loaded.tokenizer, [one.ids for one in batch]
    padding = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else (ends or [0])[0]
    output = generated(loaded.model, prompts, batch[0].room, ends, padding)
    rows = output[:, max(map(len, prompts)) :].tolist()
    return [Said(one.index, _up_to_end(row, ends)) for one, row in zip(batch, rows, strict=True)]


def _up_to_end(tokens: list[int], ends: list[int]) -> list[int]:
    """The tokens up to and with the first that ends the row."""
    stop = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: stop + 1]
