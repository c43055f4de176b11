"""One self-contained page from finished folders."""

from alignkeep.rooms import open_room

open_room(__name__, public={"ReportConfig": "config"})
