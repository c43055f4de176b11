"""The study on a real model: its recipes are whole, cells wait for what they need, and are done once."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "real"))
import study
import table

from alignkeep.recipe import Recipe


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Three cells of which each needs the one before, and a work folder with data."""
    recipes, work = tmp_path / "recipes", tmp_path / "work"
    (work / "data").mkdir(parents=True)
    recipes.mkdir()
    (work / "data" / "rows.jsonl").write_text("one")
    (work / "data" / "test.yaml").write_text("")
    texts = {
        "c_first": "# a word\nmodel: ../../real/data/rows.jsonl\n",
        "b_second": "model: ../../real/runs/c_first/train\n",
        "a_third": "model: ../../real/runs/b_second/merge\n",
    }
    for name, text in texts.items():
        (recipes / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(study, "RECIPES", recipes)
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
    made = []

    def run(command, **named):
        out = Path(command[command.index("--out") + 1])
        made.append(out.name)
        (out / "evaluate").mkdir(parents=True, exist_ok=True)
        (out / "evaluate" / "scorecard.json").write_text(json.dumps({"metrics": {}, "model": str(out / "train")}))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(study.subprocess, "run", run)
    return SimpleNamespace(work=work, recipes=recipes, made=made, root=tmp_path)


def go(world, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["study", "--work", str(world.work), *arguments])
    study.main()


def test_cells_come_after_what_they_need_and_are_done_once(world, monkeypatch):
    go(world, monkeypatch)
    assert world.made == ["c_first", "b_second", "a_third"]
    go(world, monkeypatch)
    assert len(world.made) == 3
    kept = json.loads((world.root / "results" / "a_third.json").read_text())
    # Where the work folder lies is not told.
    assert kept["evaluate/scorecard.json"] == {"metrics": {}, "model": "real/runs/a_third/train"}


def test_a_model_is_made_again_only_for_a_cell_that_is_not_done(world, monkeypatch):
    go(world, monkeypatch)
    shutil.rmtree(world.work / "made")  # another machine: the results are there, the models are not
    go(world, monkeypatch)
    assert len(world.made) == 3
    (world.root / "results" / "a_third.json").unlink()
    go(world, monkeypatch)
    assert world.made[3:] == ["c_first", "b_second", "a_third"]


@pytest.mark.parametrize(
    ("file", "text", "again"),
    [
        ("work/data/rows.jsonl", "two", ["c_first", "b_second", "a_third"]),
        ("recipes/b_second.yaml", "model: ../../real/runs/c_first/train\nseed: 1\n", ["b_second", "a_third"]),
        ("recipes/c_first.yaml", "# other words\nmodel: ../../real/data/rows.jsonl\n", []),
    ],
)
def test_what_changed_is_done_again_and_what_follows_from_it(world, monkeypatch, file, text, again):
    go(world, monkeypatch)
    (world.root / file).write_text(text)
    go(world, monkeypatch)
    assert world.made[3:] == again


def test_a_cell_that_fails_or_takes_too_long_is_named_and_what_needs_it_waits(world, monkeypatch):
    begun = []

    def stopped(command, **named):
        begun.append(command)
        raise study.subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(study.subprocess, "run", stopped)
    with pytest.raises(SystemExit, match=r"not done: c_first, b_second, a_third"):
        go(world, monkeypatch)
    assert not (world.root / "results").exists()
    assert len(begun) == 1, "not begun again for each cell that needs it"


def test_an_unknown_cell_and_missing_data_are_one_line(world, monkeypatch):
    with pytest.raises(SystemExit, match="d_fourth: no recipe of that name"):
        go(world, monkeypatch, "--only", "d_fourth")
    (world.work / "data" / "test.yaml").unlink()
    with pytest.raises(SystemExit, match=r"no data yet; name the folder of the public sets"):
        go(world, monkeypatch)


def test_every_recipe_of_the_study_is_a_recipe_and_needs_cells_that_are_there():
    cells = study.read_cells()
    assert "aligned" in cells
    for cell in cells.values():
        assert Recipe.read(cell.recipe).name == cell.name
        assert set(cell.needs) <= set(cells)


def test_the_page_has_a_row_for_each_cell_that_is_done_and_names_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    rate = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}
    metrics = {"harm_refusal": rate, "over_refusal": rate, "benign_compliance": rate}
    metrics["task_accuracy"] = {**rate, "value": None, "n": 0}
    card = {"metrics": metrics, "base_metrics": {**metrics, "task_accuracy": rate}}
    (tmp_path / "aligned.json").write_text(json.dumps({"evaluate/scorecard.json": card}))
    text = table.filled("before\n<!-- cells: raw aligned sst2 -->\nold\n<!-- end -->\nafter\n")
    assert "| `raw` | 50.0 [25.0, 75.0] | 50.0 [25.0, 75.0] | 50.0 [25.0, 75.0] | 50.0 [25.0, 75.0] |" in text
    assert "| `aligned` | 50.0 [25.0, 75.0] | 50.0 [25.0, 75.0] | 50.0 [25.0, 75.0] | no data |" in text
    assert "Not measured yet: `sst2`." in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert table.filled(text) == text


def test_the_tables_of_the_page_are_those_of_the_results():
    """Write them anew with `python benchmarks/real/table.py`."""
    page = (Path(__file__).parents[1] / "docs" / "real-model.md").read_text(encoding="utf-8")
    assert table.filled(page) == page
    assert "<!-- cells: raw aligned -->" in page
