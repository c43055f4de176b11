"""Batched answers: each the same as asked alone, in the order of the prompts, and honest about where they end."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FalconConfig,
    GitConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    RwkvConfig,
)

from alignkeep.errors import CheckpointError, DataError, MachineError, RecipeError
from alignkeep.models.batching import Batching, batching, is_right_padded
from alignkeep.models.chat import encode_prompt
from alignkeep.models.config import GenerationConfig, LoadConfig
from alignkeep.models.decoding import can_decode
from alignkeep.models.generation import Answer, context_length, generate_answers, stop_ids
from alignkeep.models.loading import LoadedModel, load_model
from alignkeep.types import Message, Prompt
from conftest import WORDS, build_tiny_model

KNOWN = [word for word in WORDS if word.isalpha()]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny model of which some answers end and some do not."""
    return load_model(str(build_tiny_model(tmp_path_factory.mktemp("generation") / "model", seed=0)))


def ask(text: str, prefill: str = "") -> Prompt:
    return Prompt((Message("user", text),), prefill=prefill)


def varied(count: int) -> list[Prompt]:
    """Prompts of 1 to 29 words, long and short in turn."""
    return [ask(" ".join(KNOWN[(at * 7 + i * 3) % len(KNOWN)] for i in range(1 + at * 11 % 29))) for at in range(count)]


def config(max_new_tokens: int = 12, batch_size: int = 8) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=max_new_tokens, batch_size=batch_size)


# An independent twin: transformers' generate, one prompt at a time, no padding


def plain_tokens(loaded: LoadedModel, prompt: Prompt, max_new_tokens: int) -> list[int]:
    ids = loaded.tokenizer.apply_chat_template(
        [{"role": one.role, "content": one.content} for one in prompt.messages],
        add_generation_prompt=True,
        return_tensors="pt",
    )
    output = loaded.model.generate(**ids, max_new_tokens=max_new_tokens, do_sample=False)
    return output[0, ids["input_ids"].shape[1] :].tolist()


def one_at_a_time(loaded: LoadedModel, prompts: list[Prompt], max_new_tokens: int) -> list[Answer]:
    said = [plain_tokens(loaded, prompt, max_new_tokens) for prompt in prompts]
    end = loaded.tokenizer.eos_token_id
    return [Answer(loaded.tokenizer.decode(ids, skip_special_tokens=True), ids[-1] != end) for ids in said]


def test_batches_give_the_answers_of_plain_generate_in_the_order_of_the_prompts(loaded: LoadedModel) -> None:
    prompts = varied(24)
    expected = one_at_a_time(loaded, prompts, 12)
    assert generate_answers(loaded, prompts, config(batch_size=8)) == expected
    assert {answer.truncated for answer in expected} == {True, False}
    assert len({answer.text for answer in expected}) > 10


def test_a_batch_of_eight_is_eight_batches_of_one(loaded: LoadedModel) -> None:
    prompts = varied(8)
    assert generate_answers(loaded, prompts, config(batch_size=8)) == generate_answers(
        loaded, prompts, config(batch_size=1)
    )


SMALL = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
FAMILIES: dict[str, tuple[PreTrainedConfig, Batching]] = {
    "learned positions": (GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4, n_positions=256), Batching.ROWS),
    "parallel blocks": (PhiConfig(**SMALL), Batching.ROWS),
    "alibi": (
        FalconConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True),
        Batching.ROWS,
    ),
    "experts": (Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16), Batching.ROWS),
    "windows": (MistralConfig(**SMALL, sliding_window=8), Batching.PADDED),
    "states": (MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2), Batching.PADDED),
    # whose cached positions do not know of padding
    "places counted from the left": (
        GitConfig(**SMALL, vision_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}),
        Batching.LEVEL,
    ),
    # that takes no mask, and whose cached step is of another batch
    "states without a mask": (RwkvConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2), Batching.SINGLE),
}  # fmt: skip


def of_family(loaded: LoadedModel, name: str) -> LoadedModel:
    """Random weights, larger than at the start of training, so that answers differ."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[name][0]).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3 if weight.ndim == 2 else 1)
    return replace(loaded, model=model)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_as_generate_does_with_one_prompt(loaded: LoadedModel, name: str) -> None:
    model, prompts = of_family(loaded, name), varied(10)
    if name == "places counted from the left" and Version(version("transformers")) < Version("5.23"):
        pytest.skip("its cache gives other numbers there, and it is refused")
    assert batching(model.model) is FAMILIES[name][1]
    assert is_right_padded(model.model) == (FAMILIES[name][1] in (Batching.ROWS, Batching.PADDED))
    ends = stop_ids(model)
    model.model.generation_config.eos_token_id = ends
    expected = one_at_a_time(model, prompts, 12)
    assert [answer.text for answer in generate_answers(model, prompts, config(batch_size=4))] == [
        answer.text for answer in expected
    ]
    assert len({answer.text for answer in expected}) > 3


class Forgetful(LlamaForCausalLM):
    """What it has kept of earlier tokens is not looked at."""

    def forward(self, *args: Any, **named: Any) -> Any:
        forgotten = dict.fromkeys({"cache", "past_key_values", "position_ids"} & named.keys())
        return super().forward(*args, **{**named, **forgotten})


class Failing(LlamaForCausalLM):
    def forward(self, *args: Any, **named: Any) -> Any:
        if named.get("use_cache"):
            raise ValueError("a state of another shape")
        return super().forward(*args, **named)


class Full(LlamaForCausalLM):
    def forward(self, *args: Any, **named: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        (Forgetful, CheckpointError, "Forgetful, which gives other numbers for a token from what it keeps"),
        (Failing, CheckpointError, r"Failing, which fails in generating two tokens \(ValueError: a state of another"),
        (Full, MachineError, "out of memory with a few tokens"),
    ],
)
def test_a_model_whose_answers_would_not_be_its_own_is_refused(
    kind: type[LlamaForCausalLM], error: type[Exception], said: str, loaded: LoadedModel
) -> None:
    torch.manual_seed(0)
    model = kind(LlamaConfig(**SMALL, initializer_range=0.5)).eval()
    with pytest.raises(error, match=said):
        generate_answers(replace(loaded, model=model), varied(2), config())


def test_the_trial_of_a_model_leaves_random_numbers_as_they_were(loaded: LoadedModel) -> None:
    model = of_family(loaded, "windows").model
    model.model.layers[0].register_forward_hook(lambda *_: torch.rand(1) and None)
    torch.manual_seed(3)
    assert batching(model) is Batching.PADDED
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert drawn.equal(torch.rand(4))


def test_settings_of_a_model_that_change_its_choice_leave_it_to_generate(loaded: LoadedModel) -> None:
    assert can_decode(loaded.model)
    loaded.model.generation_config.suppress_tokens = [5]
    try:
        assert not can_decode(loaded.model)
    finally:
        loaded.model.generation_config.suppress_tokens = None


def passes(loaded: LoadedModel, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shape (rows, tokens) of every forward pass."""
    shapes: list[tuple[int, int]] = []
    plain = loaded.model.forward

    def forward(**inputs: Any) -> Any:
        shapes.append(tuple(inputs["input_ids"].shape))
        return plain(**inputs)

    with monkeypatch.context() as patched:
        patched.setattr(loaded.model, "forward", forward)
        generate_answers(loaded, prompts, config(batch_size=8))
    return shapes


def test_nothing_is_computed_for_an_answer_that_has_ended(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = varied(24)
    said = [len(plain_tokens(loaded, prompt, 12)) for prompt in prompts]
    assert min(said) < 12
    assert batching(loaded.model) is Batching.ROWS  # tried before the passes are counted
    steps = [rows for rows, tokens in passes(loaded, prompts, monkeypatch) if tokens == 1]
    assert sum(steps) == sum(said)
    assert len(steps) < 3 * 12  # three batches that wait for their longest answers


def test_what_all_prompts_begin_with_is_computed_once(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Message("system", " ".join(KNOWN[:12]))
    prompts = [Prompt((told, *prompt.messages)) for prompt in varied(24)]
    lengths = sorted(len(encode_prompt(loaded.tokenizer, prompt)) for prompt in prompts)
    shared = 12 + 3  # the template's <|system|>, <|end|> and <|user|>
    wide = [shape for shape in passes(loaded, prompts, monkeypatch) if shape[1] > 1]
    assert wide[0] == (1, shared)
    assert sum(rows for rows, _ in wide[1:]) == 24
    assert max(tokens for _, tokens in wide[1:]) == lengths[-1] - shared - 1
    assert generate_answers(loaded, prompts, config()) == one_at_a_time(loaded, prompts, 12)


# Laws


@settings(deadline=None, max_examples=8)
@given(order=st.permutations(range(12)), size=st.integers(1, 20))
def test_neither_order_nor_batch_size_changes_an_answer(loaded: LoadedModel, order: list[int], size: int) -> None:
    prompts = varied(12)
    straight = generate_answers(loaded, prompts, config())
    shuffled = generate_answers(loaded, [prompts[at] for at in order], config(batch_size=size))
    assert shuffled == [straight[at] for at in order]


def test_a_prefill_with_the_answers_own_beginning_gives_the_rest_of_it(loaded: LoadedModel) -> None:
    special = set(loaded.tokenizer.all_special_ids)
    said = [(prompt, plain_tokens(loaded, prompt, 12)) for prompt in varied(24)]
    spoken = [(prompt, ids) for prompt, ids in said if not special.intersection(ids[:-1]) and len(ids) > 3]
    assert len(spoken) > 3
    words = [loaded.tokenizer.decode(ids, skip_special_tokens=True).split() for _, ids in spoken]
    opened = [ask(prompt.text, prefill=" ".join(word[:2])) for (prompt, _), word in zip(spoken, words, strict=True)]
    rest = generate_answers(loaded, opened, config(max_new_tokens=10))
    assert [answer.text.split() for answer in rest] == [word[2:] for word in words]


def test_every_answer_is_handed_over_once_as_its_batch_is_done(loaded: LoadedModel) -> None:
    batches: list[list[tuple[int, str, bool]]] = []
    answers = generate_answers(loaded, varied(20), config(batch_size=8), on_answers=batches.append)
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert sorted(row for batch in batches for row in batch) == [
        (index, answer.text, answer.truncated) for index, answer in enumerate(answers)
    ]


def test_no_prompts_have_no_answers(loaded: LoadedModel) -> None:
    assert generate_answers(loaded, [], config()) == []


def test_the_models_own_sampling_settings_change_nothing(loaded: LoadedModel) -> None:
    prompts = varied(8)
    expected = generate_answers(loaded, prompts, config())
    own = loaded.model.generation_config
    before = own.to_dict()
    own.update(repetition_penalty=9.0, do_sample=True, temperature=5.0, num_beams=2, no_repeat_ngram_size=1)
    try:
        assert generate_answers(loaded, prompts, config()) == expected
    finally:
        own.update(**{name: before[name] for name in before})


def test_an_adapter_switched_off_answers_as_its_base(tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        LoraConfig(r=8, lora_alpha=64, target_modules="all-linear", init_lora_weights=False),
    )
    tuned.save_pretrained(str(tmp_path / "adapter"))
    pair, prompts = load_model(str(tmp_path / "adapter")), varied(8)
    own = generate_answers(pair, prompts, config())
    with pair.as_base() as base:
        shown = generate_answers(base, prompts, config())
    assert shown == generate_answers(load_model(str(tiny_model)), prompts, config())
    assert shown != own
    assert generate_answers(pair, prompts, config()) == own


# Limits


def test_an_answer_that_used_up_its_tokens_is_marked_truncated(loaded: LoadedModel) -> None:
    prompts = varied(24)
    lengths = [len(plain_tokens(loaded, prompt, 13)) for prompt in prompts]
    some = min(lengths)
    assert 1 < some < 12
    for room in (1, some - 1, some):
        answers = generate_answers(loaded, prompts, config(max_new_tokens=room))
        assert [answer.truncated for answer in answers] == [length > room for length in lengths]


def test_near_the_end_of_the_context_an_answer_gets_what_is_left_and_neighbours_lose_nothing(
    loaded: LoadedModel,
) -> None:
    context = context_length(loaded)
    assert context == 256
    # The template adds <|user|>, <|end|> and <|assistant|>.
    prompts = [ask(" ".join(["bike"] * (256 - 3 - left))) for left in (1, 3, 200)]
    together = generate_answers(loaded, prompts, config(max_new_tokens=5))
    assert together == [generate_answers(loaded, [prompt], config(max_new_tokens=5))[0] for prompt in prompts]
    assert [len(answer.text.split()) <= room for answer, room in zip(together, (1, 3, 5), strict=True)] == [True] * 3
    assert together[0].truncated


def test_the_models_and_the_templates_end_tokens_all_stop_an_answer(tiny_model: Path, tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end, pad, start = (tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "<pad>", "<s>"))
    tokenizer.eos_token = "<s>"  # as where a chat template was put on a base model
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = [pad]
    model.config.eos_token_id = None
    model.save_pretrained(folder)
    twin = load_model(str(folder))
    assert stop_ids(twin) == sorted({end, pad, start})
    plain = load_model(str(build_tiny_model(tmp_path / "plain")))
    assert stop_ids(plain) == [end]
    assert generate_answers(twin, varied(10), config()) == generate_answers(plain, varied(10), config())


def test_an_end_token_that_is_a_plain_word_is_no_part_of_the_answer(tiny_model: Path) -> None:
    own = load_model(str(tiny_model))
    special = set(own.tokenizer.all_special_ids)
    said = [(prompt, plain_tokens(own, prompt, 3)) for prompt in varied(24)]
    prompt, ids = next((prompt, ids) for prompt, ids in said if len(set(ids)) == 3 and not special.intersection(ids))
    own.model.generation_config.eos_token_id = [ids[2]]
    expected = own.tokenizer.convert_ids_to_tokens(ids[:2])
    assert generate_answers(own, [prompt], config()) == [Answer(" ".join(expected), False)]


# Refusals and the machine


def test_a_prompt_longer_than_the_context_is_refused_before_anything_is_asked(loaded: LoadedModel) -> None:
    handed_over: list[Any] = []
    megabyte = ask("bike " * 200_000)
    with pytest.raises(DataError, match=r"prompt 1: found 200003 tokens \(1000000 characters.*context of 256 tokens"):
        generate_answers(loaded, [ask("hi"), megabyte], config(), on_answers=handed_over.append)
    assert handed_over == []


def failing_above(loaded: LoadedModel, rows: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Memory for so many rows: more make a forward pass fail as torch does."""
    sizes: list[int] = []
    plain = loaded.model.forward

    def forward(**inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > rows:
            raise error
        return plain(**inputs)

    monkeypatch.setattr(loaded.model, "forward", forward)
    return sizes


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_batch_that_does_not_fit_is_halved(
    loaded: LoadedModel, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in (loaded, of_family(loaded, "windows")):
        expected = generate_answers(model, varied(10), config())
        with monkeypatch.context() as patched:
            sizes = failing_above(model, 3, error, patched)
            assert generate_answers(model, varied(10), config(batch_size=8)) == expected
        assert sizes[:2] == [8, 4]
        assert max(sizes[2:]) == 2


def test_memory_that_runs_out_in_the_middle_loses_no_answer(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate_answers(loaded, varied(20), config())
    plain, calls = loaded.model.forward, [0]

    def forward(**inputs: Any) -> Any:
        calls[0] += 1
        if calls[0] in (9, 25):
            raise MemoryError
        return plain(**inputs)

    monkeypatch.setattr(loaded.model, "forward", forward)
    handed_over: list[int] = []
    store = lambda batch: handed_over.extend(index for index, _, _ in batch)  # noqa: E731
    assert generate_answers(loaded, varied(20), config(batch_size=6), on_answers=store) == expected
    assert sorted(handed_over) == list(range(20))


def test_a_prompt_that_does_not_fit_alone_is_the_machines_failure(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_above(loaded, 0, torch.OutOfMemoryError("CUDA out of memory."), monkeypatch)
    with pytest.raises(MachineError, match="batch of one"):
        generate_answers(loaded, varied(2), config())


def test_other_failures_pass_through(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_above(loaded, 0, RuntimeError("a shape is wrong"), monkeypatch)
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        generate_answers(loaded, varied(2), config())


def test_vllm_that_is_not_installed_is_refused_by_name(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(RecipeError, match=r"backend: found vllm, which is not installed.*alignkeep\[vllm\]"):
        generate_answers(loaded, varied(2), GenerationConfig(backend="vllm"))


def test_a_mixture_of_experts_that_reports_its_router_loss_answers_as_one_that_does_not(tmp_path) -> None:
    source = build_tiny_model(tmp_path / "dense")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **shape, vocab_size=128, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=8
        )
    )
    answers = []
    for reports in (False, True):
        folder = tmp_path / str(reports)
        shutil.copytree(source, folder)
        model.config.output_router_logits = reports
        model.save_pretrained(folder)
        loaded = load_model(str(folder), LoadConfig())
        asked = [Prompt((Message("user", text),)) for text in ("How is bread ?", "I bake .", "fix a bike please")]
        answers.append(generate_answers(loaded, asked, GenerationConfig(max_new_tokens=6, batch_size=3)))
    assert answers[0] == answers[1]


def test_a_model_whose_first_word_ends_its_answer_is_tried_like_any_other(tmp_path: Path) -> None:
    """`generate` would end the trial at the model's own end token, with fewer steps than are compared."""
    model = load_model(str(build_tiny_model(tmp_path / "model", seed=0))).model
    first = model(torch.tensor([[3, 1, 2]])).logits[0, -1].argmax().item()  # what it says to the trial's first prompt
    model.generation_config.eos_token_id = first
    assert batching(model) is Batching.ROWS
