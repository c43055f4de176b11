"""The prompts that are put to a model for measuring it: read from files, held apart, and drawn where they are many."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from alignkeep.data import Read, read_prompts
from alignkeep.errors import DataError
from alignkeep.types import Prompt

MOST_UNKNOWN = 0.5  # chosen: a text of which the model cannot read every second word asks nothing


def limit_prompts(prompts: Sequence[Prompt], limit: int | None, seed: int) -> tuple[Prompt, ...]:
    """At most `limit` prompts of every kind, drawn with `seed`, in their old order; None: all.

    Categories and languages keep their shares within a kind, up to one prompt: every N-th of the prompts sorted by them
    (systematic sampling), so that a rate over the sample estimates the rate over all.
    """
    if limit is None:
        return tuple(prompts)
    of_kind: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        of_kind.setdefault(prompt.kind, []).append(index)
    kept: list[int] = []
    for kind, indices in of_kind.items():
        draw = random.Random(f"{seed} {kind}")
        shuffled = draw.sample(indices, len(indices))
        shuffled.sort(key=lambda index: (prompts[index].category or "", prompts[index].language))
        step, offset = max(len(shuffled) / limit, 1.0), draw.random()
        kept += [shuffled[int((turn + offset) * step)] for turn in range(min(limit, len(shuffled)))]
    return tuple(prompts[index] for index in sorted(kept))


def halves(prompts: Sequence[Prompt]) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Two halves without a prompt in common, always the same, each in the old order: of every kind, category and
    language one half each, up to one prompt. What chose by the first can be judged by the second."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    first_of: dict[tuple[object, ...], int] = {}
    for index, prompt in enumerate(prompts):
        if first_of.setdefault(prompt.messages, index) == index:
            groups.setdefault((prompt.kind, prompt.category or "", prompt.language), []).append(index)
    mixed = [
        index
        for key in sorted(groups)
        for index in random.Random(f"halves {key}").sample(groups[key], len(groups[key]))
    ]
    first = {index for place, index in enumerate(mixed) if place % 2 == 0}
    chosen = [first_of[prompt.messages] in first for prompt in prompts]
    pairs = list(zip(prompts, chosen, strict=True))
    return tuple(one for one, is_first in pairs if is_first), tuple(one for one, is_first in pairs if not is_first)


def harm_prompts(reference: str) -> list[Prompt]:
    """Rows that are harmful unless their column `kind` says otherwise. Raises DataError for task prompts among them,
    skills without an answer, and where none is harmful."""
    found: list[Prompt] = []
    for number, prompt in enumerate(read_prompts(reference), start=1):
        kind = "harmful" if prompt.kind == "unknown" else prompt.kind
        if kind == "task" or (kind == "skill" and prompt.expected is None):
            raise DataError(
                f"{reference}, row {number}",
                seen="a task prompt" if kind == "task" else "a skill prompt without its right answer",
                expected="harmful prompts, and harmless, borderline and skill prompts marked as such by `kind`",
                remedy="put it into the file of the task" if kind == "task" else "add a column `expected`",
            )
        found.append(Prompt(prompt.messages, kind, prompt.category, prompt.language, prompt.expected))
    counts = Counter(prompt.kind for prompt in found)
    if not counts["harmful"]:
        raise DataError(
            reference,
            seen=f"no harmful prompt ({', '.join(f'{count} {kind}' for kind, count in counts.items())})",
            expected="harmful prompts, whose refusal is what safety is measured by",
            remedy="add some, with kind `harmful` or without the column",
        )
    return found


def task_prompts(reference: str, *, remedy: str, columns: Mapping[str, str] | None = None) -> Read[Prompt]:
    """Rows with one right answer each; `columns` as for `read_prompts`. Raises DataError, with this remedy, for one
    that has none."""
    found = read_prompts(reference, kind="task", columns=columns or {})
    for number, prompt in enumerate(found, start=1):
        if prompt.expected is None:
            raise DataError(
                f"{reference}, row {number}",
                seen="a prompt without its right answer",
                expected="a column `expected` (or `completion`) in every row of a task",
                remedy=remedy,
            )
    return found


def check_apart(asked: Sequence[Prompt], prompts: str, task: str) -> None:
    """No prompt is asked both for the task and for safety: its answer cannot be good in both."""
    tasks = {prompt.messages for prompt in asked if prompt.kind == "task"}
    shared = [prompt for prompt in asked if prompt.kind != "task" and prompt.messages in tasks]
    if shared:
        raise DataError(
            task,
            seen=f"{len(shared)} prompts that stand in {prompts} too ({shared[0].text[:40]!r})",
            expected="a task and safety prompts that have nothing in common",
            remedy="take them out of one of the files",
        )
