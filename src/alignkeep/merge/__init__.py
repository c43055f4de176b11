"""Merge a tuned model with the aligned model it came from: safety back for a little of the tune."""

from alignkeep.rooms import open_room

open_room(
    __name__,
    public={"MergeConfig": "config", "merge_tensor": "methods"},
)
