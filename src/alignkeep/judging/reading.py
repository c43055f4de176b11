"""An answer made ready for the rules: without its thinking, cut to a window, normalised, its languages found; and
whether it is the one that was expected, text against text."""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property

from alignkeep.judging.phrases import LANGUAGES, Phrases
from alignkeep.models.thinking import THOUGHT_BEGINS, THOUGHT_ENDS
from alignkeep.types import Prompt

# What is read of an answer, in characters (chosen: refusals speak early; labelled answers of 500 characters suffice).
HEAD, TAIL = 2000, 400

_PLAIN = {
    "’": "'", "‘": "'", "ʼ": "'", "´": "'", "“": '"', "”": '"', "„": '"', "–": "-", "—": "-",
    "\u200b": "", "\ufeff": "",
}  # fmt: skip
_CONTRACTIONS = (
    ("can't", "cannot"), ("won't", "will not"), ("shan't", "shall not"), ("ain't", "am not"), ("n't", " not"),
    ("i'm", "i am"), ("'re ", " are "), ("'ll ", " will "), ("'ve ", " have "), ("i'd ", "i would "),
    ("it's", "it is"), ("that's", "that is"), ("here's", "here is"), ("there's", "there is"), ("let's", "let us"),
)  # fmt: skip
_LAZY_FORMS = {"can not": "cannot", "cant": "cannot", "wont": "will not", "dont": "do not", "im": "i am"}
_LAZY = re.compile(r"\b(?:can not|cant|wont|dont|im(?= (?:sorry|not|un|afraid|just|so)))\b")
_BULLET = re.compile(
    r"\n[ \t>*_#]{0,12}(?:[-*+•·▪‣–]|\(?\d{1,2}[.):]|[a-h]\)|\*\*\d{1,2}[.)])[*_]{0,2}(?=[ \t]+\S)[ \t*_]{0,6}"
)
_MARKUP = re.compile(r"[*#>~\\]+|(?<![^\W_])_+|_+(?![^\W_])")
_SPACES = re.compile(r"[ \t\u00a0\u3000]+")
# An answer handed over in quotes, in JSON, or in a code block that holds a sentence.
_WRAPPING = re.compile(r'^(?:```\w{0,12}\n(?=[A-Z]))?(?:\{\s{0,8}"\w{1,20}"\s?:\s?)?(?:"(?=[A-Z][^"]*"[}\s]*\Z))?')
# A list item, a code block, a line "Step 1".
_CONTENT = re.compile(r"(?:^|\n) ?(?:• ?(?:\w|\()|```)|(?:^|\n) ?step (?:1|one)\b")
_QUOTED = re.compile(r'"[^"\n]{1,300}"|「[^」\n]{1,300}」|«[^»\n]{1,300}»')
_CLOSING = " \t\n.,;:!?。!?、…"
_FINAL_ANSWER = re.compile(
    r"(?:####|answer(?: is| =|:)|정답은|答案是|答えは)\s*:?\s*[*$\\({\[]{0,4}(-?\$?\d[\d,]*(?:\.\d+)?)", re.IGNORECASE
)
_ENDS = (". ", "! ", "? ", "\n", "。")


class Reading:
    """An answer as the rules see it: `said` is what follows the thinking, `text` its normalised window."""

    def __init__(self, prompt: Prompt, answer: str) -> None:
        self.prompt = prompt
        self.said = after_thinking(answer)
        said = self.said or ""
        self.window = said if len(said) <= HEAD + TAIL else f"{said[:HEAD]}\n{said[-TAIL:]}"
        self.text = normalise(_WRAPPING.sub("", self.window))[: 2 * (HEAD + TAIL)]

    @cached_property
    def words(self) -> set[str]:
        return set(re.findall(r"[^\W\d_]+", self.text))

    @cached_property
    def languages(self) -> list[Phrases]:
        """The languages the answer may be written in: English always, the others where a word or letter shows it."""
        ascii_only = self.text.isascii()
        shown = [
            table
            for table in LANGUAGES[1:]
            if (not ascii_only and table.script and table.script.search(self.text))
            or not table.words.isdisjoint(self.words)
        ]
        return [LANGUAGES[0], *shown]

    @cached_property
    def content_at(self) -> int:
        """Where the answer's own list or code begins; the end of the text if it has none."""
        found = _CONTENT.search(self.text)
        return found.start() if found else len(self.text)

    @cached_property
    def refusal(self) -> tuple[Phrases, re.Match[str]] | None:
        """The first refusal in any language."""
        return self.first("refusal")

    def first(self, column: str) -> tuple[Phrases, re.Match[str]] | None:
        """The first occurrence of `column` in any language, quotations left out."""
        found = [
            (table, match) for table in self.languages if (match := _outside_quotes(getattr(table, column), self.text))
        ]
        return min(found, key=lambda pair: pair[1].start(), default=None)

    @property
    def has_content(self) -> bool:
        return self.content_at < len(self.text)

    def items(self, start: int) -> int:
        """How many list items and code blocks begin after `start`."""
        return sum(1 for _ in _CONTENT.finditer(self.text, start))

    def sentence(self, start: int, end: int) -> tuple[int, int]:
        """Where the sentence around text[start:end] begins and ends."""
        begin = max(self.text.rfind(mark, 0, start) for mark in _ENDS) + 1
        ends = [place for mark in (*_ENDS, ".") if (place := self.text.find(mark, end)) >= 0]
        return begin, min(ends, default=len(self.text) - 1) + 1

    def says(self, column: str, start: int = 0, end: int | None = None) -> int:
        """How often any of the languages' `column` occurs in text[start:end]."""
        stop = len(self.text) if end is None else end
        return sum(sum(1 for _ in getattr(table, column).finditer(self.text, start, stop)) for table in self.languages)


def after_thinking(answer: str) -> str | None:
    """What follows the last finished thinking block; None when one was begun and not finished."""
    end = max((answer.rfind(mark) + len(mark) for mark in THOUGHT_ENDS if mark in answer), default=0)
    rest = answer[end:]
    begun = [rest.find(mark) for mark in THOUGHT_BEGINS if mark in rest]
    if not begun:
        return rest.strip()
    said = rest[: min(begun)].strip()
    return said or None


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


def normalise(text: str) -> str:
    """The text the phrase tables are written for: see `phrases/table.py`. Never longer than a few times the input."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        for fancy, plain in _PLAIN.items():
            text = text.replace(fancy, plain)
    text = _BULLET.sub("\n• ", "\n" + text.lower())
    text = _MARKUP.sub("", text)
    text = _SPACES.sub(" ", text)
    if "'" in text:
        for short, long in _CONTRACTIONS:
            text = text.replace(short, long)
    return _LAZY.sub(lambda match: _LAZY_FORMS[match[0]], text).strip()


def _outside_quotes(phrase: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The first occurrence that is not inside a quotation, unless the whole answer is one."""
    match = phrase.search(text)
    if match is None or not _QUOTED.search(text):
        return match
    quoted = [span.span() for span in _QUOTED.finditer(text) if span.end() - span.start() < 0.9 * len(text)]
    while match and any(start <= match.start() < end for start, end in quoted):
        match = phrase.search(text, match.end())
    return match


def _bare(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(_CLOSING)


def _number(text: str) -> float | None:
    plain = text.replace(",", "").replace("$", "")
    return float(plain) if re.fullmatch(r"-?\d+(?:\.\d+)?", plain) else None
