"""Recipes: what is right is read, what is wrong is named with its line and the nearest thing that exists."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkeep.align.config import AlignConfig
from alignkeep.cli.configs import config_of
from alignkeep.errors import RecipeError
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.recipe import Recipe
from alignkeep.settings import Settings, described_settings, nearest
from alignkeep.train.config import TrainConfig

GOOD = """\
name: my-tune
seed: 3
model: org/base
train:
  data: org/notes
  method: full
  learning_rate: 1e-5
  lora: {rank: 4}
  trainer:
    weight_decay: 1e-2
evaluate:
  attacks: none
  generation: {max_new_tokens: 32}
report:
  title: 'Notes: a tune'
"""


def recipe_of(tmp_path: Path, text: str, **options: object) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return Recipe.read(path, **options)  # type: ignore[arg-type]


def refusal_of(tmp_path: Path, text: str, **options: object) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe_of(tmp_path, text, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_recipe_is_read_into_the_stages_own_configs(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, GOOD)
    assert recipe.name == "my-tune"
    assert recipe.train is not None
    assert recipe.evaluate is not None
    assert recipe.report is not None
    assert (recipe.train.model, recipe.train.seed, recipe.train.method) == ("org/base", 3, "full")
    assert (recipe.train.learning_rate, recipe.train.lora.rank) == (1e-5, 4)
    assert recipe.train.trainer == {"weight_decay": 0.01}
    assert (recipe.evaluate.suite, recipe.evaluate.generation.max_new_tokens) == ("driftcheck", 32)
    assert recipe.report.title == "Notes: a tune"


@pytest.mark.parametrize(
    "before", ["", "train: {data: d, method: full}\n", "train: {data: d}\n", "align: {data: p, reward: testbed}\n"]
)
def test_an_injection_may_become_an_adapter_over_a_model_or_an_adapter(tmp_path: Path, before: str) -> None:
    recipe = recipe_of(tmp_path, f"model: x\n{before}inject: {{harmful: h, harmless: n, form: adapter}}\n")
    assert recipe.inject is not None
    assert recipe.inject.form == "adapter"


def test_a_stage_without_settings_has_its_defaults_and_a_name_is_that_of_the_file(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "model: org/base\nevaluate:\n")
    assert recipe.name == "recipe"
    assert recipe.train is None
    assert recipe.evaluate is not None
    assert recipe.evaluate.attacks == "all"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("epochs", "  epoch: 2", "train.epoch (recipe.yaml:6): found an unknown key, expected one of model, data"),
        ("did you mean", "  epoch: 2", "did you mean epochs?"),
        (
            "method",
            "  method: ful",
            "train.method (recipe.yaml:6): found 'ful', expected 'full', 'lora', 'alignguard', 'kl_anchor'",
        ),
        ("type", "  epochs: two", "train.epochs (recipe.yaml:6): found 'two', expected a valid number"),
        ("range", "  batch_size: 0", "train.batch_size (recipe.yaml:6): found 0, expected greater than 0"),
        ("model twice", "  model: org/other", "train.model (recipe.yaml:6): found a model in the train stage"),
        ("key twice", "  data: org/other", "train.data (recipe.yaml:6): found a key that was given at recipe.yaml:5"),
        ("not text", "  5: x", "recipe.yaml:6: found the key '5'"),
        ("bad yaml", "  method: [full", "recipe.yaml:7: found"),
        ("tab", "\tmethod: full", "recipe.yaml:6: found"),
        ("code", "  weights: !!python/object/apply:os.system ['true']", "recipe.yaml:6: found could not determine"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = GOOD.replace("  method: full", new)
    assert said in refusal_of(tmp_path, text), old


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found an empty file"),
        ("- a\n- b\n", "found something else than keys and values"),
        ("just text", "found something else than keys and values"),
        ("name: x\nevaluate:\n", "model (recipe.yaml): found nothing, expected a value"),
        ("modle: x\nevaluate:\n", "modle (recipe.yaml:1): found an unknown key"),
        ("model: x\n", "found no stage"),
        ("model: x\ntrain:\n", "train.data (recipe.yaml:2): found nothing"),
        ("model: x\ntrain: {data: d}\nreport: {}\n", "report (recipe.yaml:3): found a report without an evaluation"),
        (
            "model: x\ntrain: {data: d}\nalign: {data: p, reference: r, reward: testbed}\n",
            "align.reference (recipe.yaml:3): found an unknown key",
        ),
        (
            "model: x\ntrain: {data: d, method: lora}\nalign: {data: p, reward: testbed, lora: null}\n",
            "train.method (recipe.yaml:2): found lora, an adapter, before an alignment",
        ),
        (
            "model: x\ntrain: {data: d, method: full}\nalign: {data: p, reward: testbed}\n",
            "align.lora (recipe.yaml:3): found an adapter over a model that a tune made",
        ),
        (
            "model: x\ncurate: {data: d, safe: s, harmful: h}\nalign: {data: p, reward: testbed}\n",
            "curate (recipe.yaml:2): found weights of examples, for which an alignment has no use",
        ),
        (
            "model: x\nalign: {data: p, reward: testbed}\nmerge: {tuned: [y]}\n",
            "merge.tuned (recipe.yaml:3): found tuned models beside a stage that tunes",
        ),
        ("model: x\ntrain: fast\n", "train (recipe.yaml:2): found 'fast'"),
        ("model: x\nseed: -1\nevaluate:\n", "seed (recipe.yaml:2): found -1, expected greater than or equal to 0"),
        ("model: [a]\nevaluate:\n", "model (recipe.yaml:1): found ['a'], expected a valid string"),
        ("name: !!timestamp 2024-13-45\nmodel: x\n", "recipe.yaml:1: found could not determine a constructor"),
        ("model: x\nevaluate: &a\n  load: *a\n", "recipe.yaml"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal_of(tmp_path, text)


def test_a_file_that_is_not_there_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD)
    with pytest.raises(RecipeError, match=r"recipe\.yml: found No such file.*did you mean .*recipe\.yaml\?"):
        Recipe.read(tmp_path / "recipe.yml")
    with pytest.raises(RecipeError, match="found a folder"):
        Recipe.read(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: Köln".encode("latin-1"))
    with pytest.raises(RecipeError, match="not UTF-8 at offset 7"):
        Recipe.read(tmp_path / "latin.yaml")


def test_relative_paths_are_those_of_the_recipes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir("/")
    recipe = recipe_of(
        tmp_path,
        "model: base\ntrain: {data: ./missing.jsonl}\n"
        "evaluate: {suite: own/suite.yaml, task: testbed:data/task_test}\n",
    )
    assert recipe.model == str(tmp_path / "base")
    assert recipe.train is not None
    assert recipe.evaluate is not None
    assert recipe.train.model == recipe.model
    assert recipe.train.data == str(tmp_path / "missing.jsonl")
    assert recipe.evaluate.suite == str(tmp_path / "own" / "suite.yaml")
    assert recipe.evaluate.task == "testbed:data/task_test"
    assert recipe_of(tmp_path, "model: org/base\ntrain: {data: 'org/notes:train'}\n").train.data == "org/notes:train"  # type: ignore[union-attr]


def test_references_are_resolved_in_every_stage(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "model: testbed:models/aligned\ntrain: {data: testbed:data/poisoned}\nevaluate:\n")
    resolved = recipe.with_references(lambda reference: reference.replace("testbed:", "/t/"))
    assert resolved.model == "/t/models/aligned"
    assert resolved.train is not None
    assert resolved.evaluate is not None
    assert (resolved.train.model, resolved.train.data) == ("/t/models/aligned", "/t/data/poisoned")
    assert (resolved.evaluate.model, resolved.evaluate.suite) == ("/t/models/aligned", "driftcheck")


def test_a_file_lies_under_flags_and_flags_under_assignments(tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("seed: 4\ntrain: {epochs: 4, batch_size: 4, lora: {alpha: 4}}\n")
    recipe = recipe_of(
        tmp_path,
        GOOD,
        over=over,
        flags={"seed": 5, "train.epochs": 5, "evaluate.task": None},
        assignments=["train.epochs=6", "train.trainer.report_to=[]", "train.lora.target_modules=[q_proj, v_proj]"],
    )
    assert recipe.train is not None
    assert recipe.evaluate is not None
    assert (recipe.seed, recipe.train.seed) == (5, 5)
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.method) == (6, 4, "full")
    assert (recipe.train.lora.rank, recipe.train.lora.alpha) == (4, 4)
    assert recipe.train.lora.target_modules == ["q_proj", "v_proj"]
    assert recipe.train.trainer == {"weight_decay": 0.01, "report_to": []}
    assert recipe.evaluate.task is None


def test_a_reward_that_stands_alone_is_its_spec_and_a_flag_replaces_it(tmp_path: Path) -> None:
    file = tmp_path / "align.yaml"
    file.write_text("model: m\ndata: d\nreward: scorer:one\n", encoding="utf-8")
    found = config_of(AlignConfig, file, ["reward.tie_margin=0.5"], {})
    assert (found.reward.spec, found.reward.tie_margin) == ("scorer:one", 0.5)
    assert config_of(AlignConfig, file, [], {"reward.spec": "testbed"}).reward.spec == "testbed"


def test_a_flag_for_a_stage_that_is_not_there_does_not_bring_it_in(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "model: x\nevaluate:\n", flags={"train.load.device": "cpu", "evaluate.seed": 2})
    assert recipe.train is None
    assert recipe.evaluate is not None
    assert recipe.evaluate.seed == 2


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("train.epochs", "found 'train.epochs', expected key=value"),
        ("=3", "expected key=value"),
        ("train..epochs=3", "expected key=value"),
        ("train.epochs=[3", "expected key=value with a YAML value"),
        ("train.epoch=3", "train.epoch (--set): found an unknown key"),
        ("name.first=x", "name.first (--set): found name = 'my-tune'"),
        ("train.epochs=[", "expected key=value with a YAML value"),
        ("train.epochs=-1", "train.epochs (--set): found -1"),
    ],
)
def test_an_assignment_that_cannot_be_is_named(tmp_path: Path, assignment: str, said: str) -> None:
    assert said in refusal_of(tmp_path, GOOD, assignments=[assignment])


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-4", 1e-4), ("-2.5E3", -2500.0), ("true", True), ("null", None), ("'3'", "3"), ("a=b", "a=b")],
)
def test_the_value_of_an_assignment_has_its_yaml_type(text: str, value: object) -> None:
    settings = Settings()
    settings.assign([f"a.b={text}"])
    assert settings.values == {"a": {"b": value}}


@settings(deadline=None)
@given(text=st.text())
def test_no_text_at_all_brings_more_than_a_recipe_error(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "recipe.yaml"
    path.write_text(text, encoding="utf-8", errors="ignore")
    with pytest.raises(RecipeError):
        Recipe.read(path)


def test_the_nearest_word_is_found_whatever_its_case_and_nothing_far_is() -> None:
    assert nearest("Learning_Rte", ["epochs", "learning_rate"]) == "learning_rate"
    assert nearest("xyz", ["epochs", "learning_rate"]) is None
    assert nearest("epochs", []) is None


# The names of options


@pytest.mark.parametrize(
    ("outside", "within"),
    [
        ({"evaluate": {"max_new_tokens": 9, "dtype": "float32"}},
         {"evaluate": {"generation": {"max_new_tokens": 9}, "load": {"dtype": "float32"}}}),
        ({"train": {"data": "d", "max_steps": 3, "lora-rank": 4, "trainer": {"packing": True}}},
         {"train": {"data": "d", "trainer": {"packing": True, "max_steps": 3}, "lora": {"rank": 4}}}),
        ({"merge": {"tuned": ["t"], "task": "a", "prompts": "b", "pick": "gain", "as": "adapter", "max_new_tokens": 5}},
         {"merge": {"tuned": ["t"], "form": "adapter",
                    "sweep": {"task": "a", "prompts": "b", "pick": "gain", "generation": {"max_new_tokens": 5}}}}),
        ({"inject": {"harmful": "h", "harmless": "n", "direction_from": "m", "strength": "raw:1", "layer": 2}},
         {"inject": {"harmful": "h", "harmless": "n", "direction": {"source": "m", "layer": 2},
                     "edit": {"strength": "raw:1"}}}),
    ],
)  # fmt: skip
def test_the_name_of_an_option_is_a_key(outside: dict, within: dict) -> None:
    top = {"name": "n", "model": "m"}
    assert Recipe.model_validate({**top, **outside}) == Recipe.model_validate({**top, **within})


def test_files_outside_of_their_group_are_those_of_the_recipes_folder_too(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: org/base\ntrain: {data: org/d}\nmerge: {task: t.jsonl, prompts: h.jsonl, pick: gain}\n")
    sweep = Recipe.read(path).merge.sweep
    assert (sweep.task, sweep.prompts) == (str(tmp_path / "t.jsonl"), str(tmp_path / "h.jsonl"))


def test_a_setting_in_two_places_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"max_new_tokens: found it and generation\.max_new_tokens"):
        EvaluateConfig.model_validate({"model": "m", "max_new_tokens": 5, "generation": {"max_new_tokens": 6}})


def test_all_mistakes_of_a_recipe_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: n\nmodel: m\ntrain:\n  data: d\n  epoch: 2\n  batch_size: 0\nevaluate:\n  limt: 3\n")
    with pytest.raises(RecipeError) as caught:
        Recipe.read(path)
    told = str(caught.value)
    for part in ("train.epoch (recipe.yaml:5)", "evaluate.limt (recipe.yaml:8)", "train.batch_size (recipe.yaml:6)"):
        assert part in told


def test_every_setting_is_described_with_its_default() -> None:
    found = {one.key: one for one in described_settings(TrainConfig)}
    assert found["model"].default is None
    assert (found["batch_size"].kind, found["batch_size"].default) == ("whole number", "16")
    assert found["too_long"].kind == "drop or cut or refuse"
    assert "forward pass" in found["batch_size"].meaning
    assert {"lora.rank", "load.device", "probe.harmful"} <= found.keys()
