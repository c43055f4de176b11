"""Models that think before they answer: the marks around a thought, a budget for it, and arguments of the template.

A thought stands between two marks in front of the answer, and the template may have written the first of them already.
Within a budget of tokens (`thinking_tokens`) the model thinks as it likes; where the budget ends the thought is closed
as the model itself would close it, and the answer has room of its own. That is the budget forcing of s1 (Muennighoff et
al. 2025, arXiv:2501.19393) without its "Wait", and what Qwen3 calls a thinking budget.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkeep.errors import RecipeError

# A thought's marks, pair by pair.
THOUGHT_BEGINS = ("<think>", "<thinking>", "<reasoning>", "<thought>", "[THINK]", "◁think▷", "<|channel|>analysis")
THOUGHT_ENDS = (
    "</think>", "</thinking>", "</reasoning>", "</thought>", "[/THINK]", "◁/think▷", "<|channel|>final<|message|>",
)  # fmt: skip


@dataclass(frozen=True)
class ThoughtMarks:
    """The tokens around a thought, `begin` and `end`, in words and as numbers; `closing` is what is written where a
    budget is used up."""

    words: tuple[str, str]
    begin: int
    end: int
    closing: list[int]

    @classmethod
    def find(cls, tokenizer: Any) -> ThoughtMarks | None:
        """The pair of marks that are single tokens of this tokenizer; None where there is none."""
        for words in zip(THOUGHT_BEGINS, THOUGHT_ENDS, strict=True):
            # Asked one by one: the whole vocabulary takes tens of milliseconds to list.
            begin, end = (tokenizer.convert_tokens_to_ids(word) for word in words)
            if tokenizer.convert_ids_to_tokens([begin or 0, end or 0]) == list(words):
                closing = tokenizer(f"\n{words[1]}\n\n", add_special_tokens=False)["input_ids"]
                return cls(words, begin, end, list(closing))
        return None

    @classmethod
    def of(cls, tokenizer: Any) -> ThoughtMarks:
        """As `find`, for a budget of thinking. Raises RecipeError where there are no such tokens."""
        found = cls.find(tokenizer)
        if found is None:
            raise RecipeError(
                "generation.thinking_tokens",
                seen="a tokenizer without tokens of its own for the beginning and the end of a thought",
                expected=f"a model that thinks between {THOUGHT_BEGINS[0]} and {THOUGHT_ENDS[0]}, or another such pair",
                remedy="leave thinking_tokens out: a thought then counts towards max_new_tokens",
            )
        return found

    def is_open(self, tokens: Sequence[int]) -> bool:
        """Whether a thought was begun and not ended."""
        for token in reversed(tokens):
            if token in (self.begin, self.end):
                return token == self.begin
        return False


def read_answer(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int], ends: Sequence[int]) -> tuple[str, bool]:
    """The text of new tokens up to the first that ends them, and whether there was none.

    Special tokens are left out, but a thought keeps its marks, also where they are special, and one that the prompt had
    begun already and that was not ended begins with its mark: whoever reads the text can tell thought and answer.
    """
    stop = next((at for at, token in enumerate(tokens) if token in ends), None)
    said, marks = list(tokens[:stop]), ThoughtMarks.find(tokenizer)

    def text(part: Sequence[int]) -> str:
        return tokenizer.decode(part, skip_special_tokens=True)

    whole = text(said)
    if marks is None:
        return whole, stop is None
    begin, end = marks.words
    if marks.end in said and end not in whole:
        at = len(said) - 1 - said[::-1].index(marks.end)
        whole = f"{begin}{text(said[:at])}{end}{text(said[at + 1 :])}"
    elif begin not in whole and marks.is_open([*prompt, *said]):
        whole = begin + whole
    return whole, stop is None


def set_arguments(tokenizer: Any, arguments: Mapping[str, bool | int | str], source: Path) -> None:
    """Let the tokenizer write every chat with these arguments of its template (`enable_thinking=False`).

    They are set in the first line of the template in memory, so that they hold wherever it is used; the file stays.
    Raises RecipeError for an argument that the template does not name.
    """
    if not arguments:
        return
    whole = tokenizer.chat_template
    templates = list(whole.values()) if isinstance(whole, dict) else [whole]
    for name in arguments:
        if not name.isidentifier() or not any(re.search(rf"\b{re.escape(name)}\b", text) for text in templates):
            raise RecipeError(
                f"load.template.{name}",
                seen=f"an argument that the chat template of {source} does not name",
                expected="one that it reads, as enable_thinking in Qwen3's",
                remedy="look into chat_template.jinja of the model, or leave it out",
            )
    values = "".join(f"{{% set {name} = {_literal(value)} %}}" for name, value in arguments.items())
    # A template engine that drops the line break behind a block would drop the template's own first one.
    begun = [values + ("\n" if text.startswith("\n") else "") + text for text in templates]
    tokenizer.chat_template = dict(zip(whole, begun, strict=True)) if isinstance(whole, dict) else begun[0]


def _literal(value: bool | int | str) -> str:
    return json.dumps(value, ensure_ascii=False)
