"""Every family and every verb, family by family in processes of their own, and the table of it: docs/models.md.

    python -m families [--cache DIR] [--jobs 2] [--page docs/models.md] [KIND ...]

What is done already stands in the cache, a JSON file by family, and is not done again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import sys
import tempfile
import time
import warnings
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from alignkeep.cli.session import QUIET
from families.build import kinds
from families.page import page

_ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache", type=Path, default=_ROOT / "build" / "families")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--page", type=Path, default=None)
    parser.add_argument("kinds", nargs="*")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    todo = [kind for kind in given.kinds or kinds() if given.kinds or not (given.cache / f"{kind}.json").exists()]
    with tempfile.TemporaryDirectory() as root:
        _run(todo, given.cache, Path(root), given.jobs)
    if given.page is not None:
        found = {path.stem: json.loads(path.read_text()) for path in given.cache.glob("*.json")}
        given.page.write_text(page(found), encoding="utf-8")


def _run(todo: list[str], cache: Path, root: Path, jobs: int) -> None:
    """Each family in a fork of this process, which has the libraries already."""
    os.environ.update(QUIET)
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    for name in ("families.cells", *(f"alignkeep.{room}.stage" for room in ("train", "merge", "inject", "evaluate"))):
        import_module(name)  # once, and not in every child
    from conftest import build_tiny_model

    tokenizer = build_tiny_model(root / "tokenizer")
    fork, waiting = multiprocessing.get_context("fork"), list(todo)
    running: dict[str, multiprocessing.process.BaseProcess] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            kind = waiting.pop(0)
            running[kind] = fork.Process(target=_examine, args=(kind, tokenizer, root / kind, cache))
            running[kind].start()
        multiprocessing.connection.wait([child.sentinel for child in running.values()])
        for kind in [kind for kind, child in running.items() if not child.is_alive()]:
            code = running.pop(kind).exitcode
            if not (cache / f"{kind}.json").exists():
                _write(cache, kind, {"unbuilt": f"the process ended with {code}"})


def _examine(kind: str, tokenizer: Path, root: Path, cache: Path) -> None:
    import shutil

    from families.cells import UnbuiltError, examine

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    started = time.monotonic()
    try:
        cells = examine(kind, tokenizer, root)
        found = {verb: list(cell) for verb, cell in cells.items()}
    except UnbuiltError as error:
        found = {"unbuilt": str(error)}
    _write(cache, kind, {**found, "seconds": round(time.monotonic() - started, 1)})
    shutil.rmtree(root, ignore_errors=True)


def _write(cache: Path, kind: str, found: dict[str, object]) -> None:
    beside = cache / f".{kind}.tmp"
    beside.write_text(json.dumps(found, indent=1))
    beside.replace(cache / f"{kind}.json")


if __name__ == "__main__":
    main()
