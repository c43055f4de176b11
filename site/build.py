"""The documentation as a site: python site/build.py, or make site. It is written to build/site/html.

The pages are Markdown that is read on GitHub too. What the site needs beside it is made here, in a copy:

    pages      README.md becomes its first page; links are those of the site; fences lose their `no-run: reason`
    reference  a page for every public name of the package, from signatures and docstrings, which are read, not run

Needs the packages of site/requirements.txt and nothing of the package's own.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
MADE = ROOT / "build" / "site"
MOVED = {"README.md": "index.md", "README.ko.md": "ko/index.md"}  # besides: docs/NAME.md is NAME.md
LINK = re.compile(r"(!?\[[^\]]*\]\()(?!https?://|#)([^)#\s]+)")
FENCE = re.compile(r"^```(\w+) no-run: .*$", re.MULTILINE)


def main() -> None:
    shutil.rmtree(MADE, ignore_errors=True)
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        write(place(page), rewritten(page))
    for name, text in reference().items():
        write(Path("reference") / name, text)
    for name in ("style.css", "access.js"):
        shutil.copy(ROOT / "site" / name, MADE / "pages" / name)
    shutil.copy(ROOT / "site" / "mkdocs.yml", MADE / "mkdocs.yml")
    tool = Path(sys.executable).with_name("zensical")
    sys.exit(subprocess.run([tool, "build", "--strict", "--clean"], cwd=MADE, check=False).returncode)


def place(file: Path) -> Path:
    """Where a file of the repository stands among the pages of the site."""
    name = file.relative_to(ROOT).as_posix()
    return Path(MOVED.get(name, name.removeprefix("docs/")))


def write(name: Path, text: str) -> None:
    path = MADE / "pages" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def rewritten(page: Path) -> str:
    """A page with links to where its targets stand on the site. A file that is no page is copied beside them."""

    def moved(match: re.Match[str]) -> str:
        target = (page.parent / match[2]).resolve()
        if target.suffix != ".md":
            (MADE / "pages" / place(target)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(target, MADE / "pages" / place(target))
        return match[1] + os.path.relpath(place(target), place(page).parent)

    return FENCE.sub(r"```\1", LINK.sub(moved, page.read_text(encoding="utf-8")))


def reference() -> dict[str, str]:
    """A page for every public name with its settings and its result, and one for the settings within settings."""
    package = griffe.load("alignkeep", search_paths=[str(ROOT / "src")])
    shown: dict[str, list[str]] = {}
    for name, path in sorted(public().items(), key=lambda item: ".stage." not in item[1]):  # a stage has its own config
        own = package[path.removeprefix("alignkeep.")]
        kinds = [own.parameters["config"].annotation] if own.is_function and "config" in own.parameters else []
        kinds += [own.returns] if own.is_function else []
        shown[name] = [path, *classes(package, kinds)]
    reached = {path for paths in shown.values() for path in paths}
    inner: list[str] = []
    while reached:
        kinds = [one.annotation for path in reached for one in fields(package[path.removeprefix("alignkeep.")])]
        known = {*inner, *(path for paths in shown.values() for path in paths)}
        reached = {path for path in classes(package, kinds) if path.endswith("Config") and path not in known}
        inner += sorted(reached)
    shown["settings"] = sorted(inner)
    first: set[str] = set()  # each stands once: a second place would leave links in doubt
    pages = {}
    for name, paths in shown.items():
        pages[f"{name}.md"] = page_of(name, [path for path in paths if path not in first])
        first |= set(paths)
    return pages


def page_of(name: str, paths: list[str]) -> str:
    if name == "settings":
        return "\n".join(["# Settings within settings", *map(directive, paths)])
    text = directive(paths[0], f"alignkeep.{name}", 1)
    if any(path.endswith("Config") for path in paths):
        text += f"\n\nThe settings may be given by name in place of a config: `alignkeep.{name}(KEY=..., out=...)`.\n"
    return "\n".join([text, *map(directive, paths[1:])])


def directive(path: str, heading: str = "", level: int = 2) -> str:
    options = {"heading_level": level, "heading": heading or path.rpartition(".")[2]}
    return "\n".join([f"::: {path}", "    options:", *(f"      {key}: {value}" for key, value in options.items()), ""])


def classes(package: griffe.Object, kinds: list[object]) -> list[str]:
    """The classes of the package that annotations name, each once."""
    exprs = [kind for kind in kinds if isinstance(kind, griffe.Expr)]
    parts = [part for kind in exprs for part in kind.iterate(flat=True) if isinstance(part, griffe.ExprName)]
    paths = dict.fromkeys(part.canonical_path for part in parts if part.canonical_path.startswith("alignkeep."))
    return [path for path in paths if package[path.removeprefix("alignkeep.")].is_class]


def fields(kind: griffe.Object) -> list[griffe.Attribute]:
    return list(kind.attributes.values()) if kind.is_class else []


def public() -> dict[str, str]:
    """The public names of the package, and where they are written: what its `__init__` tells a type checker."""
    tree = ast.parse((ROOT / "src" / "alignkeep" / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {one.name: f"{node.module}.{one.name}" for node in imports for one in node.names if one.asname}


if __name__ == "__main__":
    main()
