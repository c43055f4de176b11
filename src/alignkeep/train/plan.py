"""What a tune will take, without loading a weight: for `--dry-run`. Settings and data are checked as for the tune."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignkeep.models.folders import tensor_entries
from alignkeep.train.config import TrainConfig
from alignkeep.train.encoding import as_dataset
from alignkeep.train.prepare import Prepared, prepare
from alignkeep.trainers.adapters import parameter_counts
from alignkeep.trainers.arguments import uses_accelerator, world_size

_PACKED = 4.127 / 8  # bytes of a number in 4 bits, with its share of the scales (blocks of 64, packed twice)
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_GRADIENT, _MOMENTS = 4, 8  # bytes per trainable parameter beside the parameter: all float32
_PROCESS = 600_000_000  # bytes of the libraries themselves; measured
# What a decoder layer keeps of a token for backward: so many hidden sizes, and so many widths of its feed-forward part;
# counted on Llamas through autograd's saved tensors (GPT-2, with its dropout and activation, keeps twice that).
_HIDDEN_SIZES = {"full": 9}  # of a full tune
_WITH_ADAPTER = 8
_INNER_WIDTHS = 4
# TRL projects answer tokens to the vocabulary in tiles; so many float32 copies of one are held, and blocks below the
# allocator's threshold lie in a heap with holes. Chosen: seven peaks of Llamas of 21, 31 and 135 M parameters with 512
# to 12,288 tokens a step were then 0.86 to 1.00 of the estimate.
_TILE, _COPIES = (4096, 32768), 11
_HEAP_BLOCK, _HOLES = 32 * 2**20, 1.45
_MEASURED = 8  # alignment examples that the base is measured with at a time
_CHECKPOINTS = 2  # as many as `save_total_limit` keeps


def plan_tune(config: TrainConfig) -> dict[str, Any]:
    """Steps and counts are exact; memory per process, disk and seconds are estimates. Raises what `train` raises first.
    Where the memory is not there, a note says which setting to lower.

    `seconds` is 6 x parameters x tokens at the speed of one matrix product on this CPU, None for an accelerator.
    """
    prepared = prepare(config)
    rows = len(as_dataset(prepared.rows, prepared.arguments, prepared.max_length))
    total, trainable = parameter_counts(prepared.skeleton, prepared.adapter)
    steps = count_steps(config, prepared, rows)
    tokens = math.ceil(prepared.rows.tokens * _epochs(config, steps, rows))
    memory = _memory(config, prepared, total, trainable, config.batch_size)
    return {
        "stage": "train",
        "model": config.model,
        "method": config.method,
        "examples": len(prepared.rows.weights),
        "dropped": prepared.rows.dropped,
        "truncated": prepared.rows.truncated,
        "too_long": prepared.rows.late,
        "tokens": tokens,
        "steps": steps,
        "processes": world_size(),
        "parameters": total,
        "trainable_parameters": trainable,
        "dtype": prepared.dtype,
        "memory_bytes": memory,
        "disk_bytes": _disk(config, prepared, trainable),
        "seconds": None if uses_accelerator(config.load) else round(_seconds(total, trainable, tokens), 1),
        "notes": [
            *prepared.notes,
            *_foreseen(prepared),
            *_lacks(config, prepared, memory, lambda size: _memory(config, prepared, total, trainable, size)),
        ],
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


def _memory(config: TrainConfig, prepared: Prepared, total: int, trainable: int, batch_size: int) -> int:
    """Bytes of a process in its largest step: weights, optimiser, what backward needs, a tile of logits, factors."""
    arguments, text = prepared.arguments, prepared.skeleton.config.get_text_config()
    size = _BYTES[prepared.dtype]
    packed = arguments.packing
    lengths = [prepared.max_length] if packed else sorted(map(len, prepared.rows.input_ids), reverse=True)
    mine = -(-batch_size // world_size())
    beside = 0 if prepared.defence is None else prepared.defence.examples_beside
    tokens = lengths[0] * (mine + beside)
    kept = 1 if arguments.gradient_checkpointing else kept_per_token(text, config.method) / text.hidden_size
    kept *= text.hidden_size * text.num_hidden_layers * (2 if arguments.bf16 else size)
    in_heap = 0 if uses_accelerator(config.load) else _HEAP_BLOCK // (_inner_width(text) * size)

    def for_backward(tokens: int) -> float:
        return kept * max(tokens, min(_HOLES * tokens, in_heap))

    answers = [sum(label >= 0 for label in labels) for labels in prepared.rows.labels]
    scored = min(tokens, mine * (lengths[0] if packed else max(answers)), _TILE[0])
    passing = for_backward(tokens) + scored * min(text.vocab_size, _TILE[1]) * 4 * _COPIES
    guard = 0
    if prepared.defence is not None:
        # They are measured before the first step, on alignment examples taken to be as long as those of the data.
        guard = prepared.defence.memory(prepared.before)
        longest = max(map(len, prepared.rows.input_ids))
        passing = max(passing, for_backward(_MEASURED * longest))
    adapter = 0 if prepared.adapter is None else trainable * 4
    # Gradients come as what was kept for them goes.
    weights = total * size if config.load.quantization is None else _packed(prepared.skeleton, total, size)
    return int(_PROCESS + weights + adapter + trainable * _MOMENTS + max(trainable * _GRADIENT, passing) + guard)


def _packed(skeleton: Any, total: int, size: int) -> float:
    """Bytes of weights whose linear layers are packed; embeddings and the head stay as they are."""
    head = skeleton.get_output_embeddings()
    inner = sum(
        module.weight.numel()
        for module in skeleton.modules()
        if type(module).__name__ == "Linear" and module is not head
    )
    return inner * _PACKED + (total - inner) * size


def kept_per_token(text: Any, method: str) -> float:
    """Numbers that a decoder layer keeps of a token for backward."""
    return _HIDDEN_SIZES.get(method, _WITH_ADAPTER) * text.hidden_size + _INNER_WIDTHS * _inner_width(text)


def _inner_width(text: Any) -> int:
    """Of a layer's feed-forward part; of experts those that a token goes to."""
    experts = getattr(text, "num_experts_per_tok", None)
    inner = (getattr(text, "moe_intermediate_size", None) if experts else None) or next(
        (value for name in ("intermediate_size", "ffn_dim", "n_inner") if (value := getattr(text, name, None))),
        4 * text.hidden_size,
    )
    inner = max(inner) if isinstance(inner, list | tuple) else inner
    return inner * (experts or 1)


def _lacks(config: TrainConfig, prepared: Prepared, memory: int, needs: Callable[[int], int]) -> list[str]:
    """Which setting to lower where this machine has less memory free; `needs` is the memory by batch size."""
    import psutil
    import torch

    if uses_accelerator(config.load):
        free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available
    else:
        free = psutil.virtual_memory().available // world_size()
    if memory <= free:
        return []
    lack = f"about {memory / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free"
    size = config.batch_size
    while size % (2 * world_size()) == 0 and needs(size) > free:
        size //= 2
    if size < config.batch_size and needs(size) <= free:
        times = config.accumulate * config.batch_size // size
        return [f"{lack}: set batch_size={size} and accumulate={times}, which is the same step"]
    if config.method == "full":
        return [f"{lack}: take method lora, or a smaller model"]
    return [f"{lack}: lower max_length, set load.dtype=bfloat16, or take a smaller model"]


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
