"""Defences as objects: how one is named, refused and tried, and a stranger's from file to adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from alignkeep import conformance
from alignkeep.errors import AlignkeepError, DataError, NoEffectError, RecipeError
from alignkeep.recipe import Recipe
from alignkeep.testbed import sets
from alignkeep.testbed.stage import materialise
from alignkeep.train.config import AlignGuardSettings, TrainConfig
from alignkeep.train.defence import Defence
from alignkeep.train.defences import DEFENCES
from alignkeep.train.kl_anchor import KLAnchorSettings
from alignkeep.train.stage import TRAIN, plan, train
from command import run_command
from micro import write_rows

MINE = """\
from pydantic import BaseModel, Field
from alignkeep.train import Defence, Terms, add_to_loss


class LeashSettings(BaseModel):
    pull: float = Field(default=0.1, ge=0, description="weight of the adapter's squared norm")


class Leash(Defence[LeashSettings]):
    name, title, options, strength = "leash", "A short leash", LeashSettings, "pull"
    departures = ("It is nobody's.",)

    def attach(self, options, measured, trainer):
        def terms(model, step):
            length = sum(p.square().sum() for p in model.parameters() if p.requires_grad)
            return Terms(options.pull * length, {"length": length})

        add_to_loss(trainer, self.name, terms, remedy="raise defence.pull")


LEASH = Leash()
"""


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"model": "m", "data": "d", **changes})


# Names and options


def test_what_is_trained_and_what_defends_it_are_said_apart_or_in_one_word() -> None:
    options = {"data": "a", "weight": 0.3}
    one = config(method="kl_anchor", defence=options)
    assert one == config(defence={"name": "kl_anchor", **options})
    assert one == config(method="kl_anchor", defence={"name": "kl_anchor", **options})
    assert one == config(method="kl_anchor", defence=KLAnchorSettings(data="a", weight=0.3))
    full = config(method="full", defence={"name": "kl_anchor", **options})
    assert (full.has_adapter, one.has_adapter, full.rate) == (False, True, 2e-5)
    assert one.chosen is not None
    assert full.chosen is not None
    assert one.chosen.options == full.chosen.options == KLAnchorSettings(data="a", weight=0.3)
    assert config(method="alignguard", defence={"data": "a", "trust": 0.1}) == config(
        method="alignguard", alignguard=AlignGuardSettings(data="a", trust=0.1)
    )
    assert TrainConfig(**one.model_dump()) == one
    assert TrainConfig(**full.model_dump()) == full


def test_a_tune_without_a_defence_is_recorded_as_before_there_were_any() -> None:
    assert "defence" not in config().model_dump() | config(method="alignguard").model_dump()


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"method": "kl_anchr"}, RecipeError, "did you mean kl_anchor?"),
        ({"method": "replay", "defence": {"exampels": 2}}, RecipeError, r"defence\.exampels.*did you mean examples\?"),
        ({"method": "replay", "defence": {"examples": -2}}, RecipeError, r"defence\.examples .*found -2"),
        ({"method": "lora", "defence": {"data": "a"}}, NoEffectError, "options of a defence .* with method lora"),
        ({"method": "replay", "defence": {"name": "kl_anchor"}}, RecipeError, "expected one defence"),
        ({"method": "full", "defence": {"name": "kl"}}, RecipeError, "found 'kl', expected 'alignguard', 'kl_anchor'"),
        ({"method": "full", "defence": {"name": 3}}, RecipeError, "name one of these"),
        ({"method": "kl_anchor", "alignguard": {"trust": 1}}, NoEffectError, "settings of alignguard with method kl_"),
        ({"method": "nowhere:x"}, RecipeError, "cannot be imported"),
        ({"method": "json:nothing"}, RecipeError, "no nothing in json"),
        ({"method": "json:dumps"}, RecipeError, r"found None as json:dumps\.name, expected text"),
    ],
)
def test_a_name_or_an_option_that_does_not_fit_is_refused_with_the_nearest(
    changes: dict[str, Any], error: type[AlignkeepError], said: str
) -> None:
    with pytest.raises(error, match=said):
        config(**changes)


def test_what_a_defence_is_cited_by_stands_in_the_object() -> None:
    def cited(**settings: Any) -> list[str]:
        return [one if isinstance(one, str) else one.name for one in TRAIN.methods(settings)]

    assert cited() == ["sft", "lora"]
    assert cited(method="full") == ["sft"]
    assert cited(method="kl_anchor") == ["sft", "lora", "kl_anchor"]
    assert cited(method="full", defence={"name": "replay"}) == ["sft", "replay"]
    assert cited(method="gone:away") == ["sft", "lora"]


def test_the_command_names_all_defences_each_with_its_works() -> None:
    from alignkeep.cli.train import _METHODS

    assert all(one.name in _METHODS and one.works and one.departures for one in DEFENCES)


# Ours


@pytest.mark.parametrize("one", DEFENCES, ids=lambda one: one.name)
def test_ours_are_what_the_protocol_says(one: Defence[Any]) -> None:
    conformance.defence(one)


class Bed:
    def __init__(self, root: Path) -> None:
        self.root, self.model = root, str(materialise("models/aligned", root / "T"))
        self.data = str(write_rows(root / "task.jsonl", sets.rows("task_train")[:8]))
        self.alignment = str(write_rows(root / "alignment.jsonl", sets.rows("alignment")[:4]))

    def config(self, **changes: Any) -> TrainConfig:
        usual = {"load": {"device": "cpu"}, "batch_size": 4, "learning_rate": 1e-2, "trainer": {"max_steps": 2}}
        return config(model=self.model, data=self.data, **{**usual, **changes})


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    return Bed(tmp_path_factory.mktemp("bed"))


@pytest.mark.parametrize("name", ["kl_anchor", "replay"])
def test_alignment_data_that_cannot_be_used_is_found_by_the_plan(name: str, bed: Bed, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"defence\.data: found none, .* give --alignment-data FILE"):
        plan(bed.config(method=name))
    answers = str(write_rows(tmp_path / "answers.jsonl", [{"prompt": "how ?", "completion": "sure ."}]))
    with pytest.raises(DataError, match="none of whose answers refuses"):
        plan(bed.config(method=name, defence={"data": answers}))
    with pytest.raises(DataError, match="no token of the answer among the first 4"):
        plan(bed.config(method=name, defence={"data": bed.alignment}, max_length=4))


def test_a_full_tune_is_anchored_to_the_model_it_began_as(bed: Bed, tmp_path: Path) -> None:
    options = {"name": "kl_anchor", "data": bed.alignment, "weight": 3.0}
    done = train(bed.config(method="full", defence=options, learning_rate=1e-3), out=tmp_path / "out")
    rows = [json.loads(line) for line in done.log.read_text().splitlines()]
    divergences = [row["kl_anchor/divergence"] for row in rows if "loss" in row]
    assert divergences[0] == pytest.approx(0, abs=1e-4)
    assert divergences[1] > 10 * abs(divergences[0])
    with pytest.raises(RecipeError, match="full with alignguard"):
        plan(bed.config(method="full", defence={"name": "alignguard", "data": bed.alignment}))


# A stranger's


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MINE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(conformance.__file__).parents[1]}")
    return name


def test_a_defence_of_thirty_lines_is_used_from_command_recipe_and_python(mine: str, bed: Bed, tmp_path: Path) -> None:
    assert len(MINE.splitlines()) < 30
    done = train(bed.config(method=f"{mine}:LEASH", defence={"pull": 0.5}), out=tmp_path / "python")
    assert '"leash/length"' in done.log.read_text()
    (tmp_path / "said").mkdir()
    told = run_command(
        *("train", "--model", bed.model, "--data", bed.data, "--method", f"{mine}:LEASH", "--set", "defence.pull=0.5"),
        *("--set", "batch_size=4", "--set", "learning_rate=1e-2", "--set", "trainer.max_steps=2", "--device", "cpu"),
        *("--out", tmp_path / "command"), folder=tmp_path / "said",
    )  # fmt: skip
    assert told.code == 0, told.stderr
    same = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("python", "command")]
    assert same[0] == same[1]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: m\ntrain: {{data: d, method: '{mine}:Leash', defence: {{pull: 0.5}}}}\n")
    chosen = Recipe.read(recipe).train.chosen
    assert chosen.options.pull == 0.5
    assert TRAIN.methods({"method": f"{mine}:Leash"})[-1].departures == ("It is nobody's.",)
    with pytest.raises(RecipeError, match=r"defence\.pul.*did you mean pull\?"):
        config(method=f"{mine}:LEASH", defence={"pul": 1})


class Weighty(BaseModel):
    weight: float = 1.0


class Idle(Defence[Weighty]):
    """Says much and does nothing."""

    name, title, options, strength = "idle", "Idle", Weighty, "weight"

    def attach(self, options: Weighty, measured: Any, trainer: Any) -> None:
        return None


class Broken(Idle):
    name = "broken"

    def check(self, options: Weighty, before: Any) -> None:
        raise KeyError("oops")


class Documented(BaseModel):
    """`weight` does nothing."""

    weight: float = 1.0


class IdleDocumented(Idle):
    options = Documented


IDLE, BROKEN, IDLE_DOCUMENTED = Idle(), Broken(), IdleDocumented()


def test_a_defence_that_is_broken_is_one_line_before_any_work(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"found KeyError, raised by test_defences:BROKEN\.check"):
        plan(bed.config(method="test_defences:BROKEN"))
    for member, value, said in (
        ("strength", "wieght", r"strength, expected one of its options \(weight\)"),
        ("options", dict, "expected a pydantic model"),
        ("name", "two words", "expected a word"),
        ("attach", None, r"nothing that can be called as test_defences:IDLE\.attach"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(IDLE, member, value, raising=False)
            with pytest.raises(RecipeError, match=said):
                config(method="test_defences:IDLE")


def test_conformance_tells_what_is_missing_from_one_that_does_nothing() -> None:
    with pytest.raises(RecipeError, match=r"defence idle\.options\.weight: found no description"):
        conformance.defence(IDLE)
    with pytest.raises(RecipeError, match="defence idle: found plain LoRA's weights, expected another tune"):
        conformance.defence(IDLE_DOCUMENTED)
    with pytest.raises(RecipeError, match="an object that is no attribute of its module"):
        conformance.defence(Idle())
