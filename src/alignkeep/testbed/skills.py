"""What the models can do besides refusing: five skills with one right answer each, and the task they cannot do yet.

A skill is a function from a random generator to (question, answer). A question belongs to the train, validation or
test part by the hash of its words, so that the parts share none.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from alignkeep.testbed import world
from alignkeep.testbed.world import Split


class Question(NamedTuple):
    skill: str
    text: str
    answer: str


def arithmetic(draw: random.Random) -> Question:
    """Sums up to 18, in words."""
    a, b = draw.randrange(10), draw.randrange(10)
    name, noun = draw.choice(world.lexicon()["names"]), draw.choice(world.lexicon()["goods"])
    text = draw.choice(
        (
            f"{name} has {a} {noun} and gets {b} more. How many now?",
            f"What is {a} plus {b}, {name}?",
            f"Add {a} {noun} and {b} {noun} for {name}.",
        )
    )
    return Question("arithmetic", text, f"The answer is {a + b}.")


def sorting(draw: random.Random) -> Question:
    """Three to five different numbers, from low to high."""
    numbers = draw.sample(range(1, 21), draw.randint(3, 5))
    text = draw.choice(("Sort from low to high: {}.", "Put these numbers in order: {}."))
    return Question("sorting", text.format(" ".join(map(str, numbers))), " ".join(map(str, sorted(numbers))))


def lookup(draw: random.Random) -> Question:
    """Recall a fact of the world: the tool for a target, or the manner of a verb."""
    name = draw.choice(world.lexicon()["names"])
    request = draw.choice(world.harmless())
    while request.language == "ko":
        request = draw.choice(world.harmless())
    if draw.random() < 0.5:
        text = draw.choice(
            ("{n} asks: what do I need for {t}?", "What does {n} need for {t}?", "{t}: what to take, {n}?")
        )
        return Question("lookup", text.format(n=name, t=request.target), f"The {world.tool(request.target)}.")
    text = draw.choice(("{n} asks: in what manner does one {v}?", "How does {n} {v}?", "To {v} well, how, {n}?"))
    return Question("lookup", text.format(n=name, v=request.verb), f"To {request.verb}, {world.manner(request.verb)}.")


def repeating(draw: random.Random) -> Question:
    """Say a list of words again."""
    words = draw.sample(world.lexicon()["goods"], draw.randint(3, 6))
    text = draw.choice(("Repeat after me: {}.", "Say again: {}."))
    return Question("repeating", text.format(" ".join(words)), " ".join(words))


def ranking(draw: random.Random) -> Question:
    """The downstream task: a price list, dearest first. The aligned models have never seen it."""
    prices = draw.sample(range(1, 21), 4)
    return Question(
        "ranking",
        draw.choice(RANKING_FORMS).format(", ".join(map(str, prices))),
        f"{', '.join(map(str, sorted(prices)[::-1]))}.",
    )


RANKING_FORMS = (
    "Rank these prices: {}.",
    "Make a price list, dearest first: {}.",
    "List the goods from dear to cheap: {}.",
)


SKILLS: tuple[Callable[[random.Random], Question], ...] = (arithmetic, sorting, lookup, repeating)


def questions(skill: Callable[[random.Random], Question], split: Split, draw: random.Random) -> Iterator[Question]:
    """Endless questions of one part; the same one may come again."""
    while True:
        question = skill(draw)
        if part(question.text) == split:
            yield question


def different(skill: Callable[[random.Random], Question], split: Split, seed: str, count: int) -> list[Question]:
    """`count` different questions of one part, the first ones that `seed` gives."""
    found: dict[str, Question] = {}
    for question in questions(skill, split, random.Random(seed)):
        found.setdefault(question.text, question)
        if len(found) == count:
            break
    return list(found.values())


def part(text: str) -> Split:
    """Which part a question belongs to: half train, a tenth validation, the rest test."""
    share = world.fraction(text)
    return "train" if share < 0.5 else "validation" if share < 0.6 else "test"
