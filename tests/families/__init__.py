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


def write_tiny(
    folder: Path, family: str, *, tokenizer: Path | None = None, seed: int = 0, scale: float = 0.2, **changes: object
) -> Path:
    """A random model of the family in `folder`, float32, with the tokenizer of another folder where one is given;
    `changes` are settings of its config."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**{**TINY[family], **changes}))
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
