"""Examples as plain text: what they ask, what they answer, and their hashed n-grams."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from itertools import pairwise

from alignkeep.types import Example

BUCKETS = 10_000  # as DSIR has it
_WORD = re.compile(r"\w+|[^\w\s]")


def asked(example: Example) -> str:
    """Everything before the last answer."""
    return "\n".join(message.content for message in example.messages[:-1])


def answered(example: Example) -> str:
    return example.messages[-1].content


def whole(example: Example) -> str:
    return f"{asked(example)}\n\n{answered(example)}"


def hashed_ngrams(text: str) -> Sequence[int]:
    """Buckets of all words and pairs of words, in lower case; the same on every machine."""
    words = _WORD.findall(text.lower())
    pairs = [f"{one} {other}" for one, other in pairwise(words)]
    return [zlib.crc32(gram.encode()) % BUCKETS for gram in (*words, *pairs)]
