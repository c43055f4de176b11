"""A stage is a value, and one function performs it: claims, resumes, records, keeps or drops, finishes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import BaseModel

from alignkeep.checkpoint.listing import CLAIM_NAME
from alignkeep.checkpoint.records import Record
from alignkeep.errors import AlignkeepError, DataError, MachineError, NoEffectError, RecipeError
from alignkeep.evaluate.stage import EVALUATE
from alignkeep.recipe import Recipe
from alignkeep.runs.perform import perform
from alignkeep.stage import Inputs, Job, Made, Plan, Stage, Task
from alignkeep.stages import STAGES


class CountConfig(BaseModel):
    data: str
    least: int = 1
    colour: str = "red"


@dataclass
class CountStage(Stage[CountConfig, list[str], int]):
    """Counts lines, one at a time; `fails` is raised behind the first. `done` tells what was called."""

    fails: AlignkeepError | None = None
    done: list[str] = field(default_factory=list)

    name = "count"
    config = CountConfig
    references = (("data",),)

    def prepare(self, config: CountConfig) -> list[str]:
        self.done.append("prepare")
        lines = Path(config.data).read_text().splitlines()
        if len(lines) < config.least:
            raise DataError(config.data, seen=f"{len(lines)} lines", expected="more", remedy="add some")
        return lines

    def inputs(self, task: Task[CountConfig, list[str]]) -> Inputs:
        settings = task.config.model_dump()
        deciding = {key: value for key, value in settings.items() if key != "colour"}
        text = Path(task.config.data).read_text()
        return Inputs({"data": text}, [Path(task.config.data)], settings, deciding, seed=7)

    def plan(self, config: CountConfig) -> Plan:
        return Plan({"stage": self.name, "lines": len(self.prepare(config)), "memory_bytes": 8})

    def work(self, prepared: list[str], job: Job) -> dict[str, object]:
        self.done.append("resumed" if (job.folder / "counted").exists() else "work")
        (job.folder / "counted").write_text("1")
        if self.fails is not None:
            raise self.fails
        (job.folder / "counted").write_text(str(len(prepared)))
        return {"lines": len(prepared), "fingerprint": job.fingerprints["data"]}

    def result(self, folder: Path) -> int:
        return int((folder / "counted").read_text())

    def leftovers(self) -> tuple[str, ...]:
        return ("scratch",)


MACHINE = MachineError("disk", seen="full", expected="room", remedy="free some")
NOTHING = NoEffectError("count", seen="nothing", expected="something", remedy="add some")


@pytest.fixture
def config(tmp_path: Path) -> CountConfig:
    (tmp_path / "data").write_text("a\nb\nc\n")
    return CountConfig(data=str(tmp_path / "data"))


def test_a_stage_is_done_once_and_read_back_after_without_being_prepared(config: CountConfig, tmp_path: Path) -> None:
    stage = CountStage()
    assert perform(stage, config, out=tmp_path / "out") == 3
    assert perform(stage, config.model_copy(update={"colour": "blue"}), out=tmp_path / "out") == 3
    assert stage.done == ["prepare", "work"]
    assert perform(stage, config, out=tmp_path / "out", resume=False, overwrite=True) == 3
    assert stage.done == ["prepare", "work"] * 2


def test_the_claim_that_a_kill_behind_the_last_rename_leaves_goes_with_the_same_command(
    config: CountConfig, tmp_path: Path
) -> None:
    stage, out = CountStage(), tmp_path / "out"
    perform(stage, config, out=out)
    record = Record.read(out)
    (out / CLAIM_NAME).write_text(json.dumps({"stage": record.stage, "identity": record.identity}))
    assert perform(stage, config, out=out) == 3
    assert sorted(path.name for path in out.iterdir()) == ["counted", "record.json"]
    assert stage.done == ["prepare", "work"]


def test_the_record_says_what_was_done_on_what(config: CountConfig, tmp_path: Path) -> None:
    perform(CountStage(), config, out=tmp_path / "out")
    record = Record.read(tmp_path / "out")
    assert (record.stage, record.seed, record.inputs) == ("count", 7, {"data": "a\nb\nc\n"})
    assert record.config == {"data": config.data, "least": 1, "colour": "red"}
    assert record.result == {"lines": 3, "fingerprint": "a\nb\nc\n"}
    assert record.seconds >= 0


def test_other_settings_are_another_run_and_replace_it_only_where_asked(config: CountConfig, tmp_path: Path) -> None:
    perform(CountStage(), config, out=tmp_path / "out")
    stage, other = CountStage(), config.model_copy(update={"least": 2})
    with pytest.raises(RecipeError, match="another run"):
        perform(stage, other, out=tmp_path / "out")
    assert perform(stage, other, out=tmp_path / "out", overwrite=True) == 3
    assert stage.done == ["prepare", "prepare", "work"]
    assert Record.read(tmp_path / "out").config["least"] == 2


def test_what_only_a_resumed_run_needs_is_gone_in_the_end(config: CountConfig, tmp_path: Path) -> None:
    class Scratching(CountStage):
        def work(self, prepared: list[str], job: Job) -> dict[str, object]:
            (job.folder / "scratch").touch()
            return super().work(prepared, job)

    perform(Scratching(), config, out=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["counted", "record.json"]


def test_where_the_machine_fails_the_same_command_goes_on(config: CountConfig, tmp_path: Path) -> None:
    stage = CountStage(fails=MACHINE)
    with pytest.raises(MachineError):
        perform(stage, config, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    stage.fails = None
    assert perform(stage, config, out=tmp_path / "out") == 3
    assert stage.done == ["prepare", "work", "prepare", "resumed"]


def test_what_would_fail_again_leaves_nothing(config: CountConfig, tmp_path: Path) -> None:
    with pytest.raises(NoEffectError):
        perform(CountStage(fails=NOTHING), config, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_users_error_and_an_output_over_an_input_are_found_before_work(config: CountConfig, tmp_path: Path) -> None:
    stage = CountStage()
    with pytest.raises(DataError, match="3 lines"):
        perform(stage, config.model_copy(update={"least": 4}), out=tmp_path / "out")
    with pytest.raises(RecipeError, match="input"):
        perform(stage, config, out=tmp_path)
    assert "work" not in stage.done
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stages_own_words_fit_its_config(stage: Stage) -> None:
    assert stage.filled[0] in stage.config.model_fields
    for key in stage.references:
        assert key[0] in stage.config.model_fields, key
    assert stage.name in Recipe.model_fields
    assert stage.methods({}, []) is not None


def test_what_a_tune_made_goes_through_the_stages_behind_it(tmp_path: Path) -> None:
    values = {
        "name": "all", "model": "base", "curate": {"safe": "s", "harmful": "h"}, "train": {"data": "d"},
        "merge": {}, "inject": {"harmful": "h", "harmless": "n"}, "evaluate": {"task": "t"},
    }  # fmt: skip
    recipe = Recipe.model_validate(values)
    made, fed = Made(recipe.model), {}
    for stage, config in recipe.steps:
        made = stage.announce(config, made)
    for stage, config in recipe.steps:
        fed[stage.name] = stage.feed(config, made)
        made = stage.hand_on(config, made, Path("out") / stage.name)
    assert (fed["curate"].data, fed["curate"].evaluation) == ("d", ("t",))
    assert fed["train"].weights == "out/curate"
    assert (fed["merge"].base, fed["merge"].tuned) == ("base", ("out/train",))
    assert (fed["inject"].model, fed["inject"].general, fed["inject"].direction.source) == ("out/merge", "d", "base")
    assert (fed["evaluate"].model, fed["evaluate"].base) == ("out/inject", "base")


def test_a_recipe_with_a_mistake_in_its_last_stage_begins_none(tiny_model: Path, tmp_path: Path) -> None:
    from alignkeep import lifecycle

    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "how to bake ?", "completion": "bake bread ."}) + "\n")
    values = {
        "name": "late", "model": str(tiny_model), "train": {"data": str(tmp_path / "data.jsonl")},
        "evaluate": {"suite": str(tmp_path / "none.yaml")},
    }  # fmt: skip
    with pytest.raises(RecipeError, match="none"):
        lifecycle.run(Recipe.model_validate(values), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_answers_are_kept_whatever_came_after_them(tmp_path: Path) -> None:
    assert EVALUATE.is_worth_keeping(NOTHING, tmp_path)
