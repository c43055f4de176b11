"""Bad input to a merge: an error that names file, tensor or setting before anything is written; nothing is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkeep.errors import AlignkeepError, CheckpointError, NoEffectError, RecipeError, ShapeError
from alignkeep.merge.config import MergeConfig
from alignkeep.merge.stage import merge, plan
from checkpoints import World, changed_copy, edit_json, hashes, refused, write_adapter

NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("merge"))


@pytest.fixture(autouse=True)
def _inputs_stay_as_they_are(world: World):
    before = hashes(world.root)
    yield
    assert hashes(world.root) == before


def of_json(**changes: object) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def of_tensors(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        changed_copy(folder, folder.with_name("changed"), change)
        shutil.rmtree(folder)
        folder.with_name("changed").rename(folder)

    return spoil


def of_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").write_bytes(
        change((folder / "model.safetensors").read_bytes())
    )


def overlapping(data: bytes) -> bytes:
    """The second tensor said to lie where the first one is of the same size."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["model.norm.weight"] = header["model.layers.0.input_layernorm.weight"]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def swapped_words(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["bake"], words["bread"] = words["bread"], words["bake"]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def pickled(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def placed_outside(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    placed = {NORM: "../half/model.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


YARN = {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0}
OLD = {"type": "linear", "factor": 2.0}
UNFIT: dict[str, tuple[Callable[[Path], object], str]] = {
    "architecture": (of_json(model_type="mistral"), "config.json: model_type: found 'mistral', expected 'llama'"),
    "setting": (of_json(num_attention_heads=2), "config.json: num_attention_heads: found 2, expected 4"),
    "positions": (of_json(rope_parameters=YARN), "rope_parameters.rope_type: found 'yarn', expected 'default'"),
    "old positions": (of_json(rope_scaling=OLD), "rope_parameters.rope_type: found 'linear', expected 'default'"),
    "word": (swapped_words, "tokenizer.json: token 'bake': found number 10, expected number 9"),
    "shape": (of_tensors(lambda t: t.update({NORM: t[NORM][1:]})), rf"{NORM}: found shape \[31\], expected \[32\]"),
    "missing": (of_tensors(lambda t: t.pop(NORM)), f"tensor {NORM}: found no such tensor"),
    "extra": (of_tensors(lambda t: t.update(more=torch.ones(1))), "tensor more: found a tensor that the base has not"),
    "integers": (of_tensors(lambda t: t.update({NORM: t[NORM].int()})), f"{NORM}: found type I32, expected BF16"),
}
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "quantised": (of_json(quantization_config={"quant_method": "awq"}), r"quantised weights \(awq\)"),
    "NaN": (
        of_tensors(lambda t: t[NORM].fill_(float("nan"))),
        f"model.safetensors: tensor {NORM}: found NaN or infinity",
    ),
    "infinity": (of_tensors(lambda t: t[NORM].fill_(float("inf"))), f"model.safetensors: tensor {NORM}: found NaN"),
    "truncated": (of_bytes(lambda data: data[:-5]), "model.safetensors: found the end of the file within tensor"),
    "longer": (of_bytes(lambda data: data + b"more"), "model.safetensors: found 4 bytes behind the last tensor"),
    "overlapping": (of_bytes(overlapping), r"model.safetensors: found tensor \S+, which overlaps"),
    "outside": (placed_outside, f"index.json: tensor {NORM}: found the file name '../half/model.safetensors'"),
    "pickled": (pickled, "pytorch_model.bin: found pickled weights"),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_a_tuned_model_that_does_not_fit_is_refused_by_name(fault: str, world: World, tmp_path: Path) -> None:
    spoil, message = UNFIT[fault]
    other = shutil.copytree(world.tuned, tmp_path / "other")
    spoil(other)
    with refused(ShapeError, message, tmp_path):
        merge(world.config(other), out=tmp_path / "out")
    with refused(ShapeError, "(as in|those of) .*/other", tmp_path):  # neither does it as a base
        merge(world.config(base=other), out=tmp_path / "out")


@pytest.mark.parametrize("role", ["base", "tuned"])
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_model_is_refused_by_name(fault: str, role: str, world: World, tmp_path: Path) -> None:
    spoil, message = BROKEN[fault]
    bad = shutil.copytree(world.tuned, tmp_path / "bad")
    spoil(bad)
    config = world.config(bad) if role == "tuned" else world.config(base=bad)
    with refused(CheckpointError, f"bad/.*{message}", tmp_path):
        merge(config, out=tmp_path / "out")


def test_a_merge_that_its_type_cannot_hold_names_the_tensor(world: World, tmp_path: Path) -> None:
    half = changed_copy(world.base, tmp_path / "half", lambda t: t.update({k: v.half() for k, v in t.items()}))
    wide = changed_copy(world.tuned, tmp_path / "wide", lambda t: t.update({NORM: torch.full((32,), 3e5)}))
    with refused(CheckpointError, rf"half/model.safetensors: tensor {NORM}: found a result beyond .* of F16", tmp_path):
        merge(world.config(wide, base=half), out=tmp_path / "out")


SETTINGS: list[tuple[dict[str, Any], type[AlignkeepError], str]] = [
    ({"weight": 1.01}, RecipeError, r"weight: found 1.01, expected a number in \[0, 1\]"),
    ({"weight": -0.01, "method": "slerp"}, RecipeError, "weight: found -0.01"),
    ({"weight": 2, "method": "nuslerp"}, RecipeError, "weight: found 2"),
    (
        {"options": {"density": 0.5}},
        RecipeError,
        "options.density: found a setting that linear does not use",
    ),
    ({"method": "ties", "options": {"gamma": 0.1}}, RecipeError, "options.gamma: .* expected density"),
    ({"method": "dare", "options": {"density": 0}}, NoEffectError, "options.density: found 0"),
    (
        {"method": "della", "options": {"density": 0.1}},
        RecipeError,
        "epsilon: found 0.15 around a density of 0.1",
    ),
    ({"method": "model_stock"}, RecipeError, "tuned: found one tuned model"),
    ({"method": "alignment_subspace"}, RecipeError, "alignment_data: found alignment_subspace without"),
    ({"alignment_data": "a.jsonl"}, RecipeError, "alignment_data: found linear with"),
    ({"form": "adapter"}, RecipeError, "form: found adapter, for 1 models or full weights"),
    ({"tuned": ()}, RecipeError, "models: found no tuned model"),
    ({"base": ""}, RecipeError, "models: found no base"),
    ({"base": "nowhere/at/all"}, CheckpointError, "nowhere/at/all: found no such folder"),
    ({"tuned": ("nowhere/at/all",)}, CheckpointError, "nowhere/at/all: found no such folder"),
]


@pytest.mark.parametrize(("settings", "error", "message"), SETTINGS)
def test_settings_that_do_not_fit_are_refused(
    settings: dict[str, Any], error: type[AlignkeepError], message: str, world: World, tmp_path: Path
) -> None:
    for attempt in (plan, lambda config: merge(config, out=tmp_path / "out")):
        with refused(error, message, tmp_path):
            attempt(MergeConfig.model_validate({"base": str(world.base), "tuned": (str(world.tuned),), **settings}))


@pytest.mark.parametrize("options", [{"density": 1.01}, {"density": -0.01}, {"epsilon": 2}, {"rescale": "sum"}])
def test_options_outside_their_range_are_no_config(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(options))):
        MergeConfig(base="a", tuned=("b",), method="della", options=options)


def test_two_changes_of_an_adapter_to_one_tensor_are_refused(tmp_path: Path) -> None:
    """Of nested experts' parameters each has a shape of its own; here both are the one that comes last in a block."""
    with as_file(files("alignkeep.testbed") / "models" / "moe") as packaged:
        base = shutil.copytree(packaged, tmp_path / "moe")
    block, factors = "model.layers.0.mlp.experts", (torch.ones(4, 144), torch.ones(128, 4))
    both = {block: factors, f"{block}.base_layer": tuple(factor.clone() for factor in factors)}
    adapter = write_adapter(tmp_path / "adapter", base, both)
    with refused(CheckpointError, r"tensor \S+lora_\S+: found a second change to \S+down_proj.weight", tmp_path):
        merge(MergeConfig(base=str(base), tuned=(str(adapter),)), out=tmp_path / "out")


def test_several_models_are_too_many_for_an_arc_and_model_stock_has_no_weight(world: World, tmp_path: Path) -> None:
    both = (world.tuned, world.other)
    with refused(RecipeError, "tuned: found 2 tuned models, expected one, for slerp", tmp_path):
        merge(world.config(*both, method="slerp"), out=tmp_path / "out")
    with refused(RecipeError, "weight: found a weight for model_stock", tmp_path):
        merge(world.config(*both, method="model_stock", weight=0.6), out=tmp_path / "out")


def test_out_may_be_no_input_nor_within_one_nor_anothers_folder(world: World, tmp_path: Path) -> None:
    tuned = shutil.copytree(world.tuned, tmp_path / "models" / "tuned")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").touch()
    overlaps = [tuned, tuned / "out", tmp_path / "models"]
    for out, message in [
        *((path, "found the input") for path in overlaps),
        (mine, "did not write"),
        (mine / "notes.txt", "a file"),
    ]:
        with refused(RecipeError, message, tmp_path):
            merge(world.config(tuned), out=out, overwrite=True)
