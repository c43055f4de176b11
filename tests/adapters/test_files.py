"""Adapter files as other tools and older versions leave them, against dense formulas and PEFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignkeep.errors import CheckpointError, RecipeError
from alignkeep.lifecycle import verify
from alignkeep.merge.config import MergeConfig
from alignkeep.merge.stage import merge
from alignkeep.models.adapters import attach_adapter
from alignkeep.models.loading import load_model
from alignkeep.models.vllm import answer_batches
from checkpoints import edit_json, noise, read_checkpoint, same_bits, write_checkpoint
from conftest import build_tiny_model
from micro import write_rows
from recipes import ATTENTION, build_adapter, build_base, load_base, logits

FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
# Names of one expert's matrices before transformers fused them.
SINGLE = {
    "mixtral": ("block_sparse_moe", ["w1", "w2", "w3"]),
    "qwen3 moe": ("mlp", ["gate_proj", "up_proj", "down_proj"]),
}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    tokenizer = build_tiny_model(root / "tokenizer")
    return {
        name: build_base(name, root / name, tokenizer) for name in ("untied", "tied", "mixtral", "qwen3 moe", "gemma3")
    }


@pytest.fixture(scope="module")
def plain(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "plain"
    build_adapter(bases["untied"], folder, {"target_modules": ATTENTION})
    return folder


def merged(base: Path, adapter: Path, out: Path, **settings: Any) -> Path:
    return merge(MergeConfig(base=str(base), tuned=(str(adapter),), **settings), out=out).folder


def write_single_experts(base: Path, family: str, folder: Path, **settings: object) -> torch.Tensor:
    """An adapter of every expert by itself, as PEFT wrote it over transformers 4; returns the tuned model's logits, by
    the dense formula."""
    block, names = SINGLE[family]
    stored, factors = read_checkpoint(base), {}
    rank, alpha = 2, 6
    for name in [key for key in stored if f".{block}.experts." in key or key.endswith("q_proj.weight")]:
        rows, columns = stored[name].shape
        seed = len(factors)
        down, up = noise(rank, columns, seed=seed, scale=0.3), noise(rows, rank, seed=seed + 1, scale=0.3)
        module = f"{PREFIX}{name.removesuffix('.weight')}"
        factors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
        stored[name] = stored[name] + alpha / rank * (up @ down)
    folder.mkdir()
    save_file(factors, folder / FILE)
    told = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "bias": "none",
        "target_modules": ["q_proj", *names], "base_model_name_or_path": str(base), **settings,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(told))
    tuned = write_checkpoint(folder.parent / f"{folder.name} tuned", stored)
    shutil.copy(base / "config.json", tuned)
    return logits(load_base(tuned))


@pytest.mark.parametrize("family", SINGLE)
def test_an_adapter_of_single_experts_is_what_it_was_before_they_were_fused(
    family: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases[family]
    expected = write_single_experts(base, family, tmp_path / "adapter")
    assert (logits(load_base(base)) - expected).abs().max() > 0.1
    assert (logits(attach_adapter(load_base(base), tmp_path / "adapter").eval()) - expected).abs().max() < 1e-3
    done = merged(base, tmp_path / "adapter", tmp_path / "out", weight=1)
    assert (logits(load_base(done)) - expected).abs().max() < 1e-3


def test_single_experts_that_peft_would_scale_otherwise_are_not_evaluated(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    """PEFT doubles rank and alpha of fused experts: alpha / sqrt(r) becomes sqrt(2) times what it was."""
    write_single_experts(bases["mixtral"], "mixtral", tmp_path / "adapter", use_rslora=True)
    with pytest.raises(CheckpointError, match="use_rslora: found single experts under the names of an older version"):
        attach_adapter(load_base(bases["mixtral"]), tmp_path / "adapter")


def test_single_experts_that_are_incomplete_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    write_single_experts(bases["mixtral"], "mixtral", tmp_path / "adapter")
    factors = load_file(tmp_path / "adapter" / FILE)
    save_file({name: one for name, one in factors.items() if ".1.w2." not in name}, tmp_path / "adapter" / FILE)
    with pytest.raises(CheckpointError, match="experts"):
        load_model(str(tmp_path / "adapter"))


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["LoRA", "DoRA"])
def test_the_adapters_name_in_its_keys_changes_nothing(
    settings: dict[str, Any], bases: dict[str, Path], tmp_path: Path
) -> None:
    base, folder = bases["untied"], tmp_path / "adapter"
    expected = logits(build_adapter(base, folder, {"target_modules": ATTENTION, **settings}))
    plain = merged(base, folder, tmp_path / "plain", weight=1)
    tensors = {}
    for name, tensor in load_file(folder / FILE).items():
        stem, dot, end = name.rpartition(".") if name.endswith(".weight") else (name, "", "")
        tensors[f"{stem}.default{dot}{end}"] = tensor
    save_file(tensors, folder / FILE)
    assert (logits(attach_adapter(load_base(base), folder).eval()) - expected).abs().max() < 1e-4
    done = merged(base, folder, tmp_path / "out", weight=1)
    assert same_bits(read_checkpoint(done), read_checkpoint(plain))


def test_tied_embeddings_that_are_saved_along_unchanged_stay_the_bases(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["tied"]
    tuned = build_adapter(base, tmp_path / "adapter", {"target_modules": ATTENTION})
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    assert any("embed_tokens" in name for name in load_file(tmp_path / "adapter" / FILE))
    done = merged(base, tmp_path / "adapter", tmp_path / "out", weight=1)
    assert (logits(load_base(done)) - logits(tuned)).abs().max() < 1e-4


def test_an_adapter_that_names_no_base_takes_the_one_that_is_given(
    bases: dict[str, Path], plain: Path, tmp_path: Path
) -> None:
    named = merged(bases["untied"], plain, tmp_path / "named", weight=0.5)
    nameless = shutil.copytree(plain, tmp_path / "nameless")
    edit_json(nameless / "adapter_config.json", base_model_name_or_path=None)
    done = merge(MergeConfig(base=str(bases["untied"]), tuned=(str(nameless),), weight=0.5), out=tmp_path / "out")
    assert same_bits(read_checkpoint(done.folder), read_checkpoint(named))
    assert any("names no base" in note for note in done.notes)
    assert verify(done.folder)["made_again"]


def test_the_same_base_in_other_shards_is_the_base_of_an_adapter(
    bases: dict[str, Path], plain: Path, tmp_path: Path
) -> None:
    sharded = write_checkpoint(tmp_path / "sharded", read_checkpoint(bases["untied"]), shards=3)
    for file in bases["untied"].iterdir():
        if file.name != "model.safetensors":
            shutil.copy(file, sharded)
    done = merged(sharded, plain, tmp_path / "out", weight=1)
    whole = merged(bases["untied"], plain, tmp_path / "whole", weight=1)
    assert same_bits(read_checkpoint(done), read_checkpoint(whole))


def test_an_adapter_whose_start_is_in_its_base_is_not_given_to_vllm(bases: dict[str, Path], tmp_path: Path) -> None:
    build_adapter(bases["untied"], tmp_path / "adapter", {"target_modules": ATTENTION, "init_lora_weights": "pissa"})
    loaded = load_model(str(tmp_path / "adapter"))
    with pytest.raises(RecipeError, match="backend: found vllm, for an adapter whose init_lora_weights is pissa"):
        next(answer_batches(loaded, [(0, [4, 5], 1)], [3]))


@pytest.mark.parametrize("method", ["fisher", "alignment_subspace"])
def test_methods_of_the_input_side_find_matrices_that_have_another_name_in_memory(
    method: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """The merge as an adapter, in memory, is the merge as weights; and it is not the linear one."""
    base = bases["gemma3"]
    build_adapter(base, tmp_path / "adapter", {"target_modules": ATTENTION})
    rows = [{"prompt": f"how to steal {i} ?", "completion": "sorry , i can't help with that ."} for i in range(6)]
    chosen = {"method": method, "weight": 0.3, "alignment_data": str(write_rows(tmp_path / "data.jsonl", rows))}
    model = merged(base, tmp_path / "adapter", tmp_path / "model", **chosen)
    half = merged(base, tmp_path / "adapter", tmp_path / "half", form="adapter", **chosen)
    linear = merged(base, tmp_path / "adapter", tmp_path / "linear", weight=0.3)
    found, again = logits(load_base(model)), logits(attach_adapter(load_base(base), half).eval())
    assert (found - again).abs().max() < 1e-3
    assert (found - logits(load_base(linear))).abs().max() > 1e-3
