"""Report: finished folders -> one HTML page that stands alone, and a model card if asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alignkeep.charts.document import render
from alignkeep.checkpoint.files import machine_errors, write_text
from alignkeep.checkpoint.listing import PAGE_MARKS
from alignkeep.errors import RecipeError
from alignkeep.policy.bounds import DEFAULT, Policy, read_policy
from alignkeep.report.card import card_of
from alignkeep.report.examples import FIRST
from alignkeep.report.page import Page, page_of
from alignkeep.report.sources import Sources, read_sources

PAGE_NAME = "report.html"
CARD_NAME = "model_card.md"


class ReportResult(NamedTuple):
    """Where the page is, and the card if one was asked for."""

    page: Path
    card: Path | None


def plan(
    folders: Sequence[Path], *, out: Path | None = None, card: bool = False, policy: str = DEFAULT
) -> dict[str, object]:
    """Which evaluations `report` would read and what it would write. Raises its errors, touches nothing."""
    sources = read_sources([Path(folder) for folder in folders])
    page_of(sources, policy=read_policy(policy))
    targets = _targets(folders, out, card)
    return {
        "stage": "report",
        "reads": [str(evaluation.folder) for evaluation in sources.evaluations],
        "writes": [str(target) for target in targets],
    }


def report(
    folders: Sequence[Path],
    *,
    out: Path | None = None,
    card: bool = False,
    title: str | None = None,
    full_answers: bool = False,
    policy: str | Policy = DEFAULT,
) -> ReportResult:
    """Write the page of everything below `folders`, from files alone.

    `out` is the page's file (its name ends in .html) or its folder; default: `report.html` in the first folder. The
    `policy` (`default`, a YAML file, or a Policy) decides which model the page says to ship. The same files give the
    same bytes. Raises DataError where no scorecard is found or a file is broken, RecipeError where the page would
    replace a file that is not one of ours, or the policy was set for another suite or judge.
    """
    rules = policy if isinstance(policy, Policy) else read_policy(policy)
    sources = read_sources([Path(folder) for folder in folders])
    target, *beside = _targets(folders, out, card)
    with machine_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    page = write_page(target, sources, policy=rules, title=title, full_answers=full_answers)
    for path in beside:
        write_text(path, card_of(page))
    return ReportResult(target, beside[0] if beside else None)


def write_page(
    target: Path, sources: Sources, *, policy: Policy | None = None, title: str | None = None,
    full_answers: bool = False,
) -> Page:  # fmt: skip
    """Write the page of what was read, and return what it says."""
    page = page_of(sources, policy=policy, title=title, full_answers=full_answers)
    script = "answers.js" if page.sections else None
    write_text(target, render(__name__, "template.html", page, script, first=FIRST))
    return page


def _targets(folders: Sequence[Path], out: Path | None, card: bool) -> list[Path]:
    """The page and, if asked for, the card beside it. Raises RecipeError where one would replace a foreign file."""
    where = Path(folders[0]) if out is None else out
    is_page = out is not None and out.suffix.lower() in {".html", ".htm"}
    if not is_page and where.is_file():
        raise RecipeError(
            f"--out {where}", seen="a file", expected="a folder, or a page NAME.html", remedy="choose another --out"
        )
    page = where if is_page else where / PAGE_NAME
    targets = [page, page.with_name(CARD_NAME)] if card else [page]
    for target in targets:
        _refuse_foreign(target)
    return targets


def _refuse_foreign(path: Path) -> None:
    if not path.exists():
        return
    if path.is_file() and any(mark in path.read_text(encoding="utf-8", errors="replace")[:4000] for mark in PAGE_MARKS):
        return
    raise RecipeError(
        str(path),
        seen="something alignkeep did not write",
        expected="no file there, or an earlier report",
        remedy="choose another --out, or move it away",
    )
