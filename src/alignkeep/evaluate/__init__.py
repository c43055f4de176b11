"""Measure what a model refuses and what it can do, with intervals, alone or against its base."""

from alignkeep.rooms import open_room

open_room(
    __name__,
    public={"EvaluateConfig": "config", "KeywordJudge": "alignkeep.judging.keyword"},
)
