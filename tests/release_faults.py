"""Whether the repository says of itself what a tag says: python tests/release_faults.py vX.Y.Z [--dry-run]."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def faults(tag: str, init: str, changelog: str, citation: str, *, dry_run: bool = False) -> list[str]:
    """What is wrong with releasing under this tag, by the texts of `__init__.py`, `CHANGELOG.md` and `CITATION.cff`."""
    version = tag.removeprefix("v")
    told = []
    if not re.fullmatch(r"v\d+\.\d+\.\d+((a|b|rc)\d+)?", tag):
        told.append(f"tag: found {tag!r}, expected vX.Y.Z; tag the commit anew")
    for file, pattern, text in (
        ("src/alignkeep/__init__.py", r'^__version__ = "(.+)"$', init),
        ("CITATION.cff", r"^version: (.+)$", citation),
    ):
        found = re.findall(pattern, text, re.MULTILINE)
        if found != [version]:
            told.append(f"{file}: found version {', '.join(found) or 'none'}, expected {version}; change it or the tag")
    section = re.search(
        rf"^## {re.escape(version)} \(([^)\n]+)\)\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    if section is None or "- " not in section[2]:
        told.append(f"CHANGELOG.md: found no changes below `## {version} (DATE)`; write them")
    elif not re.fullmatch(r"\d{4}-\d\d-\d\d", section[1]) and not dry_run:
        told.append(f"CHANGELOG.md: {version}: found {section[1]!r}, expected the date of the release; write it")
    return told


if __name__ == "__main__":
    [given] = [word for word in sys.argv[1:] if word != "--dry-run"]
    texts = [
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("src/alignkeep/__init__.py", "CHANGELOG.md", "CITATION.cff")
    ]
    if told := faults(given, *texts, dry_run="--dry-run" in sys.argv):
        sys.exit("\n".join(told))
