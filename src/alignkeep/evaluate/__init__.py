"""Measure what a model refuses and what it can do, with intervals, alone or against its base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkeep.rooms import open_room

if TYPE_CHECKING:
    from alignkeep.evaluate.config import EvaluateConfig as EvaluateConfig
    from alignkeep.judging.keyword import KeywordJudge as KeywordJudge

open_room(
    __name__,
    public={"EvaluateConfig": "config", "KeywordJudge": "alignkeep.judging.keyword"},
)
