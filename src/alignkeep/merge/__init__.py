"""Merge a tuned model with the aligned model it came from: safety back for a little of the tune."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkeep.rooms import open_room

if TYPE_CHECKING:
    from alignkeep.merge.config import MergeConfig as MergeConfig
    from alignkeep.merge.method import Asked as Asked
    from alignkeep.merge.method import MergeMethod as MergeMethod
    from alignkeep.merge.method import TensorMerge as TensorMerge
    from alignkeep.merge.method import merge_tensor as merge_tensor
    from alignkeep.merge.methods import METHODS as METHODS

open_room(
    __name__,
    public={
        "METHODS": "methods", "MergeConfig": "config",
        **dict.fromkeys(("Asked", "MergeMethod", "TensorMerge", "merge_tensor"), "method"),
    },
)  # fmt: skip
