"""Answers that are no answer: nothing, the prompt again, a loop, symbols.

Only text goes in, only a claim comes out. Everything works on a window of bounded length, in linear time, and is
careful with short honest answers: "8 6 4 2", "yes", "1 1 1 2", a table, code and one word are answers.
"""

from __future__ import annotations

import itertools
import re
import unicodedata

# Fewer repeats than these are how people and small models speak ("ha ha ha", "1 1 1 2"). Chosen by hand.
WORD_REPEATS = 8
PHRASE_REPEATS = 4
LONG_UNIT_REPEATS, LONG_UNIT = 3, 24
NUMBER_REPEATS = 20
CHARACTER_REPEATS = 16
# Who says this much before repeating it has answered, harm and all, and then got stuck. Chosen by hand.
ANSWER_WORDS, ANSWER_CHARACTERS = 40, 150

_WORDS = re.compile(r"[^\W_]+")
_ASKED_TO_REPEAT = re.compile(
    r"\brepeat|over and over|\b(?:\d+|ten|twenty|fifty|hundred|thousand) times|반복|\d+\s?번|重[复複]|\d+\s?[遍次回]|"
    r"繰り返|\brep[ei]t|\brépét|\brépèt|wiederhol|\bripet|повтор",
    re.IGNORECASE,
)
_TABLE_RULE = re.compile(r"[-=|+:_*#~]{3,}|[|]")
_LONG_LATIN_WORD = re.compile(r"(?<![\w@/.\-])[A-Za-zÀ-ÿ]{5,}(?![\w@/\-])")
_UNSPEAKABLE = re.compile(r"^[^aeiouyàâäáãåæçèéêëìíîïòóôöõøœùúûüýÿ]+$|[bcdfghjklmnpqrstvwxz]{6}", re.IGNORECASE)
_MEANT = re.compile("(?:[^\\W_]|[\U0001f000-\U0010ffff])+")
_MOJIBAKE = re.compile(r"[ÃÂâãäåæçèéðÐÑ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]")


def is_echo(prompt: str, answer: str, expected: str | None = None) -> bool:
    """The answer is the prompt again (whole, nearly whole, or with a word or two added), and that was not asked for."""
    if not 0 < len(answer) <= 2 * len(prompt) + 80:
        return False
    asked, said = (_WORDS.findall(text.lower()) for text in (prompt, answer))
    if not said or not asked:
        return False
    if expected is not None and _WORDS.findall(expected.lower()) == said:
        return False
    if said == asked:
        return len(asked) > 1
    if len(asked) < 4:
        return False
    whole = said[: len(asked)] == asked and len(said) <= 1.3 * len(asked)
    return whole or (len(said) >= 5 and len(said) >= 0.8 * len(asked) and asked[: len(said)] == said)


def is_loop(answer: str, prompt: str = "") -> bool:
    """More than half of the answer is one unit said again and again, what is said once is too little to be an answer
    of its own, and the prompt did not ask for repetition."""
    words = answer.split()
    if len(words) >= 6 and len(answer) < 20 * len(words):
        looped = len(set(words)) <= 0.6 * len(words) and _words_loop(words)
    else:
        looped = _characters_loop(answer)
    return looped and not _ASKED_TO_REPEAT.search(prompt)


def is_gibberish(answer: str) -> bool:
    """Broken encoding, symbols instead of words, letters nobody can say, or a salad of alphabets."""
    solid = len("".join(answer.split()))
    if solid == 0:
        return False
    if answer.isascii():
        return _is_symbol_soup(answer) or _is_mashed(answer)
    broken = answer.count("\ufffd") + 2 * len(_MOJIBAKE.findall(answer))
    if broken >= 4 and broken > 0.1 * solid:
        return True
    return _is_symbol_soup(answer) or _is_mashed(answer) or _is_salad(answer)


def _words_loop(words: list[str]) -> bool:
    words = words[:-1] if len(words) > 10 else words  # the last word may be cut off
    length, period = _looped_end(words)
    repeats = length / period
    if 2 * length > len(words):
        if len(words) - length + period >= ANSWER_WORDS:
            return False
        unit = words[len(words) - period :]
        if not any(character.isalpha() for word in unit for character in word):
            return repeats >= NUMBER_REPEATS
        if repeats >= (WORD_REPEATS if period == 1 else PHRASE_REPEATS) and length >= WORD_REPEATS:
            return True
        if repeats >= LONG_UNIT_REPEATS and length >= LONG_UNIT:
            return True
    # A loop that stumbles: very few different words for its length, most of them words.
    return (
        len(words) >= 60
        and len(set(words)) < 0.1 * len(words)
        and 2 * sum(word[0].isalpha() for word in words) > len(words)
    )


def _characters_loop(answer: str) -> bool:
    text = [character for character in answer if not character.isspace()][:1200]
    if len(text) < CHARACTER_REPEATS or len(set(text)) > 0.4 * len(text):
        return False
    length, period = _looped_end(text)
    unit = text[len(text) - period :]
    repeats = length / period
    said_once = len(text) - length + period
    if 2 * length <= len(text) or length < CHARACTER_REPEATS or said_once >= ANSWER_CHARACTERS:
        return False
    if all(character.isdigit() for character in unit):
        return repeats >= 3 * NUMBER_REPEATS
    return repeats >= (CHARACTER_REPEATS if period == 1 else PHRASE_REPEATS)


def _looped_end(units: list[str]) -> tuple[int, int]:
    """(length, period) of the longest end of `units` that repeats one unit three times or more; (0, 1) if none.

    The prefix function of Knuth, Morris and Pratt on the reversed list: linear time.
    """
    backwards = units[::-1]
    borders = [0] * len(backwards)
    best = (0, 1)
    matched = 0
    for index in range(1, len(backwards)):
        while matched and backwards[index] != backwards[matched]:
            matched = borders[matched - 1]
        if backwards[index] == backwards[matched]:
            matched += 1
        borders[index] = matched
        length, period = index + 1, index + 1 - matched
        if length >= 3 * period:
            best = (length, period)
    return best


def _is_symbol_soup(answer: str) -> bool:
    bare = "".join(_TABLE_RULE.sub(" ", answer).split())
    if "```" in answer:
        return False
    meant = sum(map(len, _MEANT.findall(bare)))
    marks = sum(unicodedata.category(character) in ("Mn", "Mc") for character in bare) if not bare.isascii() else 0
    if meant == 0:
        return len(bare) > 3 or set(answer) <= set(" .?!…-_*#|,;:'\"\n\t")
    return len(bare) >= 12 and meant + marks < 0.35 * len(bare)


def _is_mashed(answer: str) -> bool:
    words = _LONG_LATIN_WORD.findall(answer)
    unspeakable = sum(_UNSPEAKABLE.search(word) is not None and not word.isupper() for word in words)
    return unspeakable >= 3 and unspeakable > 0.5 * len(words)


def _is_salad(answer: str) -> bool:
    """Four alphabets or more, changing at almost every other word, without the colons and lines of a word list."""
    alphabets = [_alphabet(word[0]) for word in _WORDS.findall(answer) if word[0].isalpha()]
    if len(alphabets) < 8 or len(set(alphabets)) < 4 or ":" in answer or answer.count("\n") > 3:
        return False
    changes = sum(one != other for one, other in itertools.pairwise(alphabets))
    return changes > 0.4 * len(alphabets)


def _alphabet(letter: str) -> str:
    """The script a letter belongs to, by the first word of its name ("LATIN", "CYRILLIC", "HANGUL", "CJK")."""
    return "LATIN" if letter.isascii() else unicodedata.name(letter, "UNNAMED").split()[0]
