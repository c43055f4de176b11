"""Settings of the report."""

from __future__ import annotations

from pydantic import Field

from alignkeep.settings import Checked


class ReportConfig(Checked):
    """Which folders to read, and how much of their answers to show.

    `card` also writes a model card in Markdown; `full_answers` shows every answer unshortened and unfolded, harmful
    ones too. `policy` (`default` or a YAML file) decides which model the page says to ship.
    """

    folders: list[str] = Field(default_factory=list)
    card: bool = False
    title: str | None = None
    full_answers: bool = False
    policy: str = "default"
