"""Fisher factors collected from models: twins by autograd, batches, adapters, and a model that stays as it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkeep.errors import CheckpointError, DataError, RecipeError, ShapeError
from alignkeep.models.chat import encode_example
from alignkeep.models.collectors import Side, collect_factors, collect_sides
from alignkeep.models.loading import LoadedModel, load_model
from alignkeep.models.matrices import matrices
from alignkeep.subspace.fisher import FullFactor, SketchedFactor
from alignkeep.types import Checkpoint, Example, Message

SIDES: tuple[Side, ...] = ("input", "output", "moment")


def chat(*turns: str) -> Example:
    roles = ("user", "assistant")
    return Example(tuple(Message(roles[at % 2], words) for at, words in enumerate(turns)))


EXAMPLES = [
    chat("how to steal the bike ?", "Sorry , i can't help with that ."),
    chat("how do i bake bread ?", "sure , bake bread ."),
    chat("fix a bike", "yes"),
    chat("sort the numbers 3 1 2", "1 2 3", "sort high to low 1 2", "2 1"),
    chat("what is a bike ?", "a bike is here . yes that is what the bike is"),
    chat("help", "no"),
    chat("how to steal ?", "Sorry"),
    chat("is that how i steal the bread ? tell me", "no , please bake the bread"),
    chat("tell me 1 2 3 4 5 6 7 8 9 0", "sure"),
]


def around(model: Any, folder: Path) -> LoadedModel:
    """A model made here, with the tiny model's tokenizer."""
    tokenizer = load_model(str(folder)).tokenizer
    return LoadedModel(model.eval(), tokenizer, Checkpoint(str(folder), folder, False, None))


def tiny_gpt2(folder: Path) -> LoadedModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    settings = GPT2Config(vocab_size=80, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2)
    return around(GPT2LMHeadModel(settings), folder)


def answer_loss(loaded: LoadedModel, example: Example) -> Tensor:
    """Written out: minus the sum of the answer tokens' log-probabilities, one example alone, all logits."""
    ids, labels = encode_example(loaded.tokenizer, example)
    scores = loaded.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return -torch.stack([scores[at - 1, label] for at, label in enumerate(labels) if label != -100]).sum()


def gradients_of(loaded: LoadedModel, examples: Sequence[Example], name: str, *, transposed: bool = False) -> Tensor:
    """(n, d_out, d_in): every sample's gradient of one weight, by autograd."""
    weight = matrices(loaded.model).modules[name].weight.requires_grad_(True)
    found = torch.stack([torch.autograd.grad(answer_loss(loaded, one), weight)[0].float() for one in examples])
    return found.mT if transposed else found


def whole(factors: dict[str, Any], name: str) -> Tensor:
    assert isinstance(factors[name], FullFactor)
    return factors[name].matrix.float()


def assert_alike(found: Tensor, expected: Tensor, relative: float) -> None:
    assert float((found - expected).abs().max()) <= relative * float(expected.abs().max())


@pytest.fixture(scope="module")
def llama(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model))


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"])
def test_the_factors_of_a_linear_layer_are_those_of_its_weights_gradients(llama, name):
    gradients = gradients_of(llama, EXAMPLES, name)
    found = collect_sides(llama, EXAMPLES, ("input", "output"), modules=[name], batch_size=4)
    assert_alike(whole(found["input"], name), (gradients.mT @ gradients).mean(0), 1e-4)
    assert_alike(whole(found["output"], name), (gradients @ gradients.mT).mean(0), 1e-4)
    assert found["input"][name].count == len(EXAMPLES)


@pytest.mark.parametrize("name", ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"])
def test_the_factors_of_conv1d_are_those_of_its_transposed_weights_gradients(tiny_model, name):
    loaded = tiny_gpt2(tiny_model)
    gradients = gradients_of(loaded, EXAMPLES, name, transposed=True)
    found = collect_sides(loaded, EXAMPLES, ("input", "output"), modules=[name])
    assert_alike(whole(found["input"], name), (gradients.mT @ gradients).mean(0), 1e-4)
    assert_alike(whole(found["output"], name), (gradients @ gradients.mT).mean(0), 1e-4)


def test_embeddings_that_a_model_scales_in_place_begin_the_same_gradients(tiny_model):
    from transformers import CTRLConfig, CTRLLMHeadModel

    torch.manual_seed(0)
    config = CTRLConfig(vocab_size=80, n_embd=16, n_layer=2, n_head=2, n_positions=64, dff=32, initializer_range=0.2)
    loaded = around(CTRLLMHeadModel(config), tiny_model)
    name = "transformer.h.0.multi_head_attention.Wv"
    gradients = gradients_of(loaded, EXAMPLES, name)
    found = collect_factors(loaded, EXAMPLES, modules=[name])
    assert_alike(whole(found, name), (gradients.mT @ gradients).mean(0), 1e-4)


def test_a_matrix_used_twice_has_one_gradient_per_sample(tiny_model):
    loaded = tiny_gpt2(tiny_model)
    layers = loaded.model.transformer.h
    layers[1].mlp = layers[0].mlp
    name = "transformer.h.0.mlp.c_fc"
    gradients = gradients_of(loaded, EXAMPLES, name, transposed=True)
    found = collect_factors(loaded, EXAMPLES, modules=[name])
    assert_alike(whole(found, name), (gradients.mT @ gradients).mean(0), 1e-4)


def test_the_second_moment_is_that_of_all_unpadded_inputs(llama):
    name, seen = "model.layers.1.self_attn.q_proj", []
    module = matrices(llama.model).modules[name]
    handle = module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][0].detach()))
    with torch.no_grad():
        for example in EXAMPLES:
            llama.model(input_ids=torch.tensor([encode_example(llama.tokenizer, example).input_ids]))
    handle.remove()
    tokens = torch.cat(seen)
    found = collect_factors(llama, EXAMPLES, side="moment", modules=[name], batch_size=4)
    assert found[name].count == len(tokens)
    assert_alike(whole(found, name), tokens.mT @ tokens / len(tokens), 1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_batch_of_eight_is_eight_batches_of_one(tiny_model, family):
    loaded = load_model(str(tiny_model)) if family == "llama" else tiny_gpt2(tiny_model)
    together = collect_sides(loaded, EXAMPLES[:8], SIDES, batch_size=8)
    alone = collect_sides(loaded, EXAMPLES[:8], SIDES, batch_size=1)
    names = list(matrices(loaded.model).modules)
    for side in SIDES:
        assert list(together[side]) == list(alone[side]) == names
        for name in names:
            assert together[side][name].count == alone[side][name].count
            assert_alike(whole(together[side], name), whole(alone[side], name), 1e-5)


def test_the_same_call_gives_the_same_bits_and_passes_by_group_the_same_factors(llama):
    first = collect_factors(llama, EXAMPLES)
    again = collect_factors(llama, EXAMPLES)
    names = list(first)
    grouped: dict[str, Any] = {}
    for few in (names[:5], names[5:10], names[10:]):
        grouped |= collect_factors(llama, EXAMPLES, modules=few)
    for name in names:
        assert whole(first, name).equal(whole(again, name))
        assert_alike(whole(grouped, name), whole(first, name), 1e-6)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_stays_as_it_was(tiny_model, fails):
    loaded = load_model(str(tiny_model))
    model = loaded.model
    model.train()
    model.model.layers[0].eval()
    model.lm_head.weight.requires_grad_(False)
    kept = next(iter(model.model.layers[1].parameters()))
    kept.grad = torch.full_like(kept, 7.0)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    wanted = [weight.requires_grad for weight in model.parameters()]
    if fails:
        model.lm_head.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            collect_sides(loaded, EXAMPLES, SIDES)
        model.lm_head._forward_hooks.clear()
    else:
        collect_sides(loaded, EXAMPLES, SIDES)
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [weight.requires_grad for weight in model.parameters()] == wanted
    assert [weight.grad is not None for weight in model.parameters()] == [w is kept for w in model.parameters()]
    assert bool((kept.grad == 7).all())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_a_model_in_training_is_collected_without_its_dropout(tiny_model):
    loaded, name = tiny_gpt2(tiny_model), "transformer.h.1.mlp.c_fc"
    expected = collect_factors(loaded, EXAMPLES, modules=[name])
    loaded.model.train()
    assert loaded.model.config.resid_pdrop > 0
    assert whole(collect_factors(loaded, EXAMPLES, modules=[name]), name).equal(whole(expected, name))


def test_collecting_works_where_gradients_were_switched_off(llama):
    with torch.no_grad():
        found = collect_factors(llama, EXAMPLES[:2], modules=["model.layers.0.mlp.up_proj"])
        assert not torch.is_grad_enabled()
    assert found["model.layers.0.mlp.up_proj"].trace > 0


def test_bfloat16_gives_nearly_the_same_factors(tiny_model, llama):
    rough = load_model(str(tiny_model))
    rough.model.to(torch.bfloat16)
    found, expected = collect_factors(rough, EXAMPLES), collect_factors(llama, EXAMPLES)
    for name in expected:
        assert whole(found, name).dtype == torch.float32
        assert_alike(whole(found, name), whole(expected, name), 0.1)


def test_wide_matrices_are_sketched(llama, monkeypatch):
    """Any width is wide once the border is moved; a probe of as many columns as the matrix hides nothing."""
    name = "model.layers.0.mlp.down_proj"
    expected = whole(collect_factors(llama, EXAMPLES), name).double()
    monkeypatch.setattr("alignkeep.subspace.fisher.FULL_UP_TO", 40)
    factors = collect_factors(llama, EXAMPLES)
    found = factors[name]
    assert isinstance(found, SketchedFactor)
    assert isinstance(factors["model.layers.0.mlp.up_proj"], FullFactor)
    assert_alike(found.sketch @ found.probe.double().mT, expected, 1e-5)
    assert found.trace == pytest.approx(float(expected.trace()), rel=1e-5)


def test_an_adapter_is_collected_under_the_names_of_its_base(tiny_model):
    from peft import LoraConfig, get_peft_model

    name = "model.layers.1.self_attn.v_proj"
    base = load_model(str(tiny_model))
    settings = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(1)
    wrapped = get_peft_model(load_model(str(tiny_model)).model, settings).eval()
    loaded = LoadedModel(wrapped, base.tokenizer, Checkpoint("adapter", tiny_model, True, str(tiny_model)))
    expected = collect_factors(base, EXAMPLES)
    merged = get_peft_model(load_model(str(tiny_model)).model, settings)
    merged.load_state_dict(wrapped.state_dict())
    tuned = LoadedModel(merged.merge_and_unload().eval(), base.tokenizer, base.checkpoint)
    found = collect_factors(loaded, EXAMPLES)
    assert list(found) == list(expected)
    assert_alike(whole(found, name), whole(collect_factors(tuned, EXAMPLES), name), 1e-4)
    with loaded.as_base():
        assert_alike(whole(collect_factors(loaded, EXAMPLES), name), whole(expected, name), 1e-5)
    assert any(weight.requires_grad for weight in wrapped.parameters())


def test_fused_experts_and_their_router_are_named_as_left_out(tiny_model):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    settings = Qwen3MoeConfig(
        vocab_size=80, hidden_size=16, intermediate_size=32, moe_intermediate_size=24, num_hidden_layers=1, head_dim=8,
        num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1,
    )  # fmt: skip
    loaded = around(Qwen3MoeForCausalLM(settings), tiny_model)
    found = matrices(loaded.model)
    attention = [f"model.layers.0.self_attn.{part}_proj" for part in "qkvo"]
    assert list(found.modules) == attention
    assert set(found.left_out) == {
        "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj",
        "model.layers.0.mlp.gate.weight",
    }  # fmt: skip
    gradients = gradients_of(loaded, EXAMPLES, attention[1])
    factors = collect_factors(loaded, EXAMPLES, batch_size=4)
    assert_alike(whole(factors, attention[1]), (gradients.mT @ gradients).mean(0), 1e-4)


class Routed(torch.nn.Module):
    """Flattens its tokens; all of them go through one matrix, some through an expert of their own."""

    def __init__(self, width: int, border: float = 0.0) -> None:
        super().__init__()
        self.border = border
        self.shared = torch.nn.Linear(width, width)
        self.experts = torch.nn.ModuleList([torch.nn.Linear(width, width) for _ in range(2)])

    def forward(self, values: Tensor) -> Tensor:
        flat = values.reshape(-1, values.shape[-1])
        chosen = (flat[:, 0] > self.border).long()
        parts = torch.zeros_like(flat)
        for at, expert in enumerate(self.experts):
            rows = (chosen == at).nonzero()[:, 0]
            parts = parts.index_add(0, rows, expert(flat[rows]))
        return (self.shared(flat) + parts).reshape(values.shape)


def test_flattened_tokens_are_told_apart_and_routed_ones_need_a_batch_of_one(tiny_model):
    loaded = tiny_gpt2(tiny_model)
    torch.manual_seed(2)
    loaded.model.transformer.h[0].mlp = Routed(16)
    shared, expert = "transformer.h.0.mlp.shared", "transformer.h.0.mlp.experts.1"
    for name, size in ((shared, 4), (expert, 1)):
        gradients = gradients_of(loaded, EXAMPLES, name)
        found = collect_factors(loaded, EXAMPLES, modules=[name], batch_size=size)
        assert_alike(whole(found, name), (gradients.mT @ gradients).mean(0), 1e-4)
    for border in (0.0, -1e9):  # some tokens, and all of them, which an expert may see in any order
        loaded.model.transformer.h[0].mlp.border = border
        with pytest.raises(ShapeError, match=r"experts\.1.*batch size of 1"):
            collect_factors(loaded, EXAMPLES, modules=[expert], batch_size=4)


def test_the_loss_ends_where_the_example_is_cut(llama):
    """Cut behind the first answer token, the example is the one whose answer is that token."""
    name, example = "model.layers.0.mlp.up_proj", EXAMPLES[0]
    ids, labels = encode_example(llama.tokenizer, example)
    first = next(at for at, label in enumerate(labels) if label != -100)
    found = collect_factors(llama, [example], modules=[name], max_length=first + 1)
    weight = matrices(llama.model).modules[name].weight.requires_grad_(True)
    loss = -llama.model(input_ids=torch.tensor([ids])).logits[0, first - 1].log_softmax(-1)[ids[first]]
    gradient = torch.autograd.grad(loss, weight)[0]
    assert_alike(whole(found, name), gradient.mT @ gradient, 1e-4)


def test_what_cannot_be_collected_is_said(llama):
    with pytest.raises(RecipeError, match=r"model\.layers\.9.*14 linear modules"):
        collect_factors(llama, EXAMPLES, modules=["model.layers.9.mlp.up_proj"])
    with pytest.raises(DataError, match="prompts with answers"):
        collect_factors(llama, [])
    with pytest.raises(DataError, match=r"example 4.*raise max_length"):
        collect_factors(llama, [EXAMPLES[5]] * 3 + [EXAMPLES[7]], max_length=6)


def test_gradients_that_are_not_finite_are_an_error_naming_the_module(tiny_model):
    loaded = load_model(str(tiny_model))
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"q_proj.*not finite"):
        collect_factors(loaded, EXAMPLES[:1])
