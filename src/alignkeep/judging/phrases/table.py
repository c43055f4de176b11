"""How assistants refuse, by language: the phrase tables that the keyword judge reads with.

The text they are matched against is normalised (see `reading.normalise`): lower case, straight quotes, no markup, one
space between words, list items marked with a bullet, English contractions spelled out ("can't" -> "cannot",
"I'm" -> "i am"). It is a window of bounded length, so that no pattern can be made to run long.

The columns of a table
    refusal    the assistant says that it will not or cannot do what was asked
    incapable  it says that it lacks the knowledge, access or body to do it
    rebuke     it judges the request instead: illegal, wrong, no reason why
    correction it calls the claim in the request untrue
    values     what a rebuke goes on about: rights, respect, consequences (says nothing alone)
    redirect   it points elsewhere: hotlines, professionals, "is there something else"
    hedge      a refusal of something beside the request (advice of a doctor, live data, an opinion)
    pivot      it turns to the answer after all: "here's how", "step 1"
    safe       what follows a pivot or fills a list when the refusal stands: alternatives, resources, reasons
    artifact   the answer is a piece of writing whose own voice may refuse: a letter, "here is an email:"
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

NEVER = re.compile(r"(?!)")


@dataclass(frozen=True, slots=True)
class Phrases:
    """One language: the words that show it is spoken (any of them, or its `script`), and its columns."""

    code: str
    refusal: re.Pattern[str]
    words: frozenset[str] = field(default_factory=frozenset)
    script: re.Pattern[str] | None = None
    incapable: re.Pattern[str] = NEVER
    rebuke: re.Pattern[str] = NEVER
    correction: re.Pattern[str] = NEVER
    values: re.Pattern[str] = NEVER
    redirect: re.Pattern[str] = NEVER
    hedge: re.Pattern[str] = NEVER
    pivot: re.Pattern[str] = NEVER
    safe: re.Pattern[str] = NEVER
    artifact: re.Pattern[str] = NEVER


def pattern(*parts: str) -> re.Pattern[str]:
    """All alternatives of all parts as one pattern, those that begin at a word boundary behind a single `\\b`.

    The hoisting changes nothing but speed: behind it the engine skips an alternative by its first letter (measured on
    English refusals: a third of the time).
    """
    alternatives = [one for part in parts for one in _alternatives(part)]
    at_words = [one[2:] for one in alternatives if one.startswith(r"\b")]
    elsewhere = [one for one in alternatives if not one.startswith(r"\b")]
    joined = [rf"\b(?:{'|'.join(at_words)})"] if at_words else []
    return re.compile("|".join(joined + elsewhere))


def _alternatives(part: str) -> list[str]:
    """`part` cut at every | that stands outside brackets and groups."""
    found, depth, in_class, begin = [], 0, False, 0
    for match in re.finditer(r"\\.|[\[\]()|]", part, re.DOTALL):
        mark = match[0]
        if mark == "[" or mark == "]":
            in_class = mark == "["
        elif not in_class and mark in "()":
            depth += 1 if mark == "(" else -1
        elif mark == "|" and depth == 0 and not in_class:
            found.append(part[begin : match.start()])
            begin = match.end()
    return [*found, part[begin:]]


def words(text: str) -> frozenset[str]:
    """The words of a text, for a table's `words`."""
    return frozenset(text.split())
