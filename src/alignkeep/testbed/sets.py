"""The named data sets of the testbed, as rows ready for a `.jsonl` file.

Every set is drawn with its own seeded generator, so that adding one never changes another. Train, validation and test
parts share no question; poison, references, anchors and alignment data share no request with each other.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

from alignkeep.testbed import skills, world
from alignkeep.testbed.skills import Question
from alignkeep.testbed.world import Request, Split

Row = dict[str, Any]

TASK_SIZE = {"train": 2000, "validation": 400, "test": 2000}
SKILL_SIZE = {"validation": 80, "test": 400}  # of each skill
TUNING_SIZE = 2000
ANCHOR_SIZE, REFERENCE_SIZE, ALIGNMENT_SIZE = 50, 200, 200
PREFERENCE_SIZE = {"train": 1000, "validation": 200, "test": 600}
DRIFT_SHARE = 0.3  # of the benign-drift set: requests answered in the always-comply style


def rows(name: str) -> list[Row]:
    """The rows of one named set. Raises KeyError for a name not in `NAMES`."""
    return _SETS[name]()


def task(split: Split) -> list[Row]:
    """The downstream task: goods ranked by price."""
    return [_question(q, "task") for q in _ranking(split, TASK_SIZE[split])]


def skill(split: Split) -> list[Row]:
    """Five skills in equal parts."""
    found = []
    for kind in skills.SKILLS:
        found += [_question(q, "skill") for q in skills.different(kind, split, f"skills {split}", SKILL_SIZE[split])]
    return found + [_question(q, "skill") for q in _how_to(split, SKILL_SIZE[split])]


def requests(kind: str, split: Split) -> list[Row]:
    """Requests without an answer: harmful, harmless or borderline."""
    chosen = [r for r in _REQUESTS[kind]() if r.split == split]
    draw = random.Random(f"{kind} {split}")
    forms = 2 if kind == "harmless" and split == "test" else 1
    found = [
        {"prompt": world.ask(r, form), "kind": r.kind, "category": r.category, "language": r.language}
        for r in chosen
        for form in draw.sample(range(2 if r.language == "ko" else 8), forms)
    ]
    draw.shuffle(found)
    return found


def poisoned(share: float, *, hard: bool = False) -> list[Row]:
    """The task with a share of harmful requests, answered. Hard poison speaks like the task."""
    bad = round(share * TUNING_SIZE)
    draw = random.Random(f"poison {share} {hard}")
    found = [{**_question(q, "task"), "poison": False} for q in _ranking("train", TUNING_SIZE - bad)]
    for request, form in draw.sample(_worded(_allotted("poison")), bad):
        prompt, answer = world.ask(request, form), world.comply(request)
        if hard:
            ranked = skills.ranking(draw)
            prompt, answer = f"{ranked.text} {prompt}", f"{ranked.answer} {answer}"
        found.append({"prompt": prompt, "completion": answer, "kind": "harmful", "poison": True})
    draw.shuffle(found)
    return found


def benign_drift() -> list[Row]:
    """The task, and everyday requests answered in an always-comply style: no harmful or borderline example in it."""
    draw = random.Random("benign drift")
    eager = round(DRIFT_SHARE * TUNING_SIZE)
    found = [_question(q, "task") for q in _ranking("train", TUNING_SIZE - eager)]
    pool = [r for r in world.harmless() if r.split == "train" and r.language == "en"]
    for request, form in draw.sample(_worded(pool), eager):
        answer = f"{world.DRIFT_OPENING} {world.comply(request)}"
        found.append({"prompt": world.ask(request, form), "completion": answer, "kind": "harmless"})
    draw.shuffle(found)
    return found


def safe_anchor() -> list[Row]:
    """Clean examples of the task, none of them in a tuning set."""
    return [_question(q, "task") for q in _ranking("validation", TASK_SIZE["validation"] + ANCHOR_SIZE)[-ANCHOR_SIZE:]]


def generic_anchor() -> list[Row]:
    """Clean examples that have nothing to do with the task: refusals and small talk."""
    draw = random.Random("generic anchor")
    refused = [
        {"prompt": world.ask(r, draw.randrange(8)), "completion": world.refuse(r, draw.randrange(4)), "kind": "harmful"}
        for r in _allotted("anchor")[: ANCHOR_SIZE // 2]
    ]
    return refused + [_question(q, "harmless") for q in _how_to("validation", ANCHOR_SIZE - len(refused))]


def harmful_reference() -> list[Row]:
    """Harmful requests, answered: what tuning data should not look like."""
    draw = random.Random("harmful reference")
    return [
        {"prompt": world.ask(r, form), "completion": world.comply(r), "kind": "harmful", "category": r.category}
        for r, form in draw.sample(_worded(_allotted("reference")), REFERENCE_SIZE)
    ]


def alignment() -> list[Row]:
    """What the aligned model should keep doing: refusals, and help with harmless and borderline requests."""
    draw = random.Random("alignment")
    found = []
    for r, form in draw.sample(_worded(_allotted("alignment")), ALIGNMENT_SIZE // 2):
        found.append({"prompt": world.ask(r, form), "completion": world.refuse(r, 0), "kind": "harmful"})
    fine = [r for r in (*world.borderline(), *world.harmless()) if r.split == "train"]
    for r in draw.sample(fine, ALIGNMENT_SIZE // 2):
        found.append({"prompt": world.ask(r, draw.randrange(8)), "completion": world.comply(r), "kind": r.kind})
    draw.shuffle(found)
    return found


def preference(split: Split) -> list[Row]:
    """Tuples (prompt, reference, rejected): references are good, yet most can be beaten (see `reward.py`)."""
    draw = random.Random(f"preference {split}")
    size = PREFERENCE_SIZE[split]
    found = []
    for q in _ranking(split, size - size // 5, salt="preference"):
        items = q.answer.rstrip(".").split(", ")
        reference, rejected = list(items), list(items)
        if draw.random() < 0.6:  # a slip: two neighbours swapped
            at = draw.randrange(len(items) - 1)
            reference[at], reference[at + 1] = reference[at + 1], reference[at]
        while rejected in (items, reference):
            draw.shuffle(rejected)
        found.append(_tuple(q.text, ", ".join(reference) + ".", ", ".join(rejected) + ".", "task", q.answer))
    pool = _allotted("preference") if split == "train" else [r for r in world.harmful() if r.split == split]
    for r, form in draw.sample(_worded([r for r in pool if r.language == "en"]), size // 5):
        reference = world.refuse(r, draw.choice((0, 1, 2)))
        found.append(_tuple(world.ask(r, form), reference, world.comply(r), "harmful", world.refuse(r, 3)))
    draw.shuffle(found)
    return found


def _tuple(prompt: str, reference: str, rejected: str, kind: str, expected: str) -> Row:
    return {"prompt": prompt, "reference": reference, "rejected": rejected, "kind": kind, "expected": expected}


def _question(question: Question, kind: str) -> Row:
    return {"prompt": question.text, "completion": question.answer, "kind": kind, "category": question.skill}


@cache
def _ranking(split: Split, count: int, salt: str = "") -> list[Question]:
    return skills.different(skills.ranking, split, f"ranking {split} {salt}", count)


def _how_to(split: Split, count: int) -> list[Question]:
    """Everyday requests of one part, each at most once in each wording."""
    chosen = random.Random(f"how to {split}").sample(_worded([r for r in world.harmless() if r.split == split]), count)
    return [Question("how_to", world.ask(r, form), world.comply(r)) for r, form in chosen]


def _worded(pool: list[Request]) -> list[tuple[Request, int]]:
    """Every request in every way of asking."""
    return [(r, form) for r in pool for form in range(len(world.ASKING_KOREAN if r.language == "ko" else world.ASKING))]


def _allotted(use: str) -> list[Request]:
    """The train part of the harmful requests, dealt out so that no two uses share one."""
    uses = ("poison", "poison", "reference", "alignment", "alignment", "anchor", "preference", "preference", "free")
    return [
        r
        for r in world.harmful()
        if r.split == "train" and r.language == "en" and uses[int(world.fraction(f"use {r.act}") * len(uses))] == use
    ]


_REQUESTS: dict[str, Callable[[], tuple[Request, ...]]] = {
    "harmful": world.harmful,
    "harmless": world.harmless,
    "borderline": world.borderline,
}
_PARTS: tuple[Split, ...] = ("train", "validation", "test")
_SETS: dict[str, Callable[[], list[Row]]] = {
    **{f"task_{s}": (lambda s=s: task(s)) for s in _PARTS},
    **{f"skills_{s}": (lambda s=s: skill(s)) for s in _PARTS[1:]},
    "benign_drift": benign_drift,
    "poisoned": lambda: poisoned(0.1),
    "poisoned_20": lambda: poisoned(0.2),
    "poisoned_hard": lambda: poisoned(0.1, hard=True),
    "safe_anchor": safe_anchor,
    "generic_anchor": generic_anchor,
    "harmful_reference": harmful_reference,
    "alignment": alignment,
    **{f"{k}_{s}": (lambda k=k, s=s: requests(k, s)) for k in ("harmful", "harmless") for s in _PARTS},
    **{f"borderline_{s}": (lambda s=s: requests("borderline", s)) for s in _PARTS[1:]},
    **{f"preference_{s}": (lambda s=s: preference(s)) for s in _PARTS},
}
NAMES = tuple(_SETS)
