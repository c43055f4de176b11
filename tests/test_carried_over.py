"""What a tune leaves alone: the parts that text does not pass through, byte for byte, and layers that take no LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import alignkeep
from alignkeep.errors import CheckpointError, RecipeError
from alignkeep.models.config import LoadConfig
from alignkeep.models.loading import load_model, model_class
from alignkeep.models.matrices import beside_language
from alignkeep.train.config import TrainConfig
from alignkeep.trainers.adapters import lora_config, put_on
from alignkeep.trainers.config import LoraSettings
from checkpoints import bits, read_checkpoint, refused
from families.build import tiny_config
from micro import write_rows


def write_base(folder: Path, kind: str, tokenizer: Path, auto: Any = AutoModelForCausalLM) -> Path:
    torch.manual_seed(0)
    auto.from_config(tiny_config(kind)).save_pretrained(folder)
    for path in tokenizer.iterdir():
        if path.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(path, folder)
    return folder


def tuned(base: Path, root: Path, method: str = "full", **settings: Any) -> Path:
    data = write_rows(root / "data.jsonl", [{"prompt": f"fix {n} ?", "completion": "sort bread ."} for n in range(4)])
    given = {
        "model": str(base), "data": str(data), "method": method, "learning_rate": 1e-2, "batch_size": 4,
        "trainer": {"save_strategy": "no"}, "load": {"device": "cpu"}, **settings,
    }  # fmt: skip
    alignkeep.train(TrainConfig.model_validate(given), out=root / "tuned")
    return root / "tuned"


def rewritten(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def equal_names(base: Path, made: Path) -> set[str]:
    before, after = read_checkpoint(base), read_checkpoint(made)
    assert before.keys() == after.keys()
    return {name for name in before if torch.equal(bits(before[name]), bits(after[name]))}


def test_a_full_tune_of_a_wrapper_keeps_its_vision_tower_and_loads_whole(tiny_model: Path, tmp_path: Path) -> None:
    """Also where it is tuned in another dtype, beside tensors that no class uses, in two shards."""
    base = write_base(tmp_path / "base", "qwen3_5", tiny_model, AutoModelForImageTextToText)
    tensors = {**load_file(base / "model.safetensors"), "mtp.fc.weight": torch.randn(4, 4)}
    (base / "model.safetensors").unlink()
    parts = {f"model-{n + 1:05}-of-00002.safetensors": dict(list(tensors.items())[n::2]) for n in range(2)}
    for name, part in parts.items():
        save_file(part, base / name, metadata={"format": "pt"})
    placed = {key: name for name, part in parts.items() for key in part}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    made = tuned(base, tmp_path, load={"device": "cpu", "dtype": "bfloat16"})
    kept = equal_names(base, made)
    visual = {name for name in tensors if ".visual." in name}
    assert visual
    assert visual | {"mtp.fc.weight"} <= kept
    assert not [name for name in kept if "language_model" in name and name.endswith("proj.weight")]
    for name in parts:
        assert list(load_file(made / name)) == list(load_file(base / name))
    model, info = AutoModelForImageTextToText.from_pretrained(made, output_loading_info=True)
    assert type(model).__name__ == json.loads((base / "config.json").read_text())["architectures"][0]
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_a_base_of_old_names_keeps_them(tiny_model: Path, tmp_path: Path) -> None:
    """GPT-2 as it lies on the hub: the inner model's names, and masks that no model reads any more."""
    base = write_base(tmp_path / "base", "gpt2", tiny_model)
    old = {name.removeprefix("transformer."): one for name, one in load_file(base / "model.safetensors").items()}
    rewritten(base, {**old, "h.0.attn.bias": torch.ones(1, 1, 4, 4).tril()})
    made = tuned(base, tmp_path)
    assert equal_names(base, made) == {"h.0.attn.bias"}


def test_a_head_stored_beside_the_embedding_that_it_shares_is_trained_with_it(tiny_model: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "gemma2", tiny_model)
    tensors = load_file(base / "model.safetensors")
    rewritten(base, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    made = load_file(tuned(base, tmp_path) / "model.safetensors")
    assert made["lm_head.weight"].equal(made["model.embed_tokens.weight"])
    assert not made["lm_head.weight"].equal(tensors["model.embed_tokens.weight"])


def test_a_base_without_the_vision_tower_that_its_config_names_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "qwen3_5", tiny_model, AutoModelForImageTextToText)
    tensors = load_file(base / "model.safetensors")
    rewritten(base, {name: one for name, one in tensors.items() if ".visual." not in name})
    write_rows(tmp_path / "data.jsonl", [{"prompt": f"fix {n} ?", "completion": "sort bread ."} for n in range(4)])
    with refused(CheckpointError, r"tensor model\.visual\.\S+: found no such tensor", tmp_path):
        tuned(base, tmp_path)


def skeleton(kind: str) -> Any:
    config = tiny_config(kind)
    with torch.device("meta"):
        return model_class(config).from_config(config)


@pytest.mark.parametrize("kind", ["llava", "gemma3", "qwen2_5_vl"])
def test_an_adapter_of_a_wrapper_is_on_its_language_model_alone(kind: str) -> None:
    model = skeleton(kind)
    assert beside_language(model)
    for targets in ("all-linear", ["q_proj"]):
        found = put_on(model, lora_config(LoraSettings(target_modules=targets), model, "train"), "train")
        names = [name for name, _ in found.named_parameters() if "lora_A" in name]
        assert names
        assert all("language_model" in name for name in names)


def test_a_language_model_has_nothing_beside_it() -> None:
    assert beside_language(skeleton("llama")) == ()


@pytest.mark.parametrize(("kind", "left"), [("mamba2", "out_proj"), ("phimoe", "router"), ("llama4_text", "router")])
def test_layers_that_take_no_lora_get_none_from_all_linear_and_are_refused_by_name(kind: str, left: str) -> None:
    model = skeleton(kind)
    found = put_on(model, lora_config(LoraSettings(), model, "train"), "train")
    names = [name for name, _ in found.named_parameters() if "lora_A" in name]
    assert names
    assert not [name for name in names if f".{left}." in name]
    with pytest.raises(RecipeError, match=left):
        put_on(model, lora_config(LoraSettings(target_modules=[left]), model, "train"), "train")


def test_encoders_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found an encoder with a decoder"):
        model_class(tiny_config("bart"))
    bert = write_base(tmp_path / "bert", "bert", tiny_model)
    with pytest.raises(CheckpointError, match="whose output depends on the tokens that follow"):
        load_model(str(bert), LoadConfig(device="cpu"))


def test_a_model_that_needs_an_image_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    blip = write_base(tmp_path / "blip", "blip", tiny_model, AutoModelForImageTextToText)
    with pytest.raises(CheckpointError, match="found a model that fails on text alone"):
        load_model(str(blip), LoadConfig(device="cpu"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": -1}, r"epochs \(TrainConfig\): found -1, expected greater than 0"),
        ({"epoch": 1}, r"epoch \(TrainConfig\): found an unknown key, expected one of .*; did you mean epochs"),
        ({"lora": {"rank": 0}}, r"lora\.rank \(TrainConfig\): found 0"),
    ],
)
def test_settings_of_a_python_call_that_do_not_fit_are_our_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        TrainConfig(**{"model": "m", "data": "d", **values})


def test_a_head_of_several_layers_is_refused_since_the_loss_would_pass_by_it(tiny_model: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "modernbert-decoder", tiny_model)
    with pytest.raises(RecipeError, match=r"log-probabilities that are .* from the model's own"):
        tuned(base, tmp_path)
