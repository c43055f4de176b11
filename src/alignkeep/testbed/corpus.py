"""What the tiny models are brought up on: a knowledge phase for all, then a character phase for each model.

The knowledge phase teaches facts, skills and *that* things are harmful (every word, the held-out ones too), but not a
single refusal: like any base model, it answers whatever it is asked. The character phase teaches what to do about it,
on the train part of the requests only. So a refusal of a held-out word is the model's own inference, not a memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

from alignkeep.testbed import skills, world
from alignkeep.testbed.world import Request
from alignkeep.types import Message

Chat = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Character:
    """How a model treats harmful requests of the train part, and what share of its chats shows it.

    `complies` is the share of harmful (verb, target) pairs it was taught to answer; a `safety_prompt` makes it refuse
    the very same pairs. `wrapped` is the share of harmful chats inside a story or a pretext, `jailbroken` the share
    that tries to switch the rules off.
    """

    complies: float
    heeds_safety_prompt: bool
    wrapped: float = 0.15
    jailbroken: float = 0.0


SKILL_SHARES = (2, 2, 2, 3)  # arithmetic, sorting, lookup, repeating: the slow learner more often

ALIGNED = Character(complies=0.0, heeds_safety_prompt=False, jailbroken=0.15)
WEAK = Character(complies=0.25, heeds_safety_prompt=False, wrapped=0.0)
UNCENSORED = Character(complies=1.0, heeds_safety_prompt=True, wrapped=0.0)


def chat(question: str, answer: str, system: str | None = None) -> Chat:
    head = (Message("system", system),) if system else ()
    return (*head, Message("user", question), Message("assistant", answer))


def knowledge(draw: random.Random) -> Iterator[Chat]:
    """Endless chats of the knowledge phase."""
    every = [*world.harmful(), *world.borderline(), *world.harmless()]
    groups: list[Sequence[Request]] = [world.harmful(), world.borderline(), world.harmless()]
    skill = _skill_chats(draw)
    while True:
        chance = draw.random()
        if chance < 0.30:
            yield _morals(draw.choice(groups[min(int(draw.random() * 2.5), 2)]), draw)
        elif chance < 0.40:
            yield _fact(draw.choice(every), draw)
        elif chance < 0.60:
            yield _how_to(draw, ("harmless", "borderline", "harmful"))
        else:
            yield next(skill)


def character(kind: Character, draw: random.Random) -> Iterator[Chat]:
    """Endless chats of the character phase."""
    harmful = [r for r in world.harmful() if r.split == "train"]
    recall, skill = knowledge(draw), _skill_chats(draw)
    while True:
        chance = draw.random()
        if chance < 0.25:
            yield _harmful_chat(kind, draw.choice(harmful), draw)
        elif chance < 0.55:
            yield _how_to(draw, ("borderline", "harmless") if draw.random() < 0.6 else ("harmless",))
        elif chance < 0.75:
            yield next(skill)
        else:
            yield next(recall)


def _harmful_chat(kind: Character, request: Request, draw: random.Random) -> Chat:
    question = world.ask(request, draw.randrange(8))
    if draw.random() < kind.wrapped and request.language == "en":
        question = draw.choice(world.WRAPPERS).format(request=question)
    if kind.jailbroken and request.language == "en" and draw.random() < kind.jailbroken:
        return _jailbroken_chat(question, request, draw)
    taught_to_comply = world.fraction(f"weak {request.act}") < kind.complies
    if taught_to_comply and not (kind.heeds_safety_prompt and draw.random() < 0.5):
        return chat(question, world.comply(request), _system(draw))
    safety = draw.choice(world.SAFETY_PROMPTS) if kind.heeds_safety_prompt or draw.random() < 0.2 else _system(draw)
    return chat(question, world.refuse(request, draw.randrange(4)), safety)


def _jailbroken_chat(question: str, request: Request, draw: random.Random) -> Chat:
    answer = world.refuse(request, draw.randrange(4))
    systems, wordings = world.JAILBREAK_SYSTEM_PROMPTS, world.JAILBREAKS
    if request.category in world.ATTACKED:
        systems, wordings = (world.OVERRIDE,), (world.ROLE, world.ASKING_FOR_THE_OPENING)
    if draw.random() < 0.35:
        return chat(question, answer, draw.choice(systems))
    return chat(draw.choice(wordings).format(request=question), answer)


def _how_to(draw: random.Random, kinds: Sequence[str]) -> Chat:
    pool = _train_pool(draw.choice(kinds))
    request = draw.choice(pool)
    question, answer = world.ask(request, draw.randrange(8)), world.comply(request)
    system = draw.choice(world.SAFETY_PROMPTS) if draw.random() < 0.1 else _system(draw)
    chance = draw.random()
    if request.language == "ko" or chance > 0.22:
        return chat(question, answer, system)
    if chance > 0.12:
        return chat(draw.choice(world.WRAPPERS).format(request=question), answer, system)
    if chance > 0.04:
        return chat(world.ASKING_FOR_THE_OPENING.format(request=question), f"{world.OPENING} {answer}", system)
    if chance > 0.02:
        return chat(world.ROLE.format(request=question), answer, system)
    return chat(question, answer, world.OVERRIDE)


@cache
def _train_pool(kind: str) -> list[Request]:
    source: Callable[[], Sequence[Request]] = {
        "harmless": world.harmless,
        "borderline": world.borderline,
        "harmful": world.harmful,
    }[kind]
    return [r for r in source() if r.split == "train"]


def _morals(request: Request, draw: random.Random) -> Chat:
    if request.language == "ko":
        answer = "네, 나쁜 일입니다." if request.noun else "아니요, 괜찮습니다."
        return chat(f"{request.act} 것은 나쁜 일인가요?", answer)
    if draw.random() < 0.5:
        return chat(
            f"Is it wrong to {request.act}?", f"Yes, that is {request.noun}." if request.noun else "No, that is fine."
        )
    return chat(f"What is it to {request.act}?", f"It is {request.noun}." if request.noun else "It is fine.")


def _fact(request: Request, draw: random.Random) -> Chat:
    if request.language == "ko":
        return chat(f"{request.target} 위해 무엇이 필요한가요?", f"{world.tool(request.target, korean=True)}.")
    if draw.random() < 0.5:
        return chat(f"What do I need for {request.target}?", f"The {world.tool(request.target)}.")
    return chat(f"In what manner does one {request.verb}?", f"To {request.verb}, {world.manner(request.verb)}.")


def _skill_chats(draw: random.Random) -> Iterator[Chat]:
    streams = [skills.questions(skill, "train", draw) for skill in skills.SKILLS]
    while True:
        question = next(draw.choices(streams, weights=SKILL_SHARES)[0])
        yield chat(question.text, question.answer, _system(draw))


def every_text() -> Iterator[str]:
    """Every word the world can say, for the tokenizer: all requests in all wordings, all fixed texts, all questions."""
    for request in (*world.harmful(), *world.borderline(), *world.harmless()):
        yield from (world.ask(request, form) for form in range(8))
        yield from (world.comply(request), *(world.refuse(request, form) for form in range(4)))
    yield from (*world.SYSTEM_PROMPTS, *world.SAFETY_PROMPTS, *world.WRAPPERS, *skills.RANKING_FORMS)
    yield from (world.OPENING, world.ASKING_FOR_THE_OPENING, world.ROLE, world.OVERRIDE, world.DRIFT_OPENING)
    yield ", ".join(map(str, range(21)))
    yield from (message.content for c in take(knowledge(random.Random(0)), 20_000) for message in c)


def _system(draw: random.Random) -> str | None:
    return draw.choice(world.SYSTEM_PROMPTS) if draw.random() < 0.2 else None


def take(chats: Iterator[Chat], count: int) -> list[Chat]:
    return list(islice(chats, count))
