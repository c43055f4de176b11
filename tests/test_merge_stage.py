"""The stage on real tiny models: its ends are base and tune, it writes a model, and to do nothing is an error."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from alignkeep.errors import CheckpointError, NoEffectError, RecipeError
from alignkeep.merge.config import MergeConfig
from alignkeep.merge.stage import merge, plan
from checkpoints import (
    World,
    changed_copy,
    hashes,
    noise,
    read_checkpoint,
    refused,
    results,
    same_bits,
    write_checkpoint,
)

NORM = "model.norm.weight"
INTERPOLATIONS = ["linear", "slerp", "nuslerp"]
TASK_VECTORS = "task_arithmetic ties dare dare_ties della della_linear breadcrumbs breadcrumbs_ties".split()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("merge"))


@pytest.fixture(autouse=True)
def _inputs_stay_as_they_are(world: World):
    before = hashes(world.root)
    yield
    assert hashes(world.root) == before


def test_a_merge_is_a_model_with_the_bases_shards_config_and_words(world: World, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = merge(world.config(base=world.sharded), out=tmp_path / "out")
    assert (done.changed, done.equal, done.copied) == (21, 0, 0)
    assert (done.method, done.weight, done.form, done.notes) == ("linear", 0.6, "model", ())
    names = {path.name for path in world.sharded.iterdir()}
    added = {"README.md", "manifest.json", "mergekit_config.yml", "record.json"}
    assert {path.name for path in done.folder.iterdir()} == names | added
    for name in names:
        if not name.endswith(".safetensors"):
            assert (done.folder / name).read_bytes() == (world.sharded / name).read_bytes()
    assert list(tmp_path.iterdir()) == [done.folder]
    loaded = AutoModelForCausalLM.from_pretrained(done.folder)
    expected = torch.lerp(*(read_checkpoint(folder)[NORM].float() for folder in (world.base, world.tuned)), 0.6)
    assert torch.equal(loaded.model.norm.weight, expected.bfloat16())
    assert AutoTokenizer.from_pretrained(done.folder).chat_template


@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_weight_1_is_the_tuned_models_file_bit_for_bit(method: str, world: World, tmp_path: Path) -> None:
    done = merge(world.config(method=method, weight=1), out=tmp_path / "out")
    assert same_bits(read_checkpoint(done.folder), read_checkpoint(world.tuned))
    assert done.notes == ("weight 1: the tuned model itself, as asked",)


@pytest.mark.parametrize("method", INTERPOLATIONS + TASK_VECTORS)
def test_weight_0_is_the_base_byte_for_byte_and_says_so(method: str, world: World, tmp_path: Path) -> None:
    done = merge(world.config(method=method, weight=0), out=tmp_path / "out")
    assert (done.folder / "model.safetensors").read_bytes() == (world.base / "model.safetensors").read_bytes()
    assert (done.changed, done.copied, done.notes) == (0, 21, ("weight 0: the base itself, as asked",))


@pytest.mark.parametrize("method", TASK_VECTORS)
def test_weight_1_of_a_sparse_method_is_not_called_the_tuned_model(method: str, world: World, tmp_path: Path) -> None:
    done = merge(world.config(method=method, weight=1), out=tmp_path / "out")
    assert done.changed == 21
    assert done.notes == ()


def test_several_models_count_as_their_mean(world: World, tmp_path: Path) -> None:
    done = merge(world.config(world.tuned, world.other, weight=0.5), out=tmp_path / "out")
    base, tuned, other = (read_checkpoint(folder) for folder in (world.base, world.tuned, world.other))
    for name, found in read_checkpoint(done.folder).items():
        exact = 0.5 * base[name].double() + 0.25 * (tuned[name].double() + other[name].double())
        sizes = base[name].double().abs() + tuned[name].double().abs() + other[name].double().abs()
        assert torch.all((found.double() - exact).abs() <= exact.abs() * 2**-8 + sizes * 2**-22)


def test_model_stock_finds_its_own_weight(world: World, tmp_path: Path) -> None:
    done = merge(world.config(world.tuned, world.other, method="model_stock"), out=tmp_path / "out")
    assert done.weight is None
    assert done.changed > 0
    assert plan(world.config(world.tuned, world.other, method="model_stock"))["weight"] is None


def test_the_same_settings_make_the_same_bytes_and_another_seed_others(world: World, tmp_path: Path) -> None:
    first, again, other = (
        results(merge(world.config(method="dare", seed=seed), out=tmp_path / name / "out").folder)
        for name, seed in (("first", 4), ("again", 4), ("other", 5))
    )
    assert first == again
    assert first["model.safetensors"] != other["model.safetensors"]


def test_a_finished_merge_is_not_made_again_and_changed_inputs_are_another_merge(world: World, tmp_path: Path) -> None:
    tuned = shutil.copytree(world.tuned, tmp_path / "tuned")
    out, config = tmp_path / "out", world.config(tuned)
    merge(config, out=out)
    before = {path: os.stat(path).st_mtime_ns for path in out.iterdir()}
    merge(config, out=out)
    assert {path: os.stat(path).st_mtime_ns for path in out.iterdir()} == before
    shutil.copy(world.other / "model.safetensors", tuned)
    with refused(RecipeError, "another run", tmp_path):
        merge(config, out=out)
    old = results(out)
    merge(config, out=out, overwrite=True)
    assert results(out)["model.safetensors"] != old["model.safetensors"]


def test_a_changed_mergekit_file_is_another_merge(world: World, tmp_path: Path) -> None:
    file, text = tmp_path / "merge.yml", "merge_method: linear\nmodels:\n"
    entry = "  - model: {}\n    parameters: {{weight: {}}}\n"
    file.write_text(text + entry.format(world.base, 0.5) + entry.format(world.tuned, 0.5))
    config, out = MergeConfig(mergekit=str(file)), tmp_path / "out"
    merge(config, out=out)
    file.write_text(text + entry.format(world.base, 0.2) + entry.format(world.tuned, 0.8))
    with refused(RecipeError, "another run", tmp_path):
        merge(config, out=out)
    assert (out / "mergekit_config.yml").read_text() != file.read_text()


def test_an_index_beside_a_single_file_is_not_taken_along(world: World, tmp_path: Path) -> None:
    base = shutil.copytree(world.base, tmp_path / "base")
    shutil.copy(world.sharded / "model.safetensors.index.json", base)
    done = merge(world.config(base=base), out=tmp_path / "out")
    assert not (done.folder / "model.safetensors.index.json").exists()


def test_the_change_of_an_adapter_is_added_where_it_belongs_in_a_matrix_of_many_pieces(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"m.weight": noise(700, 1000)})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    down, up = noise(3, 1000, seed=1), noise(700, 3, seed=2)
    factors = {"base_model.model.m.lora_A.weight": down, "base_model.model.m.lora_B.weight": up}
    save_file(factors, adapter / "adapter_model.safetensors")
    done = merge(MergeConfig(base=str(base), tuned=(str(adapter),), weight=0.3), out=tmp_path / "out")
    exact = noise(700, 1000).double() + 0.3 * 2 * up.double() @ down.double()
    assert torch.allclose(read_checkpoint(done.folder)["m.weight"].double(), exact, rtol=0, atol=1e-5)


def test_the_plan_counts_and_writes_nothing(world: World) -> None:
    told = plan(world.config(base=world.sharded))
    assert (told["tensors"], told["merged"], told["not_calculated_with"]) == (21, 21, 0)
    assert told["disk_bytes"] == sum(2 * tensor.numel() for tensor in read_checkpoint(world.base).values())


@pytest.mark.parametrize("method", [*INTERPOLATIONS, *TASK_VECTORS, "model_stock"])
def test_a_tuned_model_that_is_the_base_has_no_effect(method: str, world: World, tmp_path: Path) -> None:
    same = shutil.copytree(world.base, tmp_path / "same")
    with refused(NoEffectError, "21 merged tensors, all equal to the base's: the tuned model's tensor is", tmp_path):
        merge(world.config(*[same] * (1 + (method == "model_stock")), method=method), out=tmp_path / "out")


def test_a_tensor_that_was_not_tuned_is_listed_with_the_reason(world: World, tmp_path: Path) -> None:
    part = changed_copy(world.base, tmp_path / "part", lambda t: t[NORM].add_(1))
    done = merge(world.config(part), out=tmp_path / "out")
    reasons = json.loads((done.folder / "manifest.json").read_text())["reasons"]
    assert (done.changed, done.equal, len(reasons)) == (1, 20, 20)
    assert set(reasons.values()) == {"the tuned model's tensor is the base's"}


def test_templates_that_differ_need_a_choice(world: World, tmp_path: Path) -> None:
    tuned = shutil.copytree(world.tuned, tmp_path / "tuned")
    (tuned / "chat_template.jinja").write_text("another")
    with refused(CheckpointError, "chat template: seen another template than the base's", tmp_path):
        merge(world.config(tuned), out=tmp_path / "out")
    for chosen, folder in (("base", world.base), ("tuned", tuned)):
        done = merge(world.config(tuned, chat_template=chosen), out=tmp_path / f"with {chosen}")
        assert (done.folder / "chat_template.jinja").read_text() == (folder / "chat_template.jinja").read_text()
