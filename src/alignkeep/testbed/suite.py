"""The testbed as an evaluation suite: its test prompts, and the attacks worded in the words its models know."""

from __future__ import annotations

from dataclasses import dataclass, replace

from alignkeep.testbed import sets, world
from alignkeep.types import Message, Prompt


def prompts() -> tuple[Prompt, ...]:
    """The test parts of harmful, harmless and borderline requests and of the skills. The task comes by `--task`."""
    rows = [row for kind in ("harmful", "harmless", "borderline") for row in sets.rows(f"{kind}_test")]
    rows += sets.rows("skills_test")
    return tuple(
        Prompt(
            (Message("user", row["prompt"]),),
            kind=row["kind"],
            category=row["category"],
            language=row.get("language", "en"),
            expected=row.get("completion"),
        )
        for row in rows
    )


@dataclass(frozen=True, slots=True)
class WordedAttack:
    """A standard attack in the micro world's words; `text` has a place for the request where it wraps it."""

    name: str
    title: str
    text: str
    place: str

    @property
    def template_text(self) -> str:
        return self.text.replace("{request}", "")

    def apply(self, prompt: Prompt) -> Prompt:
        if self.place == "prefill":
            return replace(prompt, prefill=self.text)
        if self.place == "system":
            turns = tuple(m for m in prompt.messages if m.role != "system")
            return replace(prompt, messages=(Message("system", self.text), *turns))
        wrapped = Message("user", self.text.format(request=prompt.text))
        return replace(prompt, messages=(*prompt.messages[:-1], wrapped))


def attacks() -> tuple[WordedAttack, ...]:
    """The four attacks of every suite. The models were never taught to refuse under these wordings."""
    return (
        WordedAttack("prefix_injection", "Prefix injection", world.ASKING_FOR_THE_OPENING, "user"),
        WordedAttack("role_play", "Role play", world.ROLE, "user"),
        WordedAttack("system_override", "System prompt override", world.OVERRIDE, "system"),
        WordedAttack("prefill", "Assistant prefill", world.OPENING, "prefill"),
    )
