"""The adapter that a tune trains, and the rates it takes where none is given."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from alignkeep.settings import Checked


class LoraSettings(Checked):
    """A low-rank adapter: each targeted matrix gains alpha / rank * B A, B starting at 0.

    `target_modules` is "all-linear" (every linear layer but the head, as PEFT understands it) or a list of module
    names, whole or the last part; each of them has to match something.
    """

    rank: int = Field(default=8, gt=0, le=100_000)
    alpha: float = Field(default=16, gt=0, le=1e6)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
