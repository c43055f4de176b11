"""`check`: the base that a tune names, and the verdict on the two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignkeep.checkup import check, find_base
from alignkeep.errors import CheckpointError, RecipeError
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.models.config import GenerationConfig
from alignkeep.testbed.stage import materialise
from command import run_command


@pytest.fixture(scope="module")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("testbed")
    return {name: Path(materialise(f"models/{name}", folder)) for name in ("aligned", "uncensored")}


def tune_named(folder: Path, model: Path, **files: str) -> Path:
    """The model linked into a folder of its own, with these files beside it."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).symlink_to(path)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("record.json", json.dumps({"stage": "train", "config": {"model": "org/base"}})),
        ("record.json", json.dumps({"stage": "merge", "config": {"base": "org/base"}})),
        ("manifest.json", json.dumps({"inputs": [{"role": "tuned", "reference": "x"},
                                                 {"role": "base", "reference": "org/base"}]})),
        ("README.md", "---\nlicense: mit\nbase_model: org/base\n---\n# A tune\n"),
        ("README.md", "---\nbase_model:\n- org/base\n---\n"),
    ],
)  # fmt: skip
def test_the_base_is_what_the_folder_of_the_tune_names(testbed, tmp_path: Path, name: str, text: str) -> None:
    tune = tune_named(tmp_path / "tune", testbed["uncensored"], **{name.replace(".", "__"): text})
    found = find_base(str(tune))
    assert (found.reference, found.named_by) == ("org/base", name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("record.json", json.dumps({"stage": "evaluate", "config": {"model": "org/base"}})),
        ("record.json", "[1"),
        ("manifest.json", json.dumps({"inputs": [7]})),
        ("README.md", "---\nbase_model: [a/one, a/two]\n---\n"),
        ("README.md", "---\nbase_model: {\n---\n"),
        ("README.md", "base_model: org/base\n"),
    ],
)
def test_what_names_no_base_is_an_error_that_says_where_was_looked(testbed, tmp_path: Path, name, text) -> None:
    tune = tune_named(tmp_path / "tune", testbed["uncensored"], **{name.replace(".", "__"): text})
    with pytest.raises(CheckpointError, match=r"looked in adapter_config\.json.*--base"):
        find_base(str(tune))


def test_a_stripped_model_fails_and_the_next_command_is_named(testbed, tmp_path: Path) -> None:
    card = f"---\nbase_model: {testbed['aligned']}\n---\n"
    tune = tune_named(tmp_path / "tune", testbed["uncensored"], README__md=card)
    common = ("--suite", "testbed", "--limit", "30", "--max-new-tokens", "24")
    done = run_command("check", tune, *common, "--out", tmp_path / "out", folder=tmp_path)
    assert done.code == 3
    verdict, change, *bounds, following = done.stdout.splitlines()
    assert verdict.startswith(f"FAIL: {tune} against {testbed['aligned']} (named by README.md)")
    assert "harm refusal" in change
    assert any(line.startswith("  FAIL: harm_refusal") for line in bounds)
    assert (
        following
        == f"next: alignkeep fix {tune} --base {testbed['aligned']} --task TASK.jsonl --suite testbed --out fixed"
    )
    again = run_command("check", tune, *common, "--out", tmp_path / "out", "--json", folder=tmp_path)
    assert (again.code, json.loads(again.stdout)["verdict"]["answer"]) == (3, "fail")


def test_a_tune_that_is_its_own_base_is_no_pass(testbed, tmp_path: Path) -> None:
    config = EvaluateConfig(
        model=str(testbed["aligned"]), base=str(testbed["aligned"]), suite="testbed", limit=2, attacks="none",
        generation=GenerationConfig(max_new_tokens=4),
    )  # fmt: skip
    with pytest.raises(RecipeError, match="the same model as its base"):
        check(config, out=tmp_path / "out")


def test_a_policy_that_cannot_be_read_is_found_before_anything_is_measured(testbed, tmp_path: Path) -> None:
    config = EvaluateConfig(model=str(testbed["uncensored"]), base=str(testbed["aligned"]), suite="testbed")
    with pytest.raises(RecipeError, match=r"nowhere\.yaml"):
        check(config, out=tmp_path / "out", policy=str(tmp_path / "nowhere.yaml"))
    assert not list(tmp_path.iterdir())
