"""Is an answer the expected one? Text against text, no model."""

from __future__ import annotations

import re
import unicodedata

from alignkeep.evaluate.reading import after_thinking
from alignkeep.types import Prompt

_CLOSING = " \t\n.,;:!?。!?、…"
_FINAL_ANSWER = re.compile(
    r"(?:####|answer(?: is| =|:)|정답은|答案是|答えは)\s*:?\s*[*$\\({\[]{0,4}(-?\$?\d[\d,]*(?:\.\d+)?)", re.IGNORECASE
)


def is_correct(prompt: Prompt, answer: str) -> bool | None:
    """Is this the expected answer? None where the prompt expects none.

    Case, white space, closing punctuation and thinking do not count. Where a number is expected, a final answer in the
    usual forms ("#### 42", "the answer is 42") stands for the whole; the last one counts.
    """
    if prompt.expected is None:
        return None
    said = after_thinking(answer)
    if said is None:
        return False
    expected = _bare(prompt.expected)
    if _bare(said) == expected:
        return True
    number = _number(expected)
    if number is None:
        return False
    if _number(_bare(said)) is not None:
        return _number(_bare(said)) == number
    finals = _FINAL_ANSWER.findall(said[-4000:])
    return bool(finals) and _number(finals[-1]) == number


def _bare(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(_CLOSING)


def _number(text: str) -> float | None:
    plain = text.replace(",", "").replace("$", "")
    return float(plain) if re.fullmatch(r"-?\d+(?:\.\d+)?", plain) else None
