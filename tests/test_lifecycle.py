"""A recipe from end to end: killed at any instant it ends the same, finished work is kept, changed work is redone."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from alignkeep import lifecycle
from alignkeep.errors import RecipeError
from alignkeep.recipe import Recipe
from command import command, finished, start, wait_until
from micro import write_recipe, write_rows


class Labels:
    """Progress that remembers what was begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def start(self, label: str, total: int | None) -> None:
        self.begun.append(label.split()[0])

    def advance(self, n: int = 1, note: str = "") -> None:
        pass

    def done(self) -> None:
        pass


class Deadly(Labels):
    """Progress that kills its own process at the `count`-th step or batch."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def advance(self, n: int = 1, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def run_and_die(recipe: Path, out: Path, count: int) -> None:
    lifecycle.run(Recipe.read(recipe), out=out, progress=Deadly(count))


def run(recipe: Path, out: Path, *assignments: str, resume: bool = True) -> list[str]:
    """Run, and tell which pieces of work were begun."""
    labels = Labels()
    lifecycle.run(Recipe.read(recipe, assignments=assignments), out=out, progress=labels, resume=resume)
    return labels.begun


def contents(folder: Path) -> dict[str, object]:
    """Every file but the records and the page, which hold the seconds spent. Of rows the keys may be in any order."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in {"record.json", "report.html"}]
    return {
        str(path.relative_to(folder)): [json.loads(line) for line in path.read_text().splitlines()]
        if path.suffix == ".jsonl"
        else path.read_bytes()
        for path in paths
    }


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return write_recipe(tmp_path_factory.mktemp("micro"), tiny_model)


@pytest.fixture(scope="module")
def finished_run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert run(recipe, out) == ["train", "answers", "answers"]
    return out


def test_a_run_killed_again_and_again_ends_as_one_that_was_not(recipe: Path, finished_run: Path) -> None:
    kept = finished_run.with_name("kept")
    finished_run.rename(kept)
    try:
        codes = []
        # 13 of 46 steps and batches: twice in training, then in the answers.
        for _ in range(8):
            child = start(run_and_die, recipe, finished_run, 13)
            child.join(timeout=60)
            codes.append(child.exitcode)
            if child.exitcode == 0:
                break
        assert codes[:-1] == [-signal.SIGKILL] * (len(codes) - 1)
        assert codes[-1] == 0
        assert len(codes) >= 4
        assert contents(finished_run) == contents(kept)
    finally:
        shutil.rmtree(finished_run)
        kept.rename(finished_run)


def test_what_is_finished_is_not_done_again(recipe: Path, finished_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    assert run(recipe, finished_run) == []
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == before


def test_changed_data_is_trained_on_and_measured_again(recipe: Path, tmp_path: Path, tiny_model: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", tiny_model)
    out = tmp_path / "run"
    assert run(recipe, out, "train.epochs=1") == ["train", "answers", "answers"]
    first = contents(out)
    write_rows(recipe.parent / "data.jsonl", [{"prompt": "how do i sort ?", "completion": "please , sort low ."}] * 16)
    assert run(recipe, out, "train.epochs=1") == ["train", "answers", "answers"]
    second = contents(out)
    assert second["train/adapter_model.safetensors"] != first["train/adapter_model.safetensors"]
    assert json.loads((out / "train" / "record.json").read_text())["result"]["examples"] == 16
    write_rows(recipe.parent / "harmful.jsonl", [{"prompt": "how to steal bread ?"}])
    assert run(recipe, out, "train.epochs=1") == ["answers", "answers"]


def test_the_page_is_made_again_when_it_is_gone_or_another_one_is_wanted(recipe: Path, finished_run: Path) -> None:
    page = finished_run / "report.html"
    page.unlink()
    assert run(recipe, finished_run) == []
    assert "Micro tune" in page.read_text()
    run(recipe, finished_run, "report.title=Another name")
    assert "Another name" in page.read_text()


def test_another_recipe_does_not_get_the_folder(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="another run"):
        run(recipe, finished_run, "name=other")
    (tmp_path / "own.txt").touch()
    with pytest.raises(RecipeError, match="did not write"):
        run(recipe, tmp_path)


def test_an_alignment_stands_behind_a_tune_and_before_a_merge(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "own", tiny_model)
    rows = [{"prompt": f"how to fix {i} bike ?", "reference": f"sure , fix {i} ."} for i in range(8)]
    write_rows(recipe.parent / "prompts.jsonl", rows)
    text = recipe.read_text().replace("train:\n", "train:\n  method: full\n")
    more = "align: {data: prompts.jsonl, reward: 'rewards:overlap', lora: null, batch_size: 2, learning_rate: 1e-3, "
    more += "sampling: {group: 2, max_new_tokens: 6}}\nmerge: {weight: 0.5}\n"
    recipe.write_text(text.replace("evaluate:\n", more + "evaluate:\n", 1))
    begun = run(recipe, tmp_path / "out")
    assert [label for label in dict.fromkeys(begun) if label in ("train", "align")] == ["train", "align"]
    record = json.loads((tmp_path / "out" / "align" / "record.json").read_text())
    assert record["config"]["model"] == str(tmp_path / "out" / "train")
    merged = json.loads((tmp_path / "out" / "merge" / "record.json").read_text())
    assert merged["config"]["tuned"] == [str(tmp_path / "out" / "align")]
    assert "Online alignment" in (tmp_path / "out" / "report.html").read_text()
    assert run(recipe, tmp_path / "out") == []


def test_an_evaluation_alone_measures_the_model_without_a_base(recipe: Path, tmp_path: Path, tiny_model: Path) -> None:
    values = {"name": "only", "model": str(tiny_model), "evaluate": {"suite": str(recipe.parent / "suite.yaml")}}
    values["evaluate"] |= {"attacks": "none", "generation": {"max_new_tokens": 4}}
    result = lifecycle.run(Recipe.model_validate(values), out=tmp_path / "run")
    assert result.model is None
    assert result.scorecard is not None
    assert result.scorecard.base is None
    assert result.scorecard.model == str(tiny_model)
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()) == ["evaluate"]


def test_the_plan_names_every_stage_and_touches_nothing(recipe: Path) -> None:
    before = sorted(recipe.parent.rglob("*"))
    plan = lifecycle.plan(Recipe.read(recipe))
    assert set(plan["stages"]) == {"train", "evaluate", "report"}
    assert plan["stages"]["train"]["steps"] == 30
    assert sorted(recipe.parent.rglob("*")) == before


def test_ctrl_c_leaves_with_130_and_the_same_command_continues(recipe: Path, tmp_path: Path) -> None:
    arguments = ["run", recipe, "--out", tmp_path / "run", "--set", "train.trainer.save_steps=1"]
    child = command(*arguments, "--set", "train.epochs=400", folder=tmp_path)
    wait_until(lambda: any((tmp_path / "run").glob(".train.partial/trainer/checkpoint-*/complete")), child)
    # As a person does: Python drops an interrupt that falls into a destructor, and the next one counts.
    while child.is_alive():
        os.kill(child.pid, signal.SIGINT)
        child.join(timeout=15)
    stopped = finished(child, tmp_path)
    assert stopped.code == 130
    assert stopped.stdout == ""
    assert "Traceback" not in stopped.stderr
    assert stopped.stderr.splitlines()[-1] == "interrupted: state is kept, the same command continues"
    assert not (tmp_path / "run" / "train").exists()
    assert any((tmp_path / "run").glob(".train.partial/trainer/checkpoint-*/complete"))
