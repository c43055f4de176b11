"""Chats as text and as tokens, in the words of the tokenizer's own chat template.

Departures from what a template says
    1. A system message that the template refuses (Gemma) or leaves out is put in front of the first user turn, with an
       empty line between. It is never lost.
    2. A prefill continues the assistant's turn. Where the template alters the last turn so that it cannot be continued,
       the prefill follows the generation prompt.
    3. A template that leaves out the tools of an example, a call, or what a tool returned is refused.
    4. What a reasoning template puts in front of an answer without a thought, such as an empty one, is read and not
       learned: it would teach the model not to think.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkeep.errors import DataError
from alignkeep.types import Example, Message, Prompt, ToolTurn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that torch's cross entropy leaves out
_ANSWER = "Qzxj"  # an answer whose words no template writes itself


class EncodedExample(NamedTuple):
    """Tokens of a chat; `labels` repeat the tokens of the answers and are -100 everywhere else. Equal lengths."""

    input_ids: list[int]
    labels: list[int]


class WordCount(NamedTuple):
    """How many words of a text the tokenizer cannot spell, out of how many."""

    unknown: int
    total: int

    @property
    def share(self) -> float:
        """In [0, 1]; NaN for no words."""
        return self.unknown / self.total if self.total else float("nan")


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    generation_prompt: bool,
    prefill: str = "",
    template: Mapping[str, Any] | None = None,
) -> str:
    """The chat as the model reads it. With `generation_prompt` it ends where the answer begins. `template` are further
    arguments of the chat template.

    A `prefill` opens the assistant's turn (whatever `generation_prompt` says) and the text ends with it, so that the
    model continues it. Raises DataError for turns the template refuses.
    """
    options = dict(template or {})
    messages, text = _render_any(tokenizer, messages, generation_prompt=generation_prompt, **options)
    if not prefill:
        return text
    try:
        opened = [*messages, Message("assistant", prefill)]
        return _apply(tokenizer, opened, generation_prompt=False, continue_final_message=True, **options)
    except DataError:
        return _apply(tokenizer, messages, generation_prompt=True, **options) + prefill


def taken_turns(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Sequence[Message]:
    """The turns as the template takes them before an answer: a system message in the user's turn where it must be."""
    return _render_any(tokenizer, messages, generation_prompt=True)[0]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, template: Mapping[str, Any] | None = None
) -> list[int]:
    """Tokens up to where the answer begins; nothing is added to what the template, with its arguments, writes."""
    text = render(tokenizer, prompt.messages, generation_prompt=True, prefill=prompt.prefill, template=template)
    return _tokens(tokenizer, text)


def encode_example(tokenizer: PreTrainedTokenizerBase, example: Example) -> EncodedExample:
    """Tokens of the whole chat; every assistant turn is learned, its calls of tools too, up to and with the end of its
    turn. What the tools returned is read.

    An answer begins after the generation prompt, and after what the template itself writes there (an empty thought),
    and ends where the chat cut off behind it ends. Without such a thought this is, for one question and one answer,
    what TRL's SFTTrainer does with a conversational prompt and completion. Raises DataError where the template renders
    the beginning of a chat differently once more turns follow, so that no boundary can be told, or drops words of an
    answer or something of the tools.
    """
    options = {} if example.tools is None else {"tools": json.loads(example.tools)}
    messages, text = _render_any(tokenizer, example.messages, generation_prompt=False, **options)
    _check_tools(tokenizer, messages, text, options)
    ids = _tokens(tokenizer, text)
    labels = [IGNORED] * len(ids)
    for turn, message in enumerate(messages):
        if message.role != "assistant":
            continue
        start, end = _answer_span(tokenizer, messages, turn, text, **options)
        start += len(written_before(tokenizer, messages[:turn], message.content, text[start:end], start, **options))
        _check_written(tokenizer, _called(message), text[start:end])
        first = _shared(_tokens(tokenizer, text[:start]), ids)
        stop = len(ids) if end == len(text) else _shared(_tokens(tokenizer, text[:end]), ids)
        if stop <= first:
            raise _prefix_error(turn, "no token of the answer")
        labels[first:stop] = ids[first:stop]
    return EncodedExample(ids, labels)


def written_before(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: str, rest: str, start: int, **options: Any
) -> str:
    """What the template itself puts in front of the answer's words: an empty thought (Qwen3), a channel (gpt-oss).

    The answer to `messages` is rendered as `rest`, from place `start` of the text. "" for white space alone, and for an
    answer that brings its thought. Raises DataError where the words are not all in `rest`.
    """
    words = answer.strip()
    if words and rest.lstrip().startswith(words):
        return ""
    if "".join(words.split()) not in "".join(rest.split()):
        raise DataError(
            f"chat template, turn {len(messages) + 1}",
            seen=f"an answer that is rendered as {rest[:60]!r}, without all of its words",
            expected="templates that write the whole answer",
            remedy="take the thought out of the answers if the template drops it, or give the model folder a "
            "chat_template that keeps it",
        )
    chat = [*messages, Message("assistant", _ANSWER)]
    opening, mark, _ = _apply(tokenizer, chat, generation_prompt=False, **options)[start:].partition(_ANSWER)
    return opening if mark and opening.strip() and rest.startswith(opening) else ""


def without_marks(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with a space in everything that the tokenizer would read as a special token, such as a turn's end: it
    cannot then end the turn in which it is quoted."""
    added = {str(one.content) for one in tokenizer.added_tokens_decoder.values() if one.special}
    for mark in sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True):
        if len(mark) > 1:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
    return text


def unknown_share(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> WordCount:
    """Counts the words (between white space) that hold the unknown token. A byte-level tokenizer knows every word."""
    words = [word for text in texts for word in text.split()]
    unknown = tokenizer.unk_token_id
    if not words or unknown is None:
        return WordCount(0, len(words))
    distinct = list(dict.fromkeys(words))
    encoded = tokenizer(distinct, add_special_tokens=False)["input_ids"]
    strange = {word for word, ids in zip(distinct, encoded, strict=True) if unknown in ids}
    return WordCount(sum(word in strange for word in words), len(words))


def _answer_span(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], turn: int, text: str, **options: Any
) -> tuple[int, int]:
    """Where in `text` the answer of this turn begins and ends, its end-of-turn mark included."""
    before = _apply(tokenizer, messages[:turn], generation_prompt=False, **options) if turn else ""
    if not text.startswith(before):
        raise _prefix_error(turn, "the turns before it rendered differently when the chat goes on")
    # A reasoning template may open a thought in the generation prompt that the stored answer does not have: the answer
    # begins where the two part.
    asked = _apply(tokenizer, messages[:turn], generation_prompt=True, **options) if turn else ""
    start = max(len(before), _shared(asked, text))
    if turn == len(messages) - 1:
        return start, len(text)
    through = _apply(tokenizer, messages[: turn + 1], generation_prompt=False, **options)
    if text.startswith(through):
        return start, len(through)
    # Templates that keep thoughts only in the last turn (Qwen3) render this turn differently once it is no longer the
    # last. Its words and the mark that ends it are the same.
    words = messages[turn].content.strip()
    if not words:  # calls of tools alone, behind an empty thought where they come last
        thought = written_before(tokenizer, messages[:turn], "", through[start:], start, **options)
        calls = through[start + len(thought) :]
        if not calls or not text.startswith(calls, start):
            raise _prefix_error(turn, "the answer rendered differently when the chat goes on")
        return start, start + len(calls)
    mark = through[through.rfind(words) + len(words) :]
    at = text.find(words, start)
    if words not in through or at < 0 or not text.startswith(mark, at + len(words)):
        raise _prefix_error(turn, "the answer rendered differently when the chat goes on")
    return start, at + len(words) + len(mark)


def _check_tools(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str, options: Mapping[str, Any]
) -> None:
    """Raises DataError where the template leaves out a tool, or what one returned."""
    _check_written(tokenizer, [tool["function"]["name"] for tool in options.get("tools", ())], text)
    returned = sum(message.role == "tool" for message in messages)
    if returned:
        marked = [replace(one, content=_ANSWER) if one.role == "tool" else one for one in messages]
        written = _apply(tokenizer, marked, generation_prompt=False, **options).count(_ANSWER)
        _check_written(tokenizer, ["what a tool returned"] if written < returned else [], "")


def _called(message: Message) -> list[str]:
    """Names of the tools that are called in this turn."""
    return [call["function"]["name"] for call in _fields(message).get("tool_calls", ())]


def _check_written(tokenizer: PreTrainedTokenizerBase, names: Sequence[str], text: str) -> None:
    left_out = [name for name in names if name not in text]
    if left_out:
        raise DataError(
            f"chat template of {tokenizer.name_or_path}", seen=f"a text without {left_out[0]!r}",
            expected="a template that writes tools, their calls and what they return",
            remedy="take a model whose chat_template does, or take the tools out of the data",
        )  # fmt: skip


def _render_any(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation_prompt: bool, **options: Any
) -> tuple[Sequence[Message], str]:
    """The turns as the template takes them and their text: the system message folded into the user's if it must be."""
    if messages[0].role != "system":
        return messages, _apply(tokenizer, messages, generation_prompt=generation_prompt, **options)
    system, folded = messages[0].content.strip(), _fold(messages)
    try:
        text = _apply(tokenizer, messages, generation_prompt=generation_prompt, **options)
    except DataError:
        if folded is None:
            raise
    else:
        if system in text or folded is None:
            return messages, text
    return folded, _apply(tokenizer, folded, generation_prompt=generation_prompt, **options)


def _fold(messages: Sequence[Message]) -> list[Message] | None:
    if len(messages) < 2 or messages[1].role != "user":
        return None
    return [Message("user", f"{messages[0].content}\n\n{messages[1].content}"), *messages[2:]]


def _apply(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation_prompt: bool, **options: Any
) -> str:
    chat = [{"role": message.role, "content": message.content, **_fields(message)} for message in messages]
    try:
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=generation_prompt, tokenize=False, **options)
    except Exception as error:  # whatever the program that a template is may raise: a division by zero, ...
        raise DataError(
            "chat template",
            seen=f"the turns {', '.join(message.role for message in messages)}, refused with: {str(error)[:200]}",
            expected="turns that the tokenizer's chat template takes",
            remedy="change the turns, or the chat_template of the model folder",
        ) from error
    return str(text)


def _fields(message: Message) -> dict[str, Any]:
    return json.loads(message.fields) if isinstance(message, ToolTurn) else {}


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # Not verbose: transformers would warn about the length, which the caller checks and reports as an error.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _shared(one: Sequence[object], other: Sequence[object]) -> int:
    """Length of the common beginning."""
    return next(
        (at for at, (left, right) in enumerate(zip(one, other, strict=False)) if left != right),
        min(len(one), len(other)),
    )


def _prefix_error(turn: int, seen: str) -> DataError:
    return DataError(
        f"chat template, turn {turn + 1}",
        seen=seen,
        expected="a template that renders the beginning of a chat the same whatever follows",
        remedy="use chats of one question and one answer, or a chat_template without such changes",
    )
