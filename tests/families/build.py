"""Any architecture that transformers can build, made tiny from its own config class: no list of families.

Sizes are set by what a setting is called, wherever it stands in the config; what is odd about a family is in `_ODD`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

WIDTH, BLOCKS = 32, 2

# Settings by name (a whole match, the first that fits), and what they become.
_RULES: tuple[tuple[str, Any], ...] = (
    (r"vocab_size_per_layer_input|vocab_size|n_vocab|text_vocab_size|audio_vocab_size", 64),
    (r"pad_token_id", 0), (r"bos_token_id|decoder_start_token_id", 2), (r"eos_token_id", 3),
    (r"image_token_(id|index)|boi_token_(id|index)|img_token_id|image_pad_token_id", 60),
    (r"video_token_(id|index)|eoi_token_(id|index)", 61),
    (r"vision_start_token_id|audio_token_(id|index)|boa_token_(id|index)", 62),
    (r"vision_end_token_id|eoa_token_(id|index)", 63),
    (r"image_size|img_size", 28), (r"patch_size", 14), (r"num_channels|in_channels|in_chans", 3),
    (r"temporal_patch_size|spatial_merge_size|spatial_patch_size|merge_size", None),
    (r"num_hidden_layers|n_layers?|num_layers|n_blocks|num_blocks|depth|(en|de)coder_layers|layers", BLOCKS),
    (r"num_key_value_heads|num_kv_heads|n_kv_heads|kv_n_heads|num_global_key_value_heads|swa_num_key_value_heads", 2),
    (r"num_attention_heads|n_heads?|num_heads|(en|de)coder_attention_heads|num_attn_heads|swa_num_attention_heads", 4),
    (r"linear_num_key_heads", 2), (r"linear_num_value_heads", 4), (r"linear_(key|value)_head_dim", 8),
    (r"mamba_n_heads|mamba_num_heads|num_mamba_heads|mamba_n_mamba_heads|n_mamba_heads", 4),
    (r"mamba_d_head|mamba_head_dim|mamba_headdim", 16), (r"mamba_n_groups|n_groups|mamba_ngroups", 1),
    (r"mamba_d_state|ssm_state_size|state_size|mamba_state_dim", 8), (r"mamba_d_ssm", 64),
    (r"mamba_chunk_size|chunk_size|chunk_length", 8),
    (r"time_step_rank|mamba_dt_rank", 4),
    (r"(num|n)_(local|routed)?_?experts|num_local_experts|n_routed_experts|moe_num_experts|num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_k|moe_topk|top_k_experts|experts_per_token|num_selected_experts", 2),
    (r"(moe_)?top_k", 2),
    (r"n_shared_experts|num_shared_experts|moe_num_shared_experts", 1),
    (r"n_group|topk_group|num_expert_group|topk_groups?", 1), (r"first_k_dense_replace|moe_layer_start_index", 1),
    (r"num_nextn_predict_layers|mtp_num_hidden_layers|num_mtp_layers", None),
    (r"moe_intermediate_size|shared_expert_intermediate_size|expert_(ffn_)?hidden_size|expert_ffn_dim", 24),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank", 16), (r"qk_nope_head_dim|qk_rope_head_dim|d_kv", 8),
    (r"v_head_dim|head_dim", 12),
    (r"global_head_dim|attention_head_dim|kv_channels|swa_head_dim|swa_v_head_dim|index_head_dim", 8),
    (r"qk_head_dim", 16), (r"rotary_dim", 4), (r"index_n_heads", 2), (r"index_topk", 8),
    (r"max_position_embeddings|n_positions|max_seq_len|n_ctx|max_sequence_length|seq_length|context_length", 128),
    (r"max_window_layers", None),
    (r"sliding_window|attention_chunk_size|local_attention|window_size", 64),
    (r"intermediate_size|ffn_dim|n_inner|d_ff|ffn_hidden_size|(en|de)coder_ffn_dim|dff|inner_dim|mlp_dim", 48),
    (r"hidden_size|n_embd|d_model|dim|embed_dim|out_hidden_size|word_embed_proj_dim|embedding_size|d_embed", WIDTH),
    (r"(text|mm|projection|projector|output|project)_?(hidden|embed|output)?_?(size|dim)s?", WIDTH),
    (r"lru_width|emb_dim|lm_hidden_size|proj_dim|cross_attention_hidden_size|attention_hidden_size", WIDTH),
    (r"hidden_size_per_layer_input", 8), (r"laurel_rank", 8), (r"query_pre_attn_scalar", 8),
)  # fmt: skip


def _mrope(*section: int) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section)}}


# What a name does not tell.
_ODD: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "zaya": {"num_experts_per_tok": 1},
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "glm4v_text", "glm_ocr_text"), _mrope(2, 1, 1)),
    **dict.fromkeys(("qwen2_5_omni_text", "glm46v_text"), _mrope(2, 1, 1)),
    "glm4v_moe_text": _mrope(1, 1, 0),
    "paddleocr_vl_text": _mrope(2, 2, 2),
    **{kind: {"num_kv_shared_layers": 0} for kind in ("gemma3n_text", "gemma4_unified_assistant", "gemma4_assistant")},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "helium": {"head_dim": 8},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "mistral4": {"head_dim": 16},
    "step3p5": {"sliding_window": 64, "share_expert_dim": 24},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "ffn_act_fn": {"name": "silu"}},
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 12,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 16,
        "hc_count": 2,
        "ple_embed_dim": 32,
        "ngram_vocab_size_base": 64,
        "split_ngram_parts": 4,
    },
    "zamba": {"num_hidden_layers": 4, "attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4},
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "kv_channels": 8,
        "num_key_value_heads": 4,
        "adapter_rank": 8,
        "num_query_groups": 4,
    },
    "ernie4_5_vl_moe_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    },
    "glm5_next_text": {"index_topk": 16, "num_key_value_heads": 4, "qk_rope_head_dim": 0},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16]},
}
_EVEN_IF_NONE = ("head_dim", "num_key_value_heads", "num_experts_per_tok")
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_KINDS = ("layer_types", "block_types", "layers_block_type")


def tiny_config(kind: str, changes: Mapping[str, Any] | None = None) -> Any:
    """A small config of this model type."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[kind]
    return cls(**{**_shrunk(cls(), kind), **(changes or {})})


def kinds() -> Iterator[str]:
    """All model types of causal language models, and of models of images and text, that transformers has."""
    from transformers.models.auto import modeling_auto as auto

    seen = dict(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    for names in (auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES):
        seen |= {kind: name for kind, name in names.items() if kind not in seen}
    yield from sorted(seen)


def _shrunk(config: Any, kind: str) -> dict[str, Any]:
    stated = config.to_dict()
    values: dict[str, Any] = {}
    for name, value in stated.items():
        sub = getattr(config, name, None) if name in config.sub_configs else None
        if sub is not None and hasattr(sub, "to_dict"):
            values[name] = {"model_type": sub.model_type, **_shrunk(sub, sub.model_type)}
        else:
            small = _small(name, value)
            values |= {} if small is value else {name: small}
    if "kv_lora_rank" in stated:
        values["num_key_value_heads"] = values.get("num_attention_heads", 4)
        values |= {"head_dim": 8} if "head_dim" in stated else {}
    _shrink_rope(values, stated)
    values |= _ODD.get(kind, {})
    _shrink_layers(values, stated)
    return values


def _shrink_layers(values: dict[str, Any], stated: Mapping[str, Any]) -> None:
    """As many entries in every list by layer as there are layers, and each kind of layer once."""
    count = next((stated[name] for name in _COUNTS if isinstance(stated.get(name), int)), None)
    by_layer = {
        name: values.get(name, value) for name, value in stated.items()
        if isinstance(value, list) and (len(value) == count or name.endswith(_KINDS))
    }  # fmt: skip
    each = {
        name: list(dict.fromkeys(value)) for name, value in by_layer.items()
        if value and all(isinstance(one, str) for one in value)
    }  # fmt: skip
    blocks = max([next((values[name] for name in _COUNTS if name in values), BLOCKS), *map(len, each.values())])
    values |= {name: blocks for name in _COUNTS if name in stated}
    for name, value in by_layer.items():
        if value and not any(isinstance(one, list | dict) for one in value):
            values[name] = ((each.get(name) or value) * blocks)[:blocks]


def _shrink_rope(values: dict[str, Any], stated: Mapping[str, Any]) -> None:
    """The parts of the rotary dimensions that count time, height and width, in the same shares."""
    rope = stated.get("rope_parameters")
    section = rope.get("mrope_section") if isinstance(rope, dict) else None
    if not section:
        return
    width = values.get("head_dim") or WIDTH // 4
    half = int(width * (rope.get("partial_rotary_factor") or stated.get("partial_rotary_factor") or 1)) // 2
    small = [max(1, half * part // sum(section)) for part in section]
    small[0] += half - sum(small)
    values["rope_parameters"] = {**rope, "mrope_section": small}


def _small(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not (value is None or isinstance(value, int | list)):
        return value
    for pattern, small in _RULES:
        if not re.fullmatch(pattern, name):
            continue
        if small is None or (value is None and "token" not in name and name not in _EVEN_IF_NONE):
            return value
        if isinstance(value, list):
            return [small] * len(value) if value and all(isinstance(one, int) for one in value) else value
        return small
    return value
