"""Rank-one safety injection: refusal turned up in the weights, or as an adapter of rank 1, without training."""

from __future__ import annotations

from alignkeep.rooms import open_room

open_room(__name__, public={"InjectConfig": "config"})
