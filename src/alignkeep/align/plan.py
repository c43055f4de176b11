"""What an alignment will take, without loading a weight: for `--dry-run`. Checked as for the alignment itself."""

from __future__ import annotations

import math
from typing import Any

from alignkeep.align.config import AlignConfig
from alignkeep.align.prepare import Prepared, prepare
from alignkeep.models.folders import tensor_entries
from alignkeep.trainers.adapters import parameter_counts
from alignkeep.trainers.arguments import world_size

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_ADAM = 12  # bytes per trainable parameter beside the parameter: a float32 gradient and two float32 moments
_SAVED_PER_TOKEN = 48  # numbers that a decoder layer keeps for backward, in hidden sizes, as for `train`
_CHECKPOINTS = 2  # as many as `save_total_limit` keeps


def plan_alignment(config: AlignConfig) -> dict[str, Any]:
    """Steps and samples are exact, tokens an upper bound; memory per process and disk are estimates. Raises what
    `align` raises first. How long it takes depends on the reward and on the length of the answers: `seconds` is None.
    """
    prepared = prepare(config)
    total, trainable = parameter_counts(prepared.skeleton, prepared.adapter)
    steps = count_steps(config, prepared)
    samples = steps * config.batch_size * config.sampling.group
    return {
        "stage": "align",
        "model": config.model,
        "method": config.method,
        "reward": config.reward.spec,
        "prompts": len(prepared.data),
        "held_out": len(prepared.held_out),
        "steps": steps,
        "samples": samples,
        "tokens": samples * (prepared.longest_prompt + prepared.new_tokens),
        "processes": world_size(),
        "parameters": total,
        "trainable_parameters": trainable,
        "dtype": prepared.dtype,
        "memory_bytes": _memory(config, prepared, total, trainable),
        "disk_bytes": _disk(prepared, trainable),
        "seconds": None,
        "notes": list(prepared.notes),
    }


def count_steps(config: AlignConfig, prepared: Prepared) -> int:
    """Optimiser steps, as the trainer counts them: prompts that do not fill a step are left out of an epoch."""
    if prepared.arguments.max_steps > 0:
        return prepared.arguments.max_steps
    return max(1, math.ceil(config.epochs * (len(prepared.data) // config.batch_size)))


def _memory(config: AlignConfig, prepared: Prepared, total: int, trainable: int) -> int:
    """Weights, optimiser, and the larger of a training pass's activations and generation's keys and values."""
    text, size = prepared.skeleton.config.get_text_config(), _BYTES[prepared.dtype]
    samples = prepared.arguments.per_device_train_batch_size
    references = math.ceil(config.batch_size / world_size() / config.accumulate) if config.method == "grao" else 0
    rows = samples + references
    length = prepared.longest_prompt + prepared.new_tokens
    kept = 1 if prepared.arguments.gradient_checkpointing else _SAVED_PER_TOKEN
    width = 2 if prepared.arguments.bf16 else size
    passing = rows * length * text.hidden_size * text.num_hidden_layers * kept * width
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    sampling = samples * config.accumulate * length * 2 * heads * head * text.num_hidden_layers * width
    adapter = 0 if prepared.adapter is None else trainable * 4
    return total * size + adapter + trainable * _ADAM + max(passing, sampling)


def _disk(prepared: Prepared, trainable: int) -> int:
    """The result, the trainer's checkpoints (weights and two moments), and one copy while it is placed."""
    files = {entry.file for entry in tensor_entries(prepared.base, adapter=False).values()}
    result = trainable * 4 if prepared.adapter is not None else sum(file.stat().st_size for file in files)
    return result + trainable * (4 + 8) * _CHECKPOINTS + trainable * 4
