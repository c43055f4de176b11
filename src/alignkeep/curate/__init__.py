"""Which examples to learn from: optimal transport to safe and from harmful data, and four scores beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkeep.rooms import open_room

if TYPE_CHECKING:
    from alignkeep.curate.config import CurateConfig as CurateConfig
    from alignkeep.curate.config import EmbedSettings as EmbedSettings
    from alignkeep.curate.method import CurationMethod as CurationMethod
    from alignkeep.curate.method import Given as Given
    from alignkeep.curate.method import Scores as Scores
    from alignkeep.curate.methods.sot import SotSettings as SotSettings
    from alignkeep.curate.stage import CurateResult as CurateResult

open_room(
    __name__,
    {
        "CurateConfig": "config",
        "SotSettings": "alignkeep.curate.methods.sot",
        "EmbedSettings": "config",
        "CurateResult": "stage",
        "CurationMethod": "method",
        "Given": "method",
        "Scores": "method",
    },
)
