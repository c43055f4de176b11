"""Adapters in a merge, against PEFT: folded in at full weight, scaled at any other, and refused where they do not fit.

PEFT's result in float32 is met bit for bit at weight 1, and rounded once where the base is stored in bfloat16.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignkeep.errors import CheckpointError, NoEffectError, RecipeError
from alignkeep.lifecycle import verify
from alignkeep.merge.config import MergeConfig
from alignkeep.merge.stage import MergeResult, merge
from alignkeep.models.adapters import check_experts
from checkpoints import Tensors, changed_copy, edit_json, noise, read_checkpoint, refused, same_bits
from conftest import build_tiny_model
from micro import write_rows

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# Of two patterns that fit the first counts; "proj" fits no whole word of a name.
ALPHAS = {"proj": 99, "layers.1.self_attn.q_proj": 7, "q_proj": 5, "up_proj": 3}
PATTERNS = {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": ALPHAS}
# Every way of adapting, by the base it is for.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": ["q_proj", "up_proj", "down_proj"]}),
    "rank-stabilised": ("llama", {"target_modules": "all-linear", "use_rslora": True}),
    "patterns": ("llama", {"target_modules": "all-linear", "use_rslora": True, **PATTERNS}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "head": ("llama", {"target_modules": ["lm_head", "q_proj"]}),
    "modules to save": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
    "a matrix to save": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["o_proj"]}),
    "norms to save": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "conv1d, square": ("gpt2", {"target_modules": ["attn.c_proj"]}),
    "all biases": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
    "biases of the adapted": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "bias": "lora_only"}),
    "experts": ("moe", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "experts, one parameter": ("moe", {"target_modules": ["o_proj"], "target_parameters": EXPERTS[1:]}),
    "experts, other scales": (
        "moe",
        {"target_parameters": EXPERTS, "rank_pattern": {"experts.down_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    ),
    "router": ("moe", {"target_parameters": ["mlp.gate.weight"]}),
    "experts under other names": ("mixtral", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
}


pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT on tied weights, patterns, embeddings


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

    root = tmp_path_factory.mktemp("bases")
    build_tiny_model(root / "llama")
    torch.manual_seed(0)
    gpt2 = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    GPT2LMHeadModel(gpt2).save_pretrained(root / "gpt2")
    mixtral = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2,
    )  # fmt: skip
    MixtralForCausalLM(mixtral).save_pretrained(root / "mixtral")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(root / "llama" / file, root / "gpt2")
    with as_file(files("alignkeep.testbed") / "models" / "moe") as packaged:
        shutil.copytree(packaged, root / "moe")
    return {name: root / name for name in ("llama", "gpt2", "mixtral", "moe")}


def loaded(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def build_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter as PEFT saves it, all that it trains moved at random."""
    from peft import LoraConfig, __version__, get_peft_model

    if settings.get("target_parameters") and __version__.startswith("0.18."):
        pytest.skip("PEFT 0.18 has the experts turned round: such adapters are refused")
    model = get_peft_model(loaded(base), LoraConfig(**{"r": 4, "lora_alpha": 8, **settings}))
    for place, (name, parameter) in enumerate(model.named_parameters()):
        trained = "lora_" in name or "modules_to_save" in name or (settings.get("bias") and name.endswith("bias"))
        if trained:
            parameter.data += noise(*parameter.shape, seed=place, scale=0.05)
    model.save_pretrained(folder)
    return folder


def folded(base: Path, adapter: Path, folder: Path) -> Tensors:
    """PEFT's own merge in float32, as it saves it."""
    from peft import PeftModel

    PeftModel.from_pretrained(loaded(base), str(adapter)).merge_and_unload().save_pretrained(folder)
    return read_checkpoint(folder)


def merged(base: Path, adapter: Path, out: Path, **settings: Any) -> MergeResult:
    return merge(MergeConfig(base=str(base), tuned=(str(adapter),), **settings), out=out)


@pytest.mark.parametrize("way", WAYS)
def test_at_weight_1_the_model_is_pefts_bit_for_bit(way: str, bases: dict[str, Path], tmp_path: Path) -> None:
    base, settings = bases[WAYS[way][0]], WAYS[way][1]
    adapter = build_adapter(base, tmp_path / "adapter", **settings)
    done = merged(base, adapter, tmp_path / "out", weight=1)
    expected, stored = folded(base, adapter, tmp_path / "folded"), read_checkpoint(base)
    assert same_bits(read_checkpoint(done.folder), {name: expected[name].to(stored[name].dtype) for name in stored})
    assert verify(done.folder)["made_again"]


@pytest.mark.parametrize("way", ["plain", "embedding", "conv1d", "experts", "modules to save", "all biases"])
def test_at_another_weight_the_change_is_scaled(way: str, bases: dict[str, Path], tmp_path: Path) -> None:
    """Against PEFT's merge at full weight: (1 - w) base + w tuned in float64, to a rounding of the stored type."""
    base, settings = bases[WAYS[way][0]], WAYS[way][1]
    adapter = build_adapter(base, tmp_path / "adapter", **settings)
    done = merged(base, adapter, tmp_path / "out", weight=0.3)
    stored, tuned = read_checkpoint(base), folded(base, adapter, tmp_path / "folded")
    for name, found in read_checkpoint(done.folder).items():
        exact = 0.7 * stored[name].double() + 0.3 * tuned[name].double()
        sizes = stored[name].double().abs() + tuned[name].double().abs()
        step = 2**-8 if found.dtype == torch.bfloat16 else 0.0
        assert torch.all((found.double() - exact).abs() <= exact.abs() * step + sizes * 2**-22), name


@pytest.mark.parametrize("way", ["plain", "patterns", "rank-stabilised", "embedding", "conv1d", "experts"])
def test_a_merge_as_an_adapter_says_what_the_scaled_adapter_says(
    way: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    from peft import PeftModel
    from peft.helpers import rescale_adapter_scale

    base, settings = bases[WAYS[way][0]], WAYS[way][1]
    adapter = build_adapter(base, tmp_path / "adapter", **settings)
    done = merged(base, adapter, tmp_path / "out", weight=0.3, form="adapter")
    assert (done.form, done.changed) == ("adapter", 0)
    tokens = torch.arange(20).view(2, 10)
    tuned = PeftModel.from_pretrained(loaded(base), str(adapter)).eval()
    found = PeftModel.from_pretrained(loaded(base), str(done.folder)).eval()
    with torch.no_grad():
        with rescale_adapter_scale(tuned, 0.3):
            expected = tuned(tokens).logits
        assert (found(tokens).logits - expected).abs().max() < 1e-5
        assert (tuned(tokens).logits - expected).abs().max() > 1e-2
    assert verify(done.folder)["made_again"]


@pytest.mark.parametrize("method", ["fisher", "alignment_subspace"])
@pytest.mark.parametrize("way", ["plain", "embedding", "conv1d", "a matrix to save"])
def test_methods_of_the_input_side_make_the_same_model_either_way(
    method: str, way: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """The adapter that is written, folded in by PEFT, is the model that is written, to a rounding."""
    base, settings = bases[WAYS[way][0]], WAYS[way][1]
    adapter = build_adapter(base, tmp_path / "adapter", **settings)
    rows = [{"prompt": f"how to steal {i} ?", "completion": "sorry , i can't help with that ."} for i in range(6)]
    data = write_rows(tmp_path / "data.jsonl", rows)
    chosen = {"method": method, "weight": 0.3, "alignment_data": str(data)}
    model = merged(base, adapter, tmp_path / "model", **chosen)
    done = merged(base, adapter, tmp_path / "as adapter", form="adapter", **chosen)
    again = folded(base, done.folder, tmp_path / "folded")
    linear = read_checkpoint(merged(base, adapter, tmp_path / "linear", weight=0.3).folder)
    found = read_checkpoint(model.folder)
    for name, numbers in found.items():
        step = 2**-7 if numbers.dtype == torch.bfloat16 else 1e-5
        assert torch.allclose(numbers.float(), again[name], rtol=step, atol=1e-6), name
    assert any(not torch.equal(found[name], linear[name]) for name in found), "the data was not looked at"
    assert verify(done.folder)["made_again"]
    assert verify(model.folder)["made_again"]


def test_what_an_adapter_stores_whole_is_merged_with_the_base(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["llama"]
    adapter = build_adapter(base, tmp_path / "adapter", **WAYS["modules to save"][1])
    done = merged(base, adapter, tmp_path / "out", weight=0.3, form="adapter")
    name, stored = "base_model.model.lm_head.weight", read_checkpoint(base)["lm_head.weight"]
    expected = stored + (read_checkpoint(adapter)[name] - stored) * 0.3
    assert torch.equal(read_checkpoint(done.folder)[name], expected)
    assert done.changed == 2
    assert verify(done.folder)["made_again"]


def test_an_adapter_merges_with_full_models_and_other_adapters(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["llama"]
    adapters = [build_adapter(base, tmp_path / name, target_modules=[name]) for name in ("q_proj", "up_proj")]
    full = changed_copy(base, tmp_path / "full", lambda t: t["model.norm.weight"].add_(1))
    config = MergeConfig(base=str(base), tuned=tuple(map(str, [*adapters, full])), weight=0.6)
    done = merge(config, out=tmp_path / "out")
    assert done.changed == 2 + 2 + 1
    norms = read_checkpoint(done.folder)["model.norm.weight"] - read_checkpoint(base)["model.norm.weight"]
    assert torch.allclose(norms, torch.full((32,), 0.2), atol=1e-6)


def of_settings(**changes: object) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / "adapter_config.json", **changes)


def of_factors(change: Callable[[Tensors], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return spoil


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "DoRA without lengths": (of_settings(use_dora=True), f"{Q}A.weight: found no lora_magnitude_vector beside it"),
    "biases that are not there": (of_settings(lora_bias=True), f"{Q}A.weight: found no lora_bias beside it"),
    "quantised factors": (of_settings(use_qalora=True), "adapter_config.json: use_qalora: found True, expected a LoRA"),
    "another form": (of_settings(peft_type="VERA"), "adapter_config.json: peft_type: found 'VERA'"),
    "single tokens": (of_settings(trainable_token_indices=[1]), "trainable_tokens_delta: found no such tensor"),
    "no module": (
        of_factors(lambda t: t.update({k.replace("layers.0", "layers.9"): v + 0 for k, v in t.items()})),
        r"tensor \S+layers.9.self_attn.q_proj.lora_A.weight: found no tensor model.layers.9.self_attn.q_proj.weight",
    ),
    "other width": (
        of_factors(lambda t: t.update({f"{Q}A.weight": torch.ones(4, 31)})),
        rf"tensor {Q}A.weight: found a change of shape \[32, 31\] to \[32, 32\]",
    ),
    "no partner": (of_factors(lambda t: t.pop(f"{Q}B.weight")), rf"{Q}A.weight: found lora_A without"),
    "unknown": (of_factors(lambda t: t.update(odd=torch.ones(1))), r"tensor odd: found no odd of shape \[1\]"),
    "NaN": (of_factors(lambda t: t[f"{Q}B.weight"].fill_(float("nan"))), f"tensor {Q}B.weight: found NaN"),
    "moved base": (of_settings(base_model_name_or_path="/gone"), "found /gone, which is no folder"),
}


@pytest.fixture(scope="module")
def adapter(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_adapter(bases["llama"], tmp_path_factory.mktemp("adapter") / "adapter", target_modules=["q_proj"])


@pytest.mark.parametrize("form", ["model", "adapter"])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_cannot_be_merged_is_refused_by_name(
    fault: str, form: str, bases: dict[str, Path], adapter: Path, tmp_path: Path
) -> None:
    spoil, message = FAULTS[fault]
    bad = shutil.copytree(adapter, tmp_path / "bad")
    spoil(bad)
    with refused(CheckpointError, message, tmp_path):
        merged(bases["llama"], bad, tmp_path / "out", form=form)


@pytest.mark.parametrize("form", ["model", "adapter"])
@pytest.mark.parametrize("way", ["plain", "head"])
def test_an_untrained_adapter_has_no_effect(way: str, form: str, bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = build_adapter(bases["llama"], tmp_path / "adapter", **WAYS[way][1])
    of_factors(lambda t: [tensor.zero_() for name, tensor in t.items() if "lora_B" in name])(adapter)
    with refused(NoEffectError, "merged tensors, all equal to the base's", tmp_path):
        merged(bases["llama"], adapter, tmp_path / "out", form=form)


def test_an_adapter_of_another_base_is_refused(bases: dict[str, Path], adapter: Path, tmp_path: Path) -> None:
    other = build_tiny_model(tmp_path / "other", seed=1)
    with refused(CheckpointError, "base_model_name_or_path: found .*llama, which is another model than", tmp_path):
        merged(other, adapter, tmp_path / "out")


def test_a_base_of_the_hub_is_not_fetched_to_be_compared(bases: dict[str, Path], adapter: Path, tmp_path: Path) -> None:
    named = shutil.copytree(adapter, tmp_path / "named")
    edit_json(named / "adapter_config.json", base_model_name_or_path="somebody/some-model")
    done = merged(bases["llama"], named, tmp_path / "out", form="adapter")
    told = json.loads((done.folder / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == str(bases["llama"])
    assert done.notes[0].startswith(f"{named}: its recorded base somebody/some-model is not here to compare")
    assert verify(done.folder)["made_again"]


def test_an_embedding_of_its_own_is_refused_where_the_head_shares_it(bases: dict[str, Path], tmp_path: Path) -> None:
    """PEFT unties the two; one checkpoint of the base's form cannot hold both."""
    bad = build_adapter(bases["gpt2"], tmp_path / "bad", target_modules=["c_attn"], modules_to_save=["wte"])
    with refused(
        CheckpointError,
        "found embeddings and head that differ",
        tmp_path,
    ):
        merged(bases["gpt2"], bad, tmp_path / "out")


def test_an_adapter_is_no_base_and_only_one_adapter_alone_is_an_adapter_again(
    bases: dict[str, Path], adapter: Path, tmp_path: Path
) -> None:
    base = bases["llama"]
    with refused(CheckpointError, "found an adapter, expected a full model as the base; give its .*llama", tmp_path):
        merged(adapter, base, tmp_path / "out")
    usual = {"base": str(base), "tuned": (str(adapter),), "form": "adapter"}
    for settings in ({"method": "slerp"}, {"tuned": (str(adapter), str(adapter))}, {"tuned": (str(base),)}):
        with refused(RecipeError, "form: found adapter, for", tmp_path):
            merge(MergeConfig.model_validate({**usual, **settings}), out=tmp_path / "out")


def test_an_adapter_of_experts_made_by_a_peft_that_turns_them_round_is_refused(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    """Of a square matrix the shapes would not tell."""
    adapter = build_adapter(bases["moe"], tmp_path / "adapter", target_parameters=EXPERTS)
    edit_json(adapter / "adapter_config.json", peft_version="0.18.1")
    with pytest.raises(CheckpointError, match=r"made with PEFT 0\.18\.1.*turned round"):
        merged(bases["moe"], adapter, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"to be loaded by PEFT 0\.18\.0.*turned round"):
        check_experts(adapter, {"target_parameters": EXPERTS, "peft_version": "0.21.2"}, loaded_by="0.18.0")
