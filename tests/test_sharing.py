"""`export`: what leaves the tool loads by its own card, names its base as the Hub does, and no folder of this disk."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from alignkeep.checkpoint.records import Record
from alignkeep.errors import CheckpointError, DataError, RecipeError
from alignkeep.judging.statistics import wilson
from alignkeep.merge.config import MergeConfig
from alignkeep.merge.stage import merge
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.sharing import export
from alignkeep.testbed.stage import materialise
from alignkeep.types import Scorecard
from checkpoints import changed_copy, write_adapter
from test_docs import Block, run_python

PLACE = "model.layers.0.mlp.down_proj"


class Bed:
    """A base that has a card, a tune of it as an adapter and as a merge, and numbers of both."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = changed_copy(materialise("models/aligned", root / "T"), root / "org" / "base", lambda tensors: None)
        (self.base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
        factors = {PLACE: (torch.randn(2, 384) / 100, torch.randn(128, 2) / 100)}
        self.adapter = write_adapter(root / "tune", self.base, factors)
        config = MergeConfig(base=str(self.base), tuned=(str(self.adapter),), weight=0.5)
        self.merged = merge(config, out=root / "merged").folder
        self.numbers = {path: self.measured(path) for path in (self.adapter, self.merged)}

    def measured(self, model: Path) -> Path:
        folder = self.root / f"numbers-{model.name}"
        rates, before = (
            {"harm_refusal": wilson(90, 100), "utility.mmlu": wilson(30, 50)},
            {"harm_refusal": wilson(95, 100)},
        )
        card = Scorecard(str(model), str(self.base), "testbed", rates, {}, before)
        folder.mkdir()
        (folder / "scorecard.json").write_text(json.dumps({**card.as_json(), "settings": {"judge": "keyword"}}))
        return folder


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    torch.manual_seed(0)
    return Bed(tmp_path_factory.mktemp("bed"))


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_an_exported_model_loads_by_its_card_and_names_no_folder(bed: Bed, form: str, tmp_path: Path) -> None:
    model, here = getattr(bed, form), tmp_path / "here"
    made = export(model, out=here / f"my-{form}", measured=bed.numbers[model], hub_base="org/base")
    assert (made.base, made.license, made.notes) == ("org/base", "apache-2.0", ())
    for path in made.folder.rglob("*"):
        assert path.is_dir() or str(bed.root).encode() not in path.read_bytes(), path
    weights = "adapter_model.safetensors" if form == "adapter" else "model.safetensors"
    assert (made.folder / weights).read_bytes() == (model / weights).read_bytes()
    text = (made.folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (front["base_model"], front["license"]) == ("org/base", "apache-2.0")
    [found] = front["model-index"][0]["results"]
    assert found["metrics"][0]["value"] == 0.9
    assert "| 95.0 % [" in text
    assert "| Utility: mmlu (higher is better) | not measured | 60.0 % [" in text
    assert ("merge (method linear, weight 0.5)" in text) == (form == "merged")
    [snippet] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (here / "org").symlink_to(bed.root / "org")  # where others have the Hub
    done = run_python(here, Block("python", "", snippet, "README.md"))
    assert done.code == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def test_the_base_of_an_adapter_that_lies_here_is_asked_for(bed: Bed, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"a folder of this disk.*--hub-base ID"):
        export(bed.adapter, out=tmp_path / "out")
    with pytest.raises(RecipeError, match="--hub-base: found not an id"):
        export(bed.adapter, out=tmp_path / "out", hub_base="not an id")
    assert not (tmp_path / "out").exists()


def test_what_is_not_known_of_a_model_is_said(bed: Bed, tmp_path: Path) -> None:
    made = export(bed.merged, out=tmp_path / "out", license="mit")
    assert (made.base, made.license) == (None, "mit")
    assert [note.split(":")[1].split()[0] for note in made.notes] == ["give", "give"]


def test_numbers_of_another_model_are_refused(bed: Bed, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found an evaluation of"):
        export(bed.merged, out=tmp_path / "out", measured=bed.numbers[bed.adapter])


def test_numbers_of_what_the_folder_held_before_are_refused(bed: Bed, tmp_path: Path) -> None:
    model, numbers = tmp_path / "model", tmp_path / "numbers"
    shutil.copytree(bed.merged, model)
    shutil.copytree(bed.numbers[bed.merged], numbers)
    card = numbers / "scorecard.json"
    card.write_text(card.read_text().replace(str(bed.merged), str(model)))
    known = {"model": fingerprint_model(str(model))}
    Record("evaluate", "0" * 64, {}, known, 0, 1.0, {}).write(numbers)
    assert export(model, out=tmp_path / "out", measured=numbers).folder.is_dir()
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 0.5}))
    with pytest.raises(DataError, match="found an evaluation of"):
        export(model, out=tmp_path / "other", measured=numbers)


def test_what_a_trainer_left_of_its_folders_is_taken_out_or_refused(bed: Bed, tmp_path: Path) -> None:
    tune = changed_copy(bed.base, tmp_path / "tune", lambda tensors: None)
    settings = json.loads((tune / "tokenizer_config.json").read_text())
    (tune / "tokenizer_config.json").write_text(json.dumps({**settings, "name_or_path": str(bed.base)}))
    made = export(tune, out=tmp_path / "out")
    assert json.loads((made.folder / "tokenizer_config.json").read_text()) == settings
    (tune / "chat_template.jinja").write_text(f"{{# {tune} #}}")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: found .*a folder of this disk"):
        export(tune, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_of_a_repair_the_kept_model_and_its_numbers_are_taken(bed: Bed, tmp_path: Path) -> None:
    """`fix` records both by their place in its folder."""
    shutil.copytree(bed.merged, tmp_path / "fixed" / "merged" / "merge")
    shutil.copytree(bed.numbers[bed.merged], tmp_path / "fixed" / "merged" / "evaluate")
    told = {"model": "merged/merge", "scorecard": "merged/evaluate"}
    Record("fix", "0" * 64, {}, {}, 0, 1.0, dict(told)).write(tmp_path / "fixed")
    made = export(tmp_path / "fixed", out=tmp_path / "out", hub_base="org/base")
    assert load_file(made.folder / "model.safetensors").keys() == load_file(bed.merged / "model.safetensors").keys()
    assert (made.folder / "audit" / "scorecard.json").is_file()
