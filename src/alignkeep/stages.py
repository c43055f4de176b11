"""The stages of a recipe, in the order of a tune's life. A stage more is a room and one line here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from alignkeep import citations
from alignkeep.align.stage import ALIGN
from alignkeep.curate.stage import CURATE
from alignkeep.evaluate.stage import EVALUATE
from alignkeep.inject.stage import INJECT
from alignkeep.merge.stage import MERGE
from alignkeep.stage import Stage
from alignkeep.tamper.stage import TAMPER
from alignkeep.train.stage import TRAIN

STAGES: tuple[Stage[Any, Any, Any], ...] = (CURATE, TRAIN, ALIGN, MERGE, INJECT, EVALUATE, TAMPER)


def stage_named(name: str) -> Stage[Any, Any, Any] | None:
    """The stage of this name; None for a name that no stage has."""
    return next((stage for stage in STAGES if stage.name == name), None)


def methods_of(
    name: str, settings: Mapping[str, Any], metrics: Iterable[str] | None = None
) -> tuple[citations.Cited, ...]:
    """Citations of the methods that a stage with these settings uses, by the names that `citations` has an entry for;
    none for an unknown stage. `metrics` are the names that were measured, None where nothing was yet."""
    stage = stage_named(name)
    return () if stage is None else citations.known(stage.methods(settings, metrics))
