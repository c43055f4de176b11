"""Text that is safe to show, and numbers as they are printed.

Model output is hostile text: it may try to be markup, to reverse the reading direction, or to hide characters.
"""

from __future__ import annotations

import math
import re
import unicodedata
from itertools import groupby

from alignkeep.types import Estimate

SHORT = 160  # characters of a prompt or answer shown; chosen: two to three lines beside another answer
MINUS, THIN, DASH = "\u2212", "\u202f", "\u2013"

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_ALLOWED = "\n\t\u200c\u200d"  # the last two join letters in Persian, Hindi and many emoji
_STACK = 4  # marks on one letter; chosen: Vietnamese, Hebrew and Thai need fewer
_BLANKS = re.compile(r"[ \t\r\n]+")


def visible(text: str) -> str:
    """Every control, bidi, zero-width, private or unassigned character as its code point, `⟨U+202E⟩`, a row of the same
    one counted, `⟨U+0000 ×9⟩`; likewise every combining mark after the fourth on one letter, since a tall stack of them
    is drawn over its neighbours.

    Line breaks, tabs and the two joiners stay. The result can always be encoded as UTF-8; plain text is unchanged.
    """
    if text.isascii() and text.isprintable():
        return text
    marked, stack = [], 0
    for letter in text:
        category = unicodedata.category(letter)
        stack = stack + 1 if category in {"Mn", "Me"} else 0
        marked.append((letter, stack > _STACK or (category in _UNSAFE and letter not in _ALLOWED)))
    return "".join(
        _named(letter, len(list(row))) if bad else letter * len(list(row)) for (letter, bad), row in groupby(marked)
    )


def _named(letter: str, times: int) -> str:
    return f"⟨U+{ord(letter):04X}⟩" if times == 1 else f"⟨U+{ord(letter):04X} ×{times}⟩"


def shorten(text: str, limit: int | None = SHORT) -> str:
    """One line of at most `limit` characters, the last an ellipsis where something was cut; None cuts nothing."""
    line = _BLANKS.sub(" ", text).strip()
    return line if limit is None or len(line) <= limit else line[: limit - 1].rstrip() + "…"


def abridge(name: str, limit: int) -> str:
    """A name of at most `limit` characters that keeps its beginning and its end: long names often differ there only."""
    name = shorten(name, None)
    if len(name) <= limit:
        return name
    tail = (limit - 1) // 2
    return f"{name[: limit - 1 - tail]}…{name[len(name) - tail :]}"


def percent(rate: float) -> str:
    """0.985 as `98.5 %`; an unknown rate is words, never 0."""
    return "not measured" if math.isnan(rate) else f"{100 * rate:.1f}{THIN}%"


def interval(estimate: Estimate) -> str:
    """`95.1–99.6 %`."""
    return f"{_signed(estimate.low, plus='')}{DASH}{_signed(estimate.high, plus='')}{THIN}%"


def points(difference: float) -> str:
    """A difference of two rates in percentage points, signed: `+48.0`, `−71.2`."""
    return _signed(difference, plus="+")


def p_value(p: float) -> str:
    """`p < 0.001`, `p = 0.012`; unknown is said."""
    if math.isnan(p):
        return "p not known"
    return f"p{THIN}<{THIN}0.001" if p < 0.001 else f"p{THIN}={THIN}{p:.3f}" if p < 0.1 else f"p{THIN}={THIN}{p:.2f}"


def _signed(rate: float, *, plus: str) -> str:
    number = f"{abs(100 * rate):.1f}"
    if number == "0.0":
        return number
    return (MINUS if rate < 0 else plus) + number
