"""Rank-one safety injection: refusal turned up in the weights, or as an adapter of rank 1, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkeep.rooms import open_room

if TYPE_CHECKING:
    from alignkeep.inject.config import InjectConfig as InjectConfig

open_room(__name__, public={"InjectConfig": "config"})
