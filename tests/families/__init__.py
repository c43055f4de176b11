"""Tiny random models of every family in the table of architectures, as ordinary folders.

Three blocks, so that a mixture of experts behind a dense first block has a block behind it; matrices that are not
square wherever the family allows it; and norms and biases that are not what they begin as, so that none can be left out
unseen.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

WIDTH, BLOCKS, WORDS = 32, 3, 64  # of the residual stream; of the decoder; of the vocabulary (the tiny tokenizer's fit)

_PLAIN: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
_HEADS = {**_PLAIN, "head_dim": 12}
_GPT: dict[str, Any] = {
    "vocab_size": WORDS, "n_embd": WIDTH, "n_layer": BLOCKS, "n_head": 4, "n_positions": 128,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
_BLOOM = {key: _PLAIN[key] for key in ("vocab_size", "hidden_size", "pad_token_id", "bos_token_id", "eos_token_id")}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED: dict[str, Any] = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}  # fmt: skip
_GEMMA = {**_HEADS, "query_pre_attn_scalar": 12}

TINY: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("llama", "mistral", "qwen3", "gemma", "glm", "glm4", "ernie4_5", "hunyuan_v1_dense"), _HEADS),
    **dict.fromkeys(("qwen2", "phi", "phi3", "starcoder2", "stablelm", "smollm3", "exaone4", "cohere"), _PLAIN),
    **dict.fromkeys(("olmo2", "olmo3", "cohere2"), _PLAIN),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    "granite": {**_PLAIN, "residual_multiplier": 0.22},
    "gpt2": _GPT,
    "gptj": {**_GPT, "rotary_dim": 4},
    "gpt_neox": {**_PLAIN, "rotary_pct": 0.25},
    "falcon": {
        **_BLOOM,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
    },
    "bloom": {**_BLOOM, "n_layer": BLOCKS, "n_head": 4},
    "mixtral": {**_HEADS, **_LOCAL},
    "olmoe": {**_PLAIN, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **_PLAIN,
        **_EXPERTS,
        "shared_expert_intermediate_size": 40,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [0],
    },
    "qwen3_moe": {**_HEADS, **_EXPERTS},
    "qwen3_next": {
        **_HEADS,
        **_EXPERTS,
        "shared_expert_intermediate_size": 40,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 12,
    },
    "deepseek_v2": {**_PLAIN, **_ROUTED, **_LATENT, "topk_method": "greedy"},
    "deepseek_v3": {**_PLAIN, **_ROUTED, **_LATENT},
    "glm4_moe": {**_HEADS, **_ROUTED},
    "gpt_oss": {**_HEADS, **_LOCAL},
}

_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_d_conv": 4,
    "mamba_expand": 2, "mamba_chunk_size": 8,
}  # fmt: skip
_LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12,
}  # fmt: skip
_NO_ATTENTION = {key: _PLAIN[key] for key in (*_BLOOM, "num_hidden_layers")}

# Families that came later, or that are built otherwise: each has a kind of block that those above have not.
RECENT: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("ministral", "ministral3", "nemotron", "seed_oss"), _HEADS),
    "opt": {
        **_BLOOM, "ffn_dim": 48, "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "word_embed_proj_dim": WIDTH,
    },
    "lfm2": {**_PLAIN, "layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    "gemma4_text": {
        **_GEMMA, "vocab_size_per_layer_input": WORDS, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 1,
        "global_head_dim": 12, "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24,
    },
    "qwen3_5_text": {**_HEADS, **_LINEAR},
    "qwen3_5_moe_text": {**_HEADS, **_EXPERTS, **_LINEAR, "shared_expert_intermediate_size": 40},
    "llama4_text": {
        **_HEADS, **_LOCAL, "num_experts_per_tok": 1, "intermediate_size_mlp": 40, "interleave_moe_layer_step": 2,
        "attention_chunk_size": 64,
    },
    "glm4_moe_lite": {**_PLAIN, **_ROUTED, **_LATENT},
    "deepseek_v32": {**_PLAIN, **_ROUTED, **_LATENT, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 8},
    "ernie4_5_moe": {
        **_HEADS, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    "exaone_moe": {
        **_HEADS, **_EXPERTS, "num_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
        "sliding_window": 16,
    },
    "minimax_m2": {**_HEADS, **_LOCAL},
    "phimoe": {**_PLAIN, **_LOCAL},
    "granitemoe": {**_PLAIN, **_LOCAL, "residual_multiplier": 0.22},
    "granitemoehybrid": {
        **_PLAIN, **_LOCAL, **_MAMBA, "shared_intermediate_size": 40, "residual_multiplier": 0.22,
        "layer_types": ["mamba", "attention", "mamba"],
    },
    "jamba": {
        **_PLAIN, "num_experts": 4, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1,
        "attn_layer_period": 3, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2,
        "mamba_dt_rank": 4, "use_mamba_kernels": False,
    },
    "mamba2": {
        **_NO_ATTENTION, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8, "expand": 2,
    },
    "falcon_h1": {
        **_PLAIN, **_MAMBA, "mamba_d_ssm": 64, "mlp_multipliers": [1.0, 0.7], "attention_out_multiplier": 0.8,
        "ssm_out_multiplier": 1.3,
    },
    "bamba": {**_PLAIN, **_MAMBA, "attn_layer_indices": [1]},
    "nemotron_h": {
        **_HEADS, "layers_block_type": ["mamba", "moe", "attention", "mlp"], "num_hidden_layers": 4,
        "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": 8, "chunk_size": 8,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 40, "n_group": 1, "topk_group": 1,
    },
}  # fmt: skip
ALTERNATING: dict[str, Any] = {  # Gemma 3n: four streams side by side
    **_GEMMA, "vocab_size_per_layer_input": WORDS, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
    "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * BLOCKS, "layer_types": ["full_attention"] * BLOCKS,
}  # fmt: skip


def write_tiny(
    folder: Path, family: str, *, tokenizer: Path | None = None, seed: int = 0, scale: float = 0.2, **changes: object
) -> Path:
    """A random model of the family in `folder`, float32, with the tokenizer of another folder where one is given;
    `changes` are settings of its config."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = {**TINY, **RECENT, "gemma3n_text": ALTERNATING}[family]
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**{**settings, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, scale)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=scale)
    model.save_pretrained(folder)
    for path in [] if tokenizer is None else tokenizer.iterdir():
        if path.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(path, folder)
    return folder
