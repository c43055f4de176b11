"""Whom a judge asks beside an endpoint: a model of this machine, and the replies that are on disk already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from alignkeep.checkpoint.parts import append_rows, recover_rows
from alignkeep.judging.pairs import Ask
from alignkeep.models.chat import encode_prompt, without_marks
from alignkeep.models.config import GenerationConfig, LoadConfig
from alignkeep.models.endpoint import Endpoint
from alignkeep.models.generation import context_length, generate_answers
from alignkeep.models.loading import LoadedModel, load_model
from alignkeep.types import Message, Prompt


class Remembered:
    """An `Ask` that keeps the replies of another in `file`; `name` says which judge it is. It is asked `at_once` chats
    at a time (None: all), after each of which the file is flushed: what was paid for is lost for one such part at most.

    A reply is found again by the judge's name and the whole chat. What got no reply is not kept and is asked again, as
    is what stands in a line that a kill tore or that is not what was written. One process writes to one file.
    """

    def __init__(self, ask: Ask, file: Path, name: str, at_once: int | None = None) -> None:
        self._ask, self._file, self._name, self._at_once = ask, file, name, at_once
        self._replies = {row["key"]: row["reply"] for row in recover_rows(file)}

    def __call__(self, chats: Sequence[tuple[Message, ...]]) -> list[str | None]:
        """The replies in the order of the chats. Equal chats are asked once, and none if all are known."""
        keys = [self._key(chat) for chat in chats]
        missing = {key: chat for key, chat in zip(keys, chats, strict=True) if key not in self._replies}
        if isinstance(self._ask, Endpoint) and len(missing) < len(set(keys)):
            self._ask.has_answered.set()
        names, asked = list(missing), list(missing.values())
        size = self._at_once or len(asked) or 1
        for start in range(0, len(asked), size):
            replies = zip(names[start : start + size], self._ask(asked[start : start + size]), strict=True)
            new = {key: reply for key, reply in replies if reply is not None}
            append_rows(self._file, [{"key": key, "reply": reply} for key, reply in new.items()])
            self._replies.update(new)
        return [self._replies.get(key) for key in keys]

    def _key(self, chat: tuple[Message, ...]) -> str:
        request = [self._name, [[message.role, message.content] for message in chat]]
        return sha256(json.dumps(request).encode("ascii")).hexdigest()


class LocalJudge:
    """A causal language model as an `Ask`, loaded when it is first needed and then kept. Its replies are greedy: the
    same model says the same.

    A reply that was cut off says nothing, and neither does the answer to a chat that fills the whole context: both are
    None. Raises what load_model and generate_answers raise.
    """

    def __init__(self, model: str, load: LoadConfig | None = None, generation: GenerationConfig | None = None) -> None:
        self._model, self._load, self._generation = model, load, generation
        self._loaded: LoadedModel | None = None

    def __call__(self, chats: Sequence[tuple[Message, ...]]) -> list[str | None]:
        """Replies in the order of the chats."""
        if self._loaded is None:
            self._loaded = load_model(self._model, self._load)
        context, tokenizer = context_length(self._loaded), self._loaded.tokenizer
        # What is judged may hold the judge's own marks of a turn.
        plain = [tuple(Message(one.role, without_marks(tokenizer, one.content)) for one in chat) for chat in chats]
        prompts = {index: Prompt(chat) for index, chat in enumerate(plain)}
        if context is not None:
            prompts = {index: one for index, one in prompts.items() if len(encode_prompt(tokenizer, one)) < context}
        answers = generate_answers(self._loaded, list(prompts.values()), self._generation)
        replies = {index: answer.text for index, answer in zip(prompts, answers, strict=True) if not answer.truncated}
        return [replies.get(index) for index in range(len(chats))]
