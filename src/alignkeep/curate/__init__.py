"""Which examples to learn from: optimal transport to safe and from harmful data, and four scores beside it."""

from __future__ import annotations

from alignkeep.rooms import open_room

open_room(
    __name__,
    {
        "CurateConfig": "config",
        "SotSettings": "config",
        "EmbedSettings": "config",
        "CurateResult": "stage",
    },
)
