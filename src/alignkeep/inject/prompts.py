"""The prompts of an injection, read, told apart and held against each other before a model is loaded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alignkeep.data import read_prompts, read_texts
from alignkeep.errors import DataError, NoEffectError, RecipeError
from alignkeep.inject.config import SYSTEM_PROMPT, DirectionConfig, InjectConfig
from alignkeep.input_files import read_input
from alignkeep.types import Example, Message, Prompt


@dataclass(frozen=True)
class PromptSets:
    """`harmful` and `harmless` give the direction, `held_harmful`, `held_harmless` and `borderline` judge the edit;
    no prompt is in two of them. On `general` text the edit is to be silent."""

    harmful: tuple[Prompt, ...]
    harmless: tuple[Prompt, ...]
    held_harmful: tuple[Prompt, ...]
    held_harmless: tuple[Prompt, ...]
    borderline: tuple[Prompt, ...]
    general: tuple[Prompt | Example, ...]

    @property
    def held(self) -> tuple[Prompt, ...]:
        """All that judge."""
        return (*self.held_harmful, *self.held_harmless, *self.borderline)


def read_sets(config: InjectConfig) -> PromptSets:
    """The sets, drawn with the seed. Raises DataError for a row of the wrong kind, prompts that stand in both files,
    and fewer of a kind than can be parted."""
    harmful = _of_kind(config.harmful, "harmful", ("harmful",))
    others = _of_kind(config.harmless, "harmless", ("harmless", "borderline", "skill", "task"))
    if config.borderline is not None:
        others = _distinct([*_of_kind(config.borderline, "borderline", ("borderline",)), *others])
    _refuse_overlap(config, harmful, others)
    borderline = [prompt for prompt in others if prompt.kind == "borderline"]
    plain = [prompt for prompt in others if prompt.kind != "borderline"]
    draw = random.Random(f"inject {config.seed}")
    sets = [_parted(config, name, found, draw) for name, found in (("harmful", harmful), ("harmless", plain))]
    (first, held_first), (second, held_second) = sets
    judging = {prompt.messages for prompt in (*held_first, *held_second, *borderline)}
    if config.columns and config.general is None:
        raise NoEffectError(
            "columns", seen="names of columns without a file", expected="`general`, whose columns they are",
            remedy="give --general FILE, or leave them out",
        )  # fmt: skip
    general = _general(config)
    general = [text for text in general if judging.isdisjoint((text.messages, text.messages[:-1]))]
    return PromptSets(
        tuple(first),
        tuple(second),
        tuple(held_first),
        tuple(replace(prompt, kind="harmless") for prompt in held_second),
        tuple(draw.sample(borderline, min(len(borderline), config.direction.held_out))),
        tuple(draw.sample(general, min(len(general), config.edit.tokens))),
    )


def system_prompt(config: DirectionConfig) -> str | None:
    """The text that stands before both sets; a file is read. Raises RecipeError for a file that is not there."""
    if config.system_prompt is None:
        return None
    if config.system_prompt == "default":
        return SYSTEM_PROMPT
    try:
        text = read_input(Path(config.system_prompt)).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            "direction.system_prompt",
            seen=f"{config.system_prompt} ({type(error).__name__})",
            expected="default, or a text file",
            remedy="write the text into a file and give its path",
        ) from error
    if not text:
        raise RecipeError(
            "direction.system_prompt", seen=f"{config.system_prompt}, empty", expected="some text", remedy="fill it in"
        )
    return text


def with_system(prompts: Sequence[Prompt], system: str | None) -> list[Prompt]:
    """The prompts behind a system message, in place of their own."""
    if system is None:
        return list(prompts)
    return [
        replace(
            prompt, messages=(Message("system", system), *(turn for turn in prompt.messages if turn.role != "system"))
        )
        for prompt in prompts
    ]


def _of_kind(reference: str, meant: str, allowed: tuple[str, ...]) -> list[Prompt]:
    found: list[Prompt] = []
    for number, prompt in enumerate(read_prompts(reference), start=1):
        kind = meant if prompt.kind == "unknown" else prompt.kind
        if kind not in allowed:
            raise DataError(
                f"{reference}, row {number}",
                seen=f"a {kind} prompt",
                expected=f"{' or '.join(allowed)} prompts in this file",
                remedy="move the row, or mend its column `kind`",
            )
        found.append(replace(prompt, kind=kind))  # pyright: ignore[reportArgumentType]
    return _distinct(found)


def _distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Each once, whatever else its rows say."""
    return list({prompt.messages: prompt for prompt in reversed(prompts)}.values())[::-1]


def _refuse_overlap(config: InjectConfig, harmful: Sequence[Prompt], others: Sequence[Prompt]) -> None:
    known = {prompt.messages for prompt in harmful}
    shared = [prompt for prompt in others if prompt.messages in known]
    if shared:
        raise DataError(
            config.harmless,
            seen=f"{len(shared)} prompts that stand in {config.harmful} too ({shared[0].text[:40]!r})",
            expected="harmful and harmless prompts that have nothing in common",
            remedy="take them out of one of the files",
        )


def _parted(
    config: InjectConfig, name: str, found: Sequence[Prompt], draw: random.Random
) -> tuple[list[Prompt], list[Prompt]]:
    """A third to judge, up to `held_out`, and of the rest up to `pairs` for the direction."""
    held = min(config.direction.held_out, len(found) // 3)
    if held < 2:
        raise DataError(
            getattr(config, name),
            seen=f"{len(found)} {name} prompts",
            expected="six or more: two thirds give the direction, a third judges the edit",
            remedy="add some; fifty or more of each are usual",
        )
    mixed = draw.sample(list(found), len(found))
    return mixed[held : held + config.direction.pairs], mixed[:held]


def _general(config: InjectConfig) -> Sequence[Prompt | Example]:
    return [] if config.general is None else read_texts(config.general, columns=config.columns)
