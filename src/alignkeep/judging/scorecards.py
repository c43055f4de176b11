"""The scorecard of a finished evaluation, read back from its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from alignkeep.checkpoint.files import read_object
from alignkeep.runs.results import read_result
from alignkeep.types import Scorecard

SCORECARD_NAME = "scorecard.json"


def read_scorecard(path: Path) -> tuple[Scorecard, Mapping[str, object]]:
    """A scorecard and its `settings`. Raises DataError naming the file and the field."""
    card = read_result(
        Scorecard, path, writer="alignkeep evaluate", again="evaluate again with --fresh", folded=_folded
    )
    settings = read_object(path).get("settings")
    return card, settings if isinstance(settings, dict) else {}


def _folded(data: Mapping[str, object]) -> dict[str, object]:
    """What is null is as if it were not there."""
    return {"suite": "", "base": None, **{name: value for name, value in data.items() if value is not None}}
