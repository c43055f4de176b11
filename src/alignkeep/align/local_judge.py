"""A causal language model of this machine as a judge. Its replies are greedy: the same model says the same."""

from __future__ import annotations

from collections.abc import Sequence

from alignkeep.models.chat import encode_prompt, without_marks
from alignkeep.models.config import GenerationConfig, LoadConfig
from alignkeep.models.generation import context_length, generate_answers
from alignkeep.models.loading import LoadedModel, load_model
from alignkeep.types import Message, Prompt


class LocalJudge:
    """An `Ask` that is loaded when it is first needed and then stays.

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
