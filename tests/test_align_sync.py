"""Weights for vLLM: the base is left as it is, and what is sent is TRL's list with PEFT's numbers, rounded once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer
from trl.distributed import DistributedBackend
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from alignkeep.align.engine import CarefulGRPOTrainer
from alignkeep.align.sync import ExactSync, keep_base_exact, merged_parameters
from alignkeep.align.trainer import GRAOTrainer
from alignkeep.errors import RecipeError
from families import TINY

RANK = 4
ATTENTION = ["q_proj", "v_proj"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "every linear layer": ("llama", {"target_modules": "all-linear"}),
    "rank-stabilised": ("llama", {"use_rslora": True}),
    "other ranks and strengths": ("llama", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}}),
    "biases": ("qwen2", {"bias": "lora_only"}),
    "Conv1D, head tied": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "experts beside it": ("qwen3_moe", {}),
    "head and embeddings": ("llama", {"target_modules": ["embed_tokens", "lm_head"]}),
    "a head of its own": ("llama", {"modules_to_save": ["lm_head", "norm"]}),
    "tied embeddings of its own": ("qwen2", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
}


def tiny(family: str = "llama", dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    torch.manual_seed(0)
    tied = {"tie_word_embeddings": family in ("gpt2", "qwen2")}
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**{**TINY[family], **tied, **changes})).to(dtype)


def lora(base: Any, **settings: Any) -> Any:
    return get_peft_model(base, LoraConfig(**{"r": RANK, "lora_alpha": 8, "target_modules": ATTENTION, **settings}))


def kind_of(name: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    family, settings = KINDS[name]
    return learned(lora(tiny(family, dtype), **settings), steps=20)


def learned(model: Any, *, steps: int = 1, seed: int = 1) -> Any:
    """What is trained, after so many steps of 2e-4 up or down, as Adam takes them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(steps):
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1, alpha=2e-4)
    return model


def state_of(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def is_same(model: Any, before: dict[str, Tensor], *, frozen: bool = False) -> bool:
    """Every tensor of the state, or of what is not trained, bit for bit."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad and frozen}
    now = model.state_dict()
    assert now.keys() == before.keys()
    return all(torch.equal(now[name], tensor) for name, tensor in before.items() if name not in trained)


class Engine:
    """vLLM as far as TRL reaches into it: takes weights, and answers every prompt with two tokens."""

    def __init__(self, *, room: int = 1000) -> None:
        self.room, self.weights = room, {}
        runner = SimpleNamespace(model=self)
        worker = SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        self.llm_engine = SimpleNamespace(model_executor=worker, model_config=SimpleNamespace(max_model_len=64))

    def load_weights(self, weights: list[tuple[str, Tensor]]) -> None:
        for name, weight in weights:
            if len(self.weights) == self.room:
                raise MemoryError(name)
            self.weights[name] = weight.clone()

    def reset_prefix_cache(self) -> None:
        pass

    def generate(self, prompts: list[Any], **_: Any) -> list[Any]:
        return [self.answer(prompt["prompt_token_ids"], 10 + number % 7) for number, prompt in enumerate(prompts)]

    def answer(self, prompt_ids: list[int], token: int) -> Any:
        chances = [{one: SimpleNamespace(rank=1, logprob=-3.0)} for one in (token, 3)]
        return SimpleNamespace(
            prompt_token_ids=prompt_ids, outputs=[SimpleNamespace(token_ids=[token, 3], logprobs=chances)]
        )


def generation(model: Any, kind: type[VLLMGeneration] = ExactSync, **engine: Any) -> Any:
    """What TRL's constructor makes, without the start of vLLM."""
    made = object.__new__(kind)
    made.model, made.mode, made.enable_sleep_mode = model, "colocate", False
    made.accelerator = Accelerator(cpu=True)
    made._dist, made.llm = DistributedBackend(made.accelerator), Engine(**engine)
    return made


def sent(model: Any, kind: type[VLLMGeneration] = ExactSync) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in generation(model, kind)._iter_named_params()}


# The base


def by_hand(kind: type[VLLMGeneration]) -> tuple[float, float]:
    """What vLLM gets and what is left of one weight 2^-9 under a change of 2 * 0.5 * 1 = 1.

    bfloat16 has 8 bits: between 1 and 2 its numbers are 2^-7 apart, so 1 + 2^-9 is rounded to 1.
    """
    model: Any = get_peft_model(
        nn.Sequential(nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)),
        LoraConfig(r=1, lora_alpha=2, target_modules=["0"]),
    )
    layer = model.base_model.model[0]
    with torch.no_grad():
        for weight, value in (
            (layer.weight, 2**-9),
            (layer.lora_A.default.weight, 1),
            (layer.lora_B.default.weight, 0.5),
        ):
            weight.fill_(value)
    return sent(model, kind)["0.weight"].item(), layer.weight.item()


def test_a_weight_by_hand_is_sent_merged_and_stays_where_trl_loses_it() -> None:
    assert by_hand(ExactSync) == (1.0, 2**-9)
    assert by_hand(VLLMGeneration) == (1.0, 0.0)


def drift(kind: type[VLLMGeneration], syncs: int) -> float:
    """Norm of what so many syncs, with a step of training before each, did to the adapted weights, over their norm."""
    model = kind_of("every linear layer")
    before, syncing = state_of(model), generation(model, kind)
    for step in range(syncs):
        learned(model, seed=step)
        syncing.sync_weights()
    adapted = [(before[key].float(), now.float()) for key, now in model.state_dict().items() if "base_layer" in key]
    assert is_same(model, before, frozen=True) == all(torch.equal(*pair) for pair in adapted)
    return float(sum(((a - b) ** 2).sum() for a, b in adapted) / sum((a**2).sum() for a, _ in adapted)) ** 0.5


def test_many_syncs_leave_the_base_bit_identical_where_trls_own_make_it_drift() -> None:
    assert drift(ExactSync, 30) == 0
    few, many = drift(VLLMGeneration, 3), drift(VLLMGeneration, 30)
    assert 1e-4 < few < many


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", KINDS)
def test_a_sync_of_every_kind_writes_to_no_tensor_of_the_model(name: str, dtype: torch.dtype) -> None:
    model = kind_of(name, dtype)
    before = state_of(model)
    generation(model).sync_weights()
    assert is_same(model, before)


def test_a_receiver_that_stops_or_fails_midway_leaves_the_base_bit_identical_where_trl_leaves_it_merged() -> None:
    for kind in (ExactSync, VLLMGeneration):
        model = kind_of("every linear layer")
        before = state_of(model)
        with pytest.raises(MemoryError):
            generation(model, kind, room=5).sync_weights()
        assert is_same(model, before) == (kind is ExactSync)
    model = kind_of("every linear layer")
    weights = generation(model)._iter_named_params()
    next(weights)
    next(weights)
    assert is_same(model, before), "in the middle"
    weights.close()
    assert is_same(model, before)
    generation(model).sync_weights()  # and the next is whole


# What is sent


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", KINDS)
def test_names_order_shapes_and_types_are_trls(name: str, dtype: torch.dtype) -> None:
    model = kind_of(name, dtype)

    def described(kind: type[VLLMGeneration]) -> list[Any]:
        every = sent(model, kind).items()
        return [(key, weight.shape, weight.dtype, weight.requires_grad) for key, weight in every]

    assert described(ExactSync) == described(VLLMGeneration)
    assert len(described(ExactSync)) > 20


def twin(model: Any, change: Callable[[Tensor], Tensor] = torch.clone) -> dict[str, Tensor]:
    """PEFT's own merge of a float64 copy, whose parameters `change` was applied to."""
    double = copy.deepcopy(model).double()
    with torch.no_grad():
        for parameter in double.parameters():
            parameter.copy_(change(parameter))
    return {name: parameter.detach() for name, parameter in double.merge_and_unload().named_parameters()}


def is_rounded_once(model: Any, weights: dict[str, Tensor] | None = None) -> bool:
    """Every weight sent is between the roundings of twin - error and twin + error; what is not adapted is the twin.

    A sum of `RANK` products, scaled and added to the base in float32, is off by at most (RANK + 3) half units of
    2^-23 of |W| + s |B| |A|, which is the twin of the absolute values; rounding keeps order.
    """
    exact, sizes, ours = twin(model), twin(model, torch.abs), sent(model) if weights is None else weights
    assert exact.keys() == ours.keys()
    fits = []
    for name, weight in ours.items():
        adapted = not torch.equal(sizes[name], exact[name].abs())
        error = (RANK + 3) * 2**-24 * sizes[name] * adapted
        low, high = (exact[name] - error).to(weight.dtype), (exact[name] + error).to(weight.dtype)
        fits.append(bool(((low <= weight) & (weight <= high)).all()))
    return all(fits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", KINDS)
def test_values_are_pefts_merge_in_float64_rounded_once(name: str, dtype: torch.dtype) -> None:
    assert is_rounded_once(kind_of(name, dtype))


def test_adapters_of_any_type_and_autocast_change_no_bit() -> None:
    model = kind_of("every linear layer")
    with torch.autocast("cpu", torch.bfloat16):
        within = sent(model)
    assert all(torch.equal(within[name], weight) for name, weight in sent(model).items())
    low = copy.deepcopy(model)
    for name, parameter in low.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.bfloat16()
    assert is_rounded_once(low)
    trls = sent(copy.deepcopy(low), VLLMGeneration)
    assert not is_rounded_once(low, trls), "PEFT rounds a change of bfloat16 factors before it is added"


def test_no_change_sends_the_base() -> None:
    base = tiny()
    plain = {name: parameter.clone() for name, parameter in base.named_parameters()}
    ours = sent(lora(base))  # B begins at 0
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in plain.items())


def test_of_several_adapters_the_active_ones_are_sent_and_no_copy_of_the_others() -> None:
    model = lora(tiny(), modules_to_save=["lm_head"])
    model.add_adapter("ref", model.peft_config["default"])
    learned(model, steps=20)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ref." in name:
                parameter.fill_(9.0)
    assert is_rounded_once(model)
    extra = set(sent(model, VLLMGeneration)) - set(sent(model))
    assert extra == {"lm_head.modules_to_save.ref.weight"}, "TRL's list, which vLLM has no place for"
    model.set_adapter("ref")
    head = sent(model)["lm_head.weight"]
    assert bool((head == 9.0).all())


def test_two_active_adapters_are_added_up() -> None:
    model = lora(tiny(), r=RANK // 2)
    model.add_adapter("second", LoraConfig(r=RANK // 2, target_modules=ATTENTION))
    model.base_model.set_adapter(["default", "second"])
    assert is_rounded_once(learned(model, steps=20))


def test_a_server_is_told_of_what_it_then_receives() -> None:
    model = kind_of("a head of its own")
    told: dict[str, Any] = {}

    def receive(metadata: list[Any], weights: Iterator[tuple[str, Tensor]]) -> None:
        told.update({name: (dtype, shape) for name, dtype, shape in metadata})
        for name, weight in weights:
            assert told[name] == (str(weight.dtype).removeprefix("torch."), list(weight.shape))
            told[name] = weight

    syncing = generation(model)
    syncing.mode, syncing._weight_metadata = "server", None
    syncing.vllm_client = SimpleNamespace(update_named_params=receive, reset_prefix_cache=list)
    before = state_of(model)
    syncing.sync_weights()
    assert all(torch.equal(told[name], weight) for name, weight in sent(model).items())
    assert is_same(model, before)


def test_wrappers_of_checkpointing_are_no_part_of_the_names() -> None:
    base = tiny()
    base.model.layers[0] = checkpoint_wrapper(base.model.layers[0])
    model = learned(lora(base))
    names = list(sent(model))
    assert names == list(sent(model, VLLMGeneration)) == [name for name, _ in tiny().named_parameters()]


def test_a_full_model_and_a_sharded_base_go_trls_way() -> None:
    full = tiny()
    assert list(sent(full)) == list(sent(full, VLLMGeneration))
    sharded = generation(kind_of("every linear layer"))
    sharded._dist.fsdp_version = 1
    assert list(sharded._iter_named_params()) == [], "TRL asks modules under FSDP, and there are none"


# Refusals


def with_8_bits() -> Any:
    model = lora(tiny())
    layer = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return model


def after(model: Any, step: Callable[[Any], object]) -> Any:
    step(model)
    return model


def other(settings: PeftConfig) -> Any:
    return get_peft_model(tiny(), settings)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "DoRA": (lambda: lora(tiny(), use_dora=True), "layers.0.self_attn.q_proj: found DoraLinearVariant.*use_dora"),
    "bias": (lambda: lora(tiny("qwen2"), lora_bias=True), "found lora_bias=True, .*lora_bias=False"),
    "experts": (
        lambda: lora(tiny("qwen3_moe"), target_parameters=["mlp.experts.gate_up_proj"]),
        "mlp.experts: found a layer of the kind .*ParamWrapper, .*target_parameters",
    ),
    "convolution": (
        lambda: lora(nn.Sequential(nn.Conv1d(4, 4, 1)), target_modules=["0"]),
        "adapter of 0: found a layer of the kind .*Conv1d",
    ),
    "tokens": (lambda: lora(tiny(), trainable_token_indices=[1]), "TrainableTokensLayer, .*trainable_token_indices"),
    "AdaLoRA": (lambda: other(AdaLoraConfig(target_modules=ATTENTION, total_step=9, tinit=1, tfinal=1)), "SVDLinear"),
    "IA3": (lambda: other(IA3Config(target_modules=ATTENTION, feedforward_modules=[])), r"ia3.*Linear, .*use_vllm"),
    "prompt": (lambda: other(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)), "no LoRA layer"),
    "8 bits": (with_8_bits, "a weight of torch.float8_e4m3fn in a Parameter, .*load the base unquantised"),
    "none active": (lambda: after(lora(tiny()), lambda model: model.base_model.set_adapter([])), "no LoRA layer.*set_"),
    "disabled": (
        lambda: after(lora(tiny()), lambda model: model.base_model.disable_adapter_layers()),
        "found disabled",
    ),
    "merged": (
        lambda: after(lora(tiny()), lambda model: model.merge_adapter()),
        r"\['default'\] merged already, .*again",
    ),
    "head of a tied pair": (
        lambda: lora(tiny("qwen2"), target_modules=["lm_head"]),
        "model.embed_tokens.weight and lm_head.weight: found weights that the base ties.*ensure_weight_tying",
    ),
    "both of a tied pair": (lambda: lora(tiny("qwen2"), target_modules=["lm_head", "embed_tokens"]), "the base ties"),
    "copy of one of a tied pair": (lambda: lora(tiny("qwen2"), modules_to_save=["embed_tokens"]), "the base ties"),
    "two copies of a tied pair": (
        lambda: lora(tiny("qwen2"), modules_to_save=["embed_tokens", "lm_head"]),
        "the base ties",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_sent_exactly_is_refused_before_anything_is_sent(name: str) -> None:
    build, message = REFUSED[name]
    model = build()
    before = state_of(model)
    with pytest.raises(RecipeError, match=message) as caught:
        merged_parameters(model)
    assert all((caught.value.where, caught.value.seen, caught.value.expected, caught.value.remedy))
    assert is_same(model, before)


# In a trainer


def grpo(
    folder: Path, patch: pytest.MonkeyPatch, model: Path, kind: type[GRPOTrainer] = GRPOTrainer, **settings: Any
) -> Any:
    """TRL's trainer of the tiny model in bfloat16, whose vLLM is the engine of this file."""
    patch.setattr(VLLMGeneration, "_init_vllm", lambda self: setattr(self, "llm", Engine()))
    patch.setattr(vllm_generation, "SamplingParams", dict, raising=False)
    adapter = settings.pop("peft_config", LoraConfig(r=RANK, target_modules="all-linear"))
    arguments = {"use_vllm": True, "max_steps": 3, "num_generations": 2, "per_device_train_batch_size": 2}
    plain = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "learning_rate": 1e-3}
    return kind(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16),
        reward_funcs=lambda completions, **_: [float(number) for number, _ in enumerate(completions)],
        args=GRPOConfig(output_dir=str(folder), max_completion_length=4, **{**arguments, **plain, **settings}),
        train_dataset=Dataset.from_dict({"prompt": ["how to bake bread ?"] * 8}),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=adapter,
    )


@pytest.mark.parametrize("exact", [True, False])
def test_a_run_of_grpo_samples_with_the_trained_weights_and_keeps_its_base(
    exact: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = grpo(tmp_path, monkeypatch, tiny_model)
    before, engine = state_of(trainer.model), trainer.vllm_generation.llm
    if exact:
        keep_base_exact(trainer)
        keep_base_exact(trainer)  # a second train() asks again
    trainer.train()
    assert not is_same(trainer.model, before), "the adapter is trained"
    assert is_same(trainer.model, before, frozen=True) == exact
    assert trainer.vllm_generation.llm is engine
    assert isinstance(trainer.vllm_generation, ExactSync) == exact
    trainer.vllm_generation.sync_weights()
    assert is_rounded_once(trainer.model, engine.weights) == exact


def test_our_trainers_keep_the_base_unasked(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = grpo(tmp_path, monkeypatch, tiny_model, CarefulGRPOTrainer)
    before = state_of(trainer.model)
    trainer.train()
    assert is_same(trainer.model, before, frozen=True)
    assert not is_same(trainer.model, before)
    assert issubclass(GRAOTrainer, CarefulGRPOTrainer)


def test_a_trainer_without_vllm_or_without_an_adapter_is_left_as_it_is(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = grpo(tmp_path, monkeypatch, tiny_model, peft_config=None)
    keep_base_exact(full)
    assert type(full.vllm_generation) is VLLMGeneration
    alone = grpo(tmp_path, monkeypatch, tiny_model, use_vllm=False)
    keep_base_exact(alone)
    assert not hasattr(alone, "vllm_generation")


class Another(VLLMGeneration):
    """A stranger's."""


class AnotherExact(ExactSync):
    """The same after the error's remedy."""


def test_a_trainer_whose_base_would_not_be_kept_is_refused_and_left_as_it_is(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = grpo(tmp_path, monkeypatch, tiny_model)
    ours = trainer.vllm_generation
    for backend in ({"zero_stage": 3}, {"fsdp_version": 2}):
        trainer.vllm_generation = generation(trainer.model, VLLMGeneration)
        vars(trainer.vllm_generation._dist).update(backend)
        with pytest.raises(RecipeError, match=r"a sharded base, with vLLM, .*use DDP or ZeRO stage 1 or 2"):
            keep_base_exact(trainer)
        assert type(trainer.vllm_generation) is VLLMGeneration
    trainer.vllm_generation = generation(trainer.model, Another)
    with pytest.raises(RecipeError, match=r"found Another, .*inherit from .*ExactSync"):
        keep_base_exact(trainer)
    trainer.vllm_generation = generation(trainer.model, AnotherExact)
    keep_base_exact(trainer)
    assert type(trainer.vllm_generation) is AnotherExact
    trainer.vllm_generation = ours
    trainer.model.merge_adapter()
    with pytest.raises(RecipeError, match="merged already"):
        keep_base_exact(trainer)
    assert type(ours) is VLLMGeneration
