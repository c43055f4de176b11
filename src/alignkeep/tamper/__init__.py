"""How much work it takes to break a model's refusals: after harmful tuning, and after directional ablation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkeep.rooms import open_room

if TYPE_CHECKING:
    from alignkeep.tamper.config import TamperConfig as TamperConfig

open_room(__name__, public={"TamperConfig": "config"})
