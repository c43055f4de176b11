"""The stage on real tiny models: its ends are base and tune, it writes a model, and to do nothing is an error."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from alignkeep.errors import CheckpointError, NoEffectError, RecipeError
from alignkeep.merge.config import MergeConfig
from alignkeep.merge.stage import merge, plan
from alignkeep.models.fingerprint import fingerprint_model
from checkpoints import (
    Tensors,
    World,
    changed_copy,
    edit_json,
    hashes,
    noise,
    read_checkpoint,
    refused,
    results,
    same_bits,
    write_adapter,
    write_checkpoint,
)

NORM, Q = "model.norm.weight", "model.layers.0.self_attn.q_proj"
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
    card = (done.folder / "README.md").read_text()
    assert "0.6 being the weight of the tuned model" in card
    for reference in (str(world.sharded), str(world.tuned)):
        assert f"| {reference} | {fingerprint_model(reference)} |" in card
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


def test_of_the_files_beside_the_weights_those_of_the_model_are_taken_along(world: World, tmp_path: Path) -> None:
    base = shutil.copytree(world.base, tmp_path / "base")
    for name in ("merges.txt", "vocab.json", "tokenizer.model", "modeling_own.py", "training_args.bin", "notes.txt"):
        (base / name).write_text("x")
    (base / "tokenizer").mkdir()
    done = merge(world.config(base=base), out=tmp_path / "out")
    there = {path.name for path in done.folder.iterdir()}
    assert {"merges.txt", "vocab.json", "tokenizer.model", "modeling_own.py", "generation_config.json"} <= there
    assert not there & {"training_args.bin", "notes.txt"}


def test_heads_that_are_tied_and_stored_buffers_need_no_partner(world: World, tmp_path: Path) -> None:
    """The base stores its tied head once more and an old buffer, the tuned model neither; and the other way round."""
    head, words, buffer = "lm_head.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"

    def lean(tensors: Tensors) -> None:
        del tensors[head]

    def full(tensors: Tensors) -> None:
        tensors.update({head: tensors[words].clone(), buffer: torch.ones(4)})

    made = {(name, how.__name__): changed_copy(folder, tmp_path / f"{name} {how.__name__}", how)
            for name, folder in (("base", world.base), ("tuned", world.tuned)) for how in (lean, full)}  # fmt: skip
    for folder in made.values():
        edit_json(folder / "config.json", tie_word_embeddings=True)
    stored = merge(world.config(made["tuned", "lean"], base=made["base", "full"]), out=tmp_path / "stored")
    found = read_checkpoint(stored.folder)
    assert torch.equal(found[head], found[words])
    assert torch.equal(found[buffer], torch.ones(4))
    assert stored.notes == (f"{made['tuned', 'lean']}: 1 tensors that are no weights stay the base's ({buffer}, ...)",)
    shared = merge(world.config(made["tuned", "full"], base=made["base", "lean"]), out=tmp_path / "shared")
    del found[head], found[buffer]
    assert same_bits(read_checkpoint(shared.folder), found)


def test_an_index_beside_a_single_file_is_not_taken_along(world: World, tmp_path: Path) -> None:
    base = shutil.copytree(world.base, tmp_path / "base")
    shutil.copy(world.sharded / "model.safetensors.index.json", base)
    done = merge(world.config(base=base), out=tmp_path / "out")
    assert not (done.folder / "model.safetensors.index.json").exists()


def test_the_change_of_an_adapter_is_added_where_it_belongs_in_a_matrix_of_many_pieces(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"m.weight": noise(700, 1000)})
    down, up = noise(3, 1000, seed=1), noise(700, 3, seed=2)
    adapter = write_adapter(tmp_path / "adapter", base, {"m": (down, up)}, alpha=6)
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
    with refused(CheckpointError, "chat template: found another template than the base's", tmp_path):
        merge(world.config(tuned), out=tmp_path / "out")
    adapter = write_adapter(tmp_path / "adapter", world.base, {Q: (noise(2, 32), noise(32, 2))})
    (adapter / "chat_template.jinja").write_text("a third")
    for chosen, folder in (("base", world.base), ("tuned", adapter)):
        done = merge(world.config(adapter, form="adapter", chat_template=chosen), out=tmp_path / f"adapter, {chosen}")
        assert (done.folder / "chat_template.jinja").read_text() == (folder / "chat_template.jinja").read_text()
    for chosen, folder in (("base", world.base), ("tuned", tuned)):
        done = merge(world.config(tuned, chat_template=chosen), out=tmp_path / f"with {chosen}")
        assert (done.folder / "chat_template.jinja").read_text() == (folder / "chat_template.jinja").read_text()


def test_several_templates_by_name_cannot_be_taken_over(world: World, tmp_path: Path) -> None:
    tuned = shutil.copytree(world.tuned, tmp_path / "tuned")
    (tuned / "chat_template.jinja").unlink()
    edit_json(tuned / "tokenizer_config.json", chat_template=[{"name": "default", "template": "{{ messages }}"}])
    with refused(CheckpointError, "tuned: chat template: found several, by name", tmp_path):
        merge(world.config(tuned, chat_template="tuned"), out=tmp_path / "out")
