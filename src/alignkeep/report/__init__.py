"""One self-contained page from finished folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkeep.rooms import open_room

if TYPE_CHECKING:
    from alignkeep.report.config import ReportConfig as ReportConfig

open_room(__name__, public={"ReportConfig": "config"})
