"""Merge a tuned model with the aligned model it came from: safety back for a little of the tune."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkeep.rooms import open_room

if TYPE_CHECKING:
    from alignkeep.merge.config import MergeConfig as MergeConfig
    from alignkeep.merge.methods import merge_tensor as merge_tensor

open_room(
    __name__,
    public={"MergeConfig": "config", "merge_tensor": "methods"},
)
