"""What a tune will take, without loading a weight: for `--dry-run`. Settings and data are checked as for the tune."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from alignkeep.models.folders import tensor_entries
from alignkeep.train.config import TrainConfig
from alignkeep.train.encoding import as_dataset
from alignkeep.train.prepare import Prepared, prepare
from alignkeep.trainers.adapters import parameter_counts
from alignkeep.trainers.arguments import uses_accelerator, world_size

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_ADAM = 12  # bytes per trainable parameter beside the parameter: a float32 gradient and two float32 moments
# Numbers per token that a decoder layer keeps for backward, in hidden sizes; chosen: measured on a 30 M Llama.
_SAVED_PER_TOKEN = {False: 32, True: 48}  # with an adapter
_CHECKPOINTS = 2  # as many as `save_total_limit` keeps


def plan_tune(config: TrainConfig) -> dict[str, Any]:
    """Steps and counts are exact; memory per process, disk and seconds are estimates. Raises what `train` raises first.

    `seconds` is 6 x parameters x tokens at the speed of one matrix product on this CPU, None for an accelerator.
    """
    prepared = prepare(config)
    rows = len(as_dataset(prepared.rows, prepared.arguments, prepared.max_length))
    total, trainable = parameter_counts(prepared.skeleton, prepared.adapter)
    steps = count_steps(config, prepared, rows)
    tokens = math.ceil(prepared.rows.tokens * _epochs(config, steps, rows))
    return {
        "stage": "train",
        "model": config.model,
        "method": config.method,
        "examples": len(prepared.rows.weights),
        "dropped": prepared.rows.dropped,
        "truncated": prepared.rows.truncated,
        "tokens": tokens,
        "steps": steps,
        "processes": world_size(),
        "parameters": total,
        "trainable_parameters": trainable,
        "dtype": prepared.dtype,
        "memory_bytes": _memory(config, prepared, total, trainable),
        "disk_bytes": _disk(config, prepared, trainable),
        "seconds": None if uses_accelerator(config.load) else round(_seconds(total, trainable, tokens), 1),
        "notes": [*prepared.notes, *_foreseen(prepared)],
    }


def _foreseen(prepared: Prepared) -> tuple[str, ...]:
    return () if prepared.defence is None else prepared.defence.foresee(prepared.before)


def count_steps(config: TrainConfig, prepared: Prepared, rows: int) -> int:
    """Optimizer steps over `rows` (packed) rows, as the trainer counts them."""
    if prepared.arguments.max_steps > 0:
        return prepared.arguments.max_steps
    batches = math.ceil(rows / config.batch_size)
    return math.ceil(config.epochs * math.ceil(batches / config.accumulate))


def _epochs(config: TrainConfig, steps: int, rows: int) -> float:
    return steps * config.batch_size * config.accumulate / rows


def _memory(config: TrainConfig, prepared: Prepared, total: int, trainable: int) -> int:
    text = prepared.skeleton.config.get_text_config()
    size = _BYTES[prepared.dtype]
    longest = prepared.max_length if prepared.arguments.packing else max(map(len, prepared.rows.input_ids))
    tokens = longest * config.batch_size // world_size()
    kept = 1 if prepared.arguments.gradient_checkpointing else _SAVED_PER_TOKEN[config.has_adapter]
    activations = tokens * text.hidden_size * text.num_hidden_layers * kept * (2 if prepared.arguments.bf16 else size)
    adapter = 0 if prepared.adapter is None else trainable * 4
    return total * size + adapter + trainable * _ADAM + activations


def _disk(config: TrainConfig, prepared: Prepared, trainable: int) -> int:
    """The result, the trainer's checkpoints (weights and two moments), and one copy while it is placed."""
    base = 0 if config.has_adapter else _size_of(prepared.base)
    result = base or trainable * 4
    return result + trainable * (4 + 8) * _CHECKPOINTS + trainable * 4


def _size_of(base: Path) -> int:
    files = {entry.file for entry in tensor_entries(base, adapter=False).values()}
    return sum(file.stat().st_size for file in files)


def _seconds(total: int, trainable: int, tokens: int) -> float:
    import torch

    size = 512
    matrix = torch.ones(size, size)
    torch.mm(matrix, matrix)
    started = time.perf_counter()
    for _ in range(8):
        torch.mm(matrix, matrix)
    rate = 8 * 2 * size**3 / (time.perf_counter() - started)
    return (4 * total + 2 * trainable) * tokens / rate
