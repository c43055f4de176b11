"""The notebooks run: the code cells of each, in their order and in one namespace, on the tiny models."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from test_docs import ROOT, Block, run_python

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_stored_without_what_it_printed(notebook: Path, tmp_path: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert cells[0]["cell_type"] == "markdown"
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    sources = ["".join(cell["source"]) for cell in code]
    for source in sources:
        ast.parse(source)
    here = tmp_path / "here"
    here.mkdir()
    done = run_python(here, Block("python", "", "\n".join(sources), notebook.name))
    assert done.code == 0, done.stderr[-3000:]


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == {
        "is_my_tune_still_safe", "give_it_back", "which_rows_did_it", "add_a_method",
    }  # fmt: skip
