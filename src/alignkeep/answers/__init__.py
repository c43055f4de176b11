"""The base's own answers to prompts: alignment data for merges and defences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkeep.rooms import open_room

if TYPE_CHECKING:
    from alignkeep.answers.stage import AnswersConfig as AnswersConfig

open_room(__name__, public={"AnswersConfig": "stage"})
