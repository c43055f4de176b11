"""The published works that `citations.py` refers to; the bibliography itself is `works.jsonl`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Work:
    """One published work. `kind` is its BibTeX entry type; `authors` are in BibTeX order, joined by ` and `."""

    key: str
    kind: str
    authors: str
    title: str
    venue: str
    year: int
    url: str

    def bibtex(self) -> str:
        """The entry, ending without a newline."""
        where = {"article": "journal", "inproceedings": "booktitle"}.get(self.kind, "howpublished")
        fields = {"author": self.authors, "title": f"{{{self.title}}}", where: self.venue, "year": str(self.year)}
        lines = [f"  {name} = {{{value}}}," for name, value in (*fields.items(), ("url", self.url))]
        return "\n".join([f"@{self.kind}{{{self.key},", *lines, "}"])

    def plain(self) -> str:
        """Authors (year), for running text: one or two names, or the first and `et al.`."""
        names = [name.partition(",")[0].strip() for name in self.authors.split(" and ")]
        shown = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
        return f"{shown} ({self.year})"


@cache
def works() -> dict[str, Work]:
    """All works by key, in the order of the file."""
    text = files("alignkeep").joinpath("works.jsonl").read_text(encoding="utf-8")
    found = [Work(**json.loads(line)) for line in text.splitlines()]
    return {work.key: work for work in found}


@dataclass(frozen=True, slots=True)
class Citation:
    """What to cite for a method in use: its name, what it is for, the works it comes from (a key of the bibliography,
    or a Work of your own) and where it departs from them."""

    name: str
    title: str
    sources: tuple[str | Work, ...]
    departures: tuple[str, ...] = ()
