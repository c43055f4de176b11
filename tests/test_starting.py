"""`init` and `doctor`: a recipe that can be run as it stands, and what a machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkeep.doctor import examine
from alignkeep.errors import RecipeError
from alignkeep.recipe import Recipe
from alignkeep.starting import write_recipe


def test_a_first_recipe_says_what_was_given_and_comments_every_line(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "my.yaml", model="org/base", data="org/notes: x", task="org/task", prompts="org/h")
    assert recipe == Recipe.read(tmp_path / "my.yaml")
    assert (recipe.name, recipe.model, recipe.train.data, recipe.evaluate.task) == (
        "my", "org/base", "org/notes: x", "org/task",
    )  # fmt: skip
    assert (recipe.merge.sweep.prompts, recipe.merge.sweep.pick, recipe.merge.method) == ("org/h", "gain", "auto")
    plain = write_recipe(tmp_path / "plain.yaml", model="org/base", data="org/notes")
    assert plain.merge is None
    assert plain.evaluate.task is None


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    with pytest.raises(RecipeError, match="a name that is free"):
        write_recipe(tmp_path / "recipe.yaml", model="m", data="d")
    with pytest.raises(RecipeError, match="without a task"):
        write_recipe(tmp_path / "new.yaml", model="m", data="d", prompts="h")
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    assert not (tmp_path / "new.yaml").exists()


def test_a_machine_is_examined_with_and_without_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(host: str, port: int) -> None:
        raise OSError(f"no way to {host}:{port}")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example:8443")
    found = examine(tmp_path, reach=closed)
    assert "cannot be reached (no way to hub.example:8443)" in str(found["hub"])
    assert str(examine(tmp_path, reach=lambda host, port: None)["hub"]).endswith("can be reached")
    assert any(device.startswith("cpu") for device in found["devices"])
    assert "torch" in found["versions"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert str(examine(tmp_path, reach=closed)["hub"]).startswith("not asked")
