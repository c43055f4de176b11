"""Examples as plain text: what they ask and what they answer."""

from __future__ import annotations

from alignkeep.types import Example


def asked(example: Example) -> str:
    """Everything before the last answer."""
    return "\n".join(message.content for message in example.messages[:-1])


def answered(example: Example) -> str:
    return example.messages[-1].content


def whole(example: Example) -> str:
    return f"{asked(example)}\n\n{answered(example)}"
