"""Report: finished folders -> one HTML page that stands alone, and a model card if asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alignkeep.checkpoint.folders import write_text
from alignkeep.errors import DataError, RecipeError
from alignkeep.report.card import card_of
from alignkeep.report.html import render
from alignkeep.report.page import page_of
from alignkeep.report.sources import read_sources

PAGE_NAME = "report.html"
CARD_NAME = "model_card.md"
_OURS = ('<meta name="generator" content="alignkeep', "<!-- alignkeep model card -->")


class ReportResult(NamedTuple):
    """Where the page is, and the card if one was asked for."""

    page: Path
    card: Path | None


def report(
    folders: Sequence[Path],
    *,
    out: Path | None = None,
    card: bool = False,
    title: str | None = None,
    full_answers: bool = False,
) -> ReportResult:
    """Write the page of everything below `folders`, from files alone.

    `out` is the page's file (its name ends in .html) or its folder; default: `report.html` in the first folder. The
    same files give the same bytes. Raises DataError where no scorecard is found or a file is broken, RecipeError where
    the page would replace a file that is not one of ours.
    """
    if not folders:
        raise DataError("report", seen="no folder", expected="one or more", remedy="name the folder of an evaluation")
    page = page_of(read_sources([Path(folder) for folder in folders]), title=title, full_answers=full_answers)
    target = _target(Path(folders[0]), out)
    _refuse_foreign(target)
    beside = target.with_name(CARD_NAME) if card else None
    if beside is not None:
        _refuse_foreign(beside)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, render(page))
    if beside is not None:
        write_text(beside, card_of(page))
    return ReportResult(target, beside)


def _target(first: Path, out: Path | None) -> Path:
    if out is None:
        return first / PAGE_NAME
    return out if out.suffix.lower() in {".html", ".htm"} else out / PAGE_NAME


def _refuse_foreign(path: Path) -> None:
    if not path.exists():
        return
    if path.is_file() and any(mark in path.read_text(encoding="utf-8", errors="replace")[:4000] for mark in _OURS):
        return
    raise RecipeError(
        str(path),
        seen="something alignkeep did not write",
        expected="no file there, or an earlier report",
        remedy="choose another --out, or move it away",
    )
