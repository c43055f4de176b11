"""A short model card in Markdown, as model hubs show it: the numbers of the page, and no answer of any model."""

from __future__ import annotations

import math
import re

import yaml

from alignkeep.charts.text import interval, percent, shorten, visible
from alignkeep.report.page import Cell, Page

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|<>~$-])")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def card_of(page: Page) -> str:
    """The card. Names come from files, so they are escaped; equal pages give equal bytes."""
    parts = [_front_matter(page), "<!-- alignkeep model card -->\n", f"# {_plain(page.title)}\n", *_verdict(page)]
    parts += ["## Measured\n", _table(page)]
    parts += ["Each rate with its 95 % interval and the number of answers it rests on.\n"]
    parts += [f"- {_plain(note)}\n" for note in page.notes]
    if page.records:
        parts += ["\n## How it was made\n", *(f"- {_plain(f'{one.title} ({one.summary})')}\n" for one in page.records)]
    if page.bibtex:
        parts += ["\n## Citations\n", f"```bibtex\n{page.bibtex}```\n"]
    return "\n".join(part.rstrip("\n") + "\n" if part.startswith(("#", "|", "-")) else part for part in parts)


def _front_matter(page: Page) -> str:
    facts: dict[str, object] = {"tags": ["alignkeep", "safety", "fine-tuning"]}
    bases = [row.reference for row in page.rows if row.series == 0 and _HUB_ID.fullmatch(row.reference)]
    if bases:
        facts["base_model"] = bases[0]
    names = {method.name for method in page.methods}
    if "sft" in names:
        facts["library_name"] = "peft" if "lora" in names else "transformers"
    return f"---\n{yaml.safe_dump(facts, sort_keys=True)}---\n"


def _verdict(page: Page) -> list[str]:
    lines = []
    for finding in page.findings:
        lines.append(f"**{_plain(finding.label)}** {_plain(finding.headline)} {_plain(finding.evidence)}\n")
        lines += [f"- {_plain(f'{change.name}: {change.amount} ({change.detail})')}\n" for change in finding.changes]
        lines += [f"- {_plain(caution)}\n" for caution in finding.cautions]
    return lines


def _table(page: Page) -> str:
    header = ["Model", *(rate.title for rate in page.columns)]
    lines = [f"| {' | '.join(header)} |", f"| {' | '.join('---' for _ in header)} |"]
    lines += [f"| {' | '.join([_plain(row.label), *(_cell(cell) for cell in row.cells)])} |" for row in page.rows]
    return "\n".join(lines) + "\n"


def _cell(cell: Cell) -> str:
    if math.isnan(cell.estimate.value):
        return "not measured"
    return f"{percent(cell.estimate.value)} ({interval(cell.estimate)}, n {cell.estimate.n})"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", visible(shorten(text, None))).replace("&", "&amp;")
