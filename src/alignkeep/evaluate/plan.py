"""What an evaluation would do and take, found out without a model."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.evaluate.questions import Preparation, prepare
from alignkeep.evaluate.reuse import check_reusable
from alignkeep.judging.power import detectable_change, prompts_to_detect, reach
from alignkeep.models.config import LoadConfig
from alignkeep.models.folders import resolve, tensor_entries
from alignkeep.models.headers import load_json
from alignkeep.types import Checkpoint

_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1}
_AS_LOADED = {"float32": 4, "bfloat16": 2, "float16": 2}
# Chosen for what is said before: the share of prompts on which base and tune may differ, a change worth knowing of.
USUAL_DISCORDANCE, WORTH_KNOWING = 0.05, 0.02
# Rough, for the plan only (chosen): characters a token stands for, bytes a token of an answer takes in the files.
_CHARACTERS_PER_TOKEN, _BYTES_PER_TOKEN, _BYTES_PER_ROW = 3, 8, 400


def plan_evaluation(config: EvaluateConfig) -> dict[str, object]:
    """What `evaluate` would do, as JSON, with a rough upper estimate of memory and disk. Loads and writes nothing."""
    prepared = prepare(config)
    if config.base_answers is not None:
        check_reusable(config, prepared, Path(config.base_answers))
    to_ask = 2 if prepared.base is not None and config.base_answers is None else 1
    length = max(sum(len(turn.content) for turn in question.prompt.messages) for question in prepared.questions)
    texts = sum(len(question.prompt.text.encode()) for question in prepared.questions)
    turns = sum(1 + len(question.leads) for question in prepared.questions)
    rows = len(prepared.questions) * (1 if prepared.base is None else 2)
    disk = rows * (config.generation.max_new_tokens * _BYTES_PER_TOKEN + _BYTES_PER_ROW) + 2 * texts
    return {
        "stage": "evaluate",
        "model": config.model,
        "base": config.base,
        "suite": prepared.suite.name,
        "task": config.task,
        "judge": config.judge,
        "attacks": [attack.name for attack in prepared.attacks],
        "prompts": dict(Counter(prompt.kind for prompt in prepared.prompts)),
        "can_show": _can_show(prepared),
        **({"utility": {one.name: one.facts for one in prepared.utility.tasks}} if prepared.utility.tasks else {}),
        "questions": len(prepared.questions),
        "answers_to_generate": to_ask * turns,
        "answers_reused": 0 if config.base_answers is None else len(prepared.questions),
        "tokens_at_most": to_ask * turns * config.generation.max_new_tokens,
        "memory_bytes_estimated": _memory(prepared.model, config, length),
        "disk_bytes_estimated": disk,
        "notes": list(prepared.notes),
    }


def _can_show(prepared: Preparation) -> dict[str, str]:
    """For every kind of prompts, what so many of them can show, in a sentence."""
    counts = Counter(prompt.kind for prompt in prepared.prompts)
    return {kind: can_show(count, paired=prepared.base is not None) for kind, count in counts.items()}


def can_show(n: int, *, paired: bool) -> str:
    """What n prompts can show: of two models on the same prompts where `paired`, else of one rate."""
    known = f"with {n} prompts a rate is known to {100 * reach(n):.1f} points or better"
    if not paired:
        return known
    least, usual = detectable_change(n), detectable_change(n, USUAL_DISCORDANCE)
    if least is None or usual is None:
        return f"{known}; no change can be shown, which takes 6 prompts or more"
    shown = (
        f"a change under {100 * least:.1f} points cannot be seen (power 80 %), "
        f"nor one under {100 * usual:.1f} where the models differ on {USUAL_DISCORDANCE:.0%} of them"
    )
    enough = prompts_to_detect(WORTH_KNOWING, USUAL_DISCORDANCE)
    more = f"; about {enough} would show {100 * WORTH_KNOWING:.0f}" if usual > WORTH_KNOWING else ""
    return f"{known}; {shown}{more}"


def _memory(checkpoint: Checkpoint, config: EvaluateConfig, characters: int) -> int | None:
    """Weights, the cache of keys and values of one batch, and its logits, in bytes; None where the model is not here.

    An adapter costs its base and itself. Of two models only one is in memory at a time.
    """
    if checkpoint.folder is None:
        return None
    weights = _weights(checkpoint.folder, config.load, adapter=checkpoint.is_adapter)
    if checkpoint.is_adapter:
        base = resolve(str(checkpoint.base))
        if base.folder is None:
            return None
        folder, weights = base.folder, weights + _weights(base.folder, config.load, adapter=False)
    else:
        folder = checkpoint.folder
    settings = load_json(folder / "config.json")
    tokens = characters // _CHARACTERS_PER_TOKEN + config.generation.max_new_tokens

    def number(*names: str) -> int:
        return next((value for name in names if isinstance(value := settings.get(name), int)), 0)

    heads = number("num_attention_heads") or 1
    width = number("head_dim") or number("hidden_size") // heads
    per_token = 2 * number("num_hidden_layers") * (number("num_key_value_heads") or heads) * width
    size = _AS_LOADED.get(config.load.dtype, 4)
    batch = min(config.generation.batch_size, 1024)
    return weights + batch * (tokens * per_token * size + number("vocab_size") * 4)


def _weights(folder: Path, load: LoadConfig, *, adapter: bool) -> int:
    """Bytes in memory; `auto` counts as float32 unless an accelerator is asked for by name."""
    entries = tensor_entries(folder, adapter=adapter).values()
    on_cpu = load.device in ("auto", "cpu", "mps")
    fixed = _AS_LOADED.get(load.dtype, 4 if on_cpu else None)
    return sum(math.prod(entry.shape) * (fixed or _BYTES.get(entry.dtype, 4)) for entry in entries)
