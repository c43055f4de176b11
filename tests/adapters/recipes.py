"""Adapters as people make them with PEFT: tiny bases of several families, and the settings to adapt them by."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

_SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
_FEW = {"num_experts_per_tok": 2, "num_local_experts": 3}
_VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
_TOWER = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
    "out_hidden_size": 32, "num_position_embeddings": 16,
}  # fmt: skip
_IMAGES = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
_LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_GPT2 = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
# Family, and what its config is given.
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "untied": ("llama", {**_SIZES, "tie_word_embeddings": False}),
    "tied": ("llama", {**_SIZES, "tie_word_embeddings": True}),
    "gpt2": ("gpt2", _GPT2),
    "qwen2": ("qwen2", {**_SIZES, "tie_word_embeddings": False}),
    "mixtral": ("mixtral", {**_SIZES, **_FEW}),
    "minimax": ("minimax_m2", {**_SIZES, **_FEW, "rotary_dim": 4}),
    "qwen3 moe": (
        "qwen3_moe",
        {**_SIZES, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "gpt_oss": ("gpt_oss", {**_SIZES, **_FEW}),
    "gemma3": (
        "gemma3",
        {
            "text_config": {**_SIZES, "query_pre_attn_scalar": 8, "sliding_window": 16},
            "vision_config": _VISION,
            "mm_tokens_per_image": 4,
        },
    ),
    "qwen3_5": ("qwen3_5", {"text_config": {**_SIZES, **_LINEAR}, "vision_config": _TOWER, **_IMAGES}),
    "qwen3_5 moe": (
        "qwen3_5_moe",
        {
            "text_config": {
                **_SIZES, **_LINEAR, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                "shared_expert_intermediate_size": 24,
            },
            "vision_config": _TOWER,
            **_IMAGES,
        },
    ),
    "nemotron_h": (
        "nemotron_h",
        {
            **_SIZES, "layers_block_type": ["mamba", "attention", "mlp"], "mamba_num_heads": 4, "mamba_head_dim": 8,
            "ssm_state_size": 4, "n_groups": 2, "chunk_size": 4,
        },
    ),
}  # fmt: skip

WITH_DATA = ("corda", "lora_ga", "loftq")
ATTENTION = ["q_proj", "v_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
_LISTED: dict[str, dict[str, Any]] = {
    "a list": {"target_modules": ATTENTION},
    "all-linear": {"target_modules": "all-linear"},
    "a regex": {"target_modules": r".*layers\.1\..*(q_proj|o_proj)"},
    "one layer": {"target_modules": ATTENTION, "layers_to_transform": [1], "layers_pattern": "layers"},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["o_proj"]},
    "rslora": {"target_modules": ATTENTION, "use_rslora": True},
    "patterns": {"target_modules": ATTENTION, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "rslora patterns": {
        "target_modules": ATTENTION, "use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3},
    },
    "dora": {"target_modules": ATTENTION, "use_dora": True},
    "dora rslora": {"target_modules": ATTENTION, "use_dora": True, "use_rslora": True},
    "a head": {"target_modules": [*ATTENTION, "lm_head"]},
    "embeddings": {"target_modules": [*ATTENTION, "embed_tokens"]},
    "embeddings, dora": {"target_modules": ["embed_tokens"], "use_dora": True},
    "both ends": {"target_modules": ["embed_tokens", "lm_head"]},
    "embeddings, tying kept": {"target_modules": [*ATTENTION, "embed_tokens"], "ensure_weight_tying": True},
    "both ends, tying kept": {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "saved head": {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
    "saved embeddings": {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]},
    "saved ends": {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"]},
    "saved embeddings, tying kept": {
        "target_modules": ATTENTION, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True,
    },
    "saved norms": {"target_modules": ATTENTION, "modules_to_save": ["input_layernorm"]},
    "tokens": {"target_modules": ATTENTION, "trainable_token_indices": [1, 5, 9]},
    "tokens of the head": {"target_modules": ATTENTION, "trainable_token_indices": {"lm_head": [1, 5]}},
    "starts: gaussian": {"target_modules": ATTENTION, "init_lora_weights": "gaussian"},
    "starts: random": {"target_modules": ATTENTION, "init_lora_weights": False},
    "starts: orthogonal": {"target_modules": ATTENTION, "init_lora_weights": "orthogonal"},
    "starts: eva": {"target_modules": ATTENTION, "init_lora_weights": "eva"},
    "starts: mica": {"target_modules": ATTENTION, "init_lora_weights": "mica"},
    "starts: pissa": {"target_modules": ATTENTION, "init_lora_weights": "pissa"},
    "starts: pissa by iterations": {"target_modules": ATTENTION, "init_lora_weights": "pissa_niter_4"},
    "starts: olora": {"target_modules": ATTENTION, "init_lora_weights": "olora"},
    "starts: loftq": {"target_modules": ATTENTION, "init_lora_weights": "loftq"},
    "starts: corda": {"target_modules": ATTENTION, "init_lora_weights": "corda"},
    "starts: lora_ga": {"target_modules": ATTENTION, "init_lora_weights": "lora_ga"},
    "a parameter": {"target_modules": ATTENTION, "target_parameters": ["mlp.gate_proj.weight"]},
    "repeated layers": {"target_modules": ATTENTION, "layer_replication": [[0, 2], [1, 2]]},
}  # fmt: skip
_ENDS = ("a head", "embeddings", "embeddings, dora", "both ends", "embeddings, tying kept", "both ends, tying kept",
         "saved head", "saved embeddings", "saved ends", "saved embeddings, tying kept", "tokens",
         "tokens of the head")  # fmt: skip
_MIXED = {
    "a list": _LISTED["a list"],
    "all-linear": _LISTED["all-linear"],
    "experts": {"target_modules": ATTENTION, "target_parameters": EXPERTS},
    "one parameter": {"target_modules": ATTENTION, "target_parameters": EXPERTS[1:]},
    "the other parameter": {"target_parameters": EXPERTS[:1]},
    "experts, patterns": {
        "target_parameters": EXPERTS, "rank_pattern": {"experts.down_proj": 2}, "alpha_pattern": {"down_proj": 3},
    },
    "experts, rslora": {"target_modules": ATTENTION, "target_parameters": EXPERTS, "use_rslora": True},
    "router": {"target_parameters": ["mlp.gate.weight"]},
    "dora": _LISTED["dora"],
}  # fmt: skip
_CONV = {
    "a list": {"target_modules": ["c_attn", "c_fc"]},
    "fan in, fan out": {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    "all-linear": {"target_modules": "all-linear"},
    "dora": {"target_modules": ["c_attn", "c_proj"], "use_dora": True, "fan_in_fan_out": True},
    "rslora": {"target_modules": ["attn.c_proj"], "use_rslora": True},
    "lora bias": {"target_modules": ["c_attn", "c_fc"], "lora_bias": True},
    "all biases": {"target_modules": ["c_attn"], "bias": "all"},
    "their biases": {"target_modules": ["c_attn"], "bias": "lora_only"},
    "embeddings": {"target_modules": ["wte", "c_attn"]},
    "positions": {"target_modules": ["wpe"]},
    "tokens": {"target_modules": ["c_attn"], "trainable_token_indices": {"wte": [1, 5]}},
    "starts: pissa": {"target_modules": ["c_attn"], "init_lora_weights": "pissa", "fan_in_fan_out": True},
}
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "untied": _LISTED,
    "tied": {name: _LISTED[name] for name in _ENDS},
    "gpt2": _CONV,
    "qwen2": {
        "lora bias": {"target_modules": ATTENTION, "lora_bias": True},
        "lora bias without a bias": {"target_modules": ["o_proj"], "lora_bias": True},
        "biases": {"target_modules": ATTENTION, "bias": "all"},
    },
    "mixtral": _MIXED,
    "minimax": _MIXED,
    "qwen3 moe": _MIXED,
    "gpt_oss": {key: value for key, value in _MIXED.items() if key != "router"}
    | {"router": {"target_parameters": ["mlp.router.weight"]}},
    "gemma3": {name: _LISTED[name] for name in ("a list", "all-linear", "dora", "embeddings", "saved norms")},
    "qwen3_5": {name: _LISTED[name] for name in ("a list", "all-linear", "dora", "saved norms")},
    "qwen3_5 moe": {name: _MIXED[name] for name in ("all-linear", "experts", "one parameter")},
    "nemotron_h": {
        "a list": {"target_modules": ["q_proj", "in_proj", "up_proj"]},
    },
}
CELLS = [(base, name) for base, some in RECIPES.items() for name in some]


def build_base(name: str, folder: Path, tokenizer: Path) -> Path:
    """A base in float32 whose every weight, norms and biases too, is random."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    family, settings = BASES[name]
    torch.manual_seed(0)
    kind = AutoModelForImageTextToText if "vision_config" in settings else AutoModelForCausalLM
    model: Any = kind.from_config(AutoConfig.for_model(family, **settings), dtype=torch.float32)
    draw = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / file, folder)
    return folder


def build_adapter(base: Path, folder: Path, settings: dict[str, Any]) -> Any:
    """PEFT's own adapter saved in `folder`, everything it trains moved; returns the tuned model in memory."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **settings}
    start, model = settings.get("init_lora_weights"), load_base(base)
    config = LoraConfig(
        **{**settings, "init_lora_weights": settings.get("init_lora_weights", True) if start not in WITH_DATA else True}
    )
    tuned: Any = get_peft_model(model, config)
    draw = torch.Generator().manual_seed(2)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    tuned.save_pretrained(folder)
    if start in WITH_DATA:  # made with data and other libraries; their files are a LoRA's, but for this word
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "init_lora_weights": start}))
    return tuned.eval()


def load_base(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(40).view(2, 20)).logits
