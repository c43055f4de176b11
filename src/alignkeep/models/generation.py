"""Answers of a model to many prompts: greedy, batched, each the same as if it had been asked for alone.

The longest prompts come first, so that a lack of memory shows at once, and prompts of like length share a batch, padded
and masked. Where the model allows it an answer that ends makes room for the next prompt (models/decoding.py); others
go through transformers' `generate`, batch after batch, as far as they are right on one (models/batching.py). In float32
the answers do not depend on the batch size, up to rounding (the tests hold 8 = 8 x 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkeep.checkpoint.files import says_no_memory
from alignkeep.errors import DataError, MachineError
from alignkeep.models.batching import Batching, batching, generated, without_router_loss
from alignkeep.models.chat import encode_prompt, render
from alignkeep.models.config import GenerationConfig
from alignkeep.models.loading import LoadedModel
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
    room: int  # new tokens it may have


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
    asked = _encode(loaded, prompts, config.max_new_tokens, template)
    if config.backend == "vllm":
        from alignkeep.models.vllm import answer_batches

        batches = answer_batches(loaded, [(one.index, one.ids, one.room) for one in asked], stop_ids(loaded))
    else:
        how = batching(loaded.model)
        if how is Batching.ROWS:
            batches = _decoded(loaded, asked, config.batch_size)
        else:
            batches = _answer_batches(loaded, asked, config.batch_size, how)
    answers: dict[int, Answer] = {}
    for batch in batches:
        answers.update((index, Answer(text, truncated)) for index, text, truncated in batch)
        if on_answers is not None:
            on_answers(batch)
    return [answers[index] for index in range(len(prompts))]


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


def _decoded(loaded: LoadedModel, asked: list[_Asked], size: int) -> Iterator[list[tuple[int, str, bool]]]:
    """As many answers at a time as a batch has; where memory runs out the batch is halved, for good."""
    from alignkeep.models.decoding import Decoder, Row

    ends, most = stop_ids(loaded), size
    rows = [Row(one.index, one.ids, one.room) for one in asked]
    decoder = Decoder(loaded.model, rows, ends, **without_router_loss(loaded.model))
    done: list[tuple[int, str, bool]] = []
    while decoder.active or decoder.waiting:
        try:
            for row in decoder.answers(size):
                done.append((row.index, *_read(loaded.tokenizer, row.said, ends)))
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
    loaded: LoadedModel, asked: list[_Asked], size: int, how: Batching
) -> Iterator[list[tuple[int, str, bool]]]:
    """Batch after batch; where memory runs out the batch is halved, for good, and tried again."""
    ends = stop_ids(loaded)
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


def _try_batch(loaded: LoadedModel, batch: list[_Asked], ends: list[int]) -> list[tuple[int, str, bool]] | None:
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


def _answer_batch(loaded: LoadedModel, batch: list[_Asked], ends: list[int]) -> list[tuple[int, str, bool]]:
    tokenizer, prompts = loaded.tokenizer, [one.ids for one in batch]
    padding = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else (ends or [0])[0]
    output = generated(loaded.model, prompts, batch[0].room, ends, padding)
    rows = output[:, max(map(len, prompts)) :].tolist()
    return [(one.index, *_read(tokenizer, row, ends)) for one, row in zip(batch, rows, strict=True)]


def _read(tokenizer: Any, tokens: list[int], ends: list[int]) -> tuple[str, bool]:
    """Text up to the first end token, and whether there was none."""
    stop = next((at for at, token in enumerate(tokens) if token in ends), None)
    return tokenizer.decode(tokens[:stop], skip_special_tokens=True), stop is None
