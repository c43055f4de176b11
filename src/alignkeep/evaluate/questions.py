"""What will be asked, found out before a model is loaded: every user error that can be seen cheaply is raised here."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from alignkeep.data import fingerprint_data, read_prompts
from alignkeep.errors import DataError, NoEffectError, RecipeError
from alignkeep.evaluate.attacks import Attack, offered_attacks, select_attacks
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.evaluate.suites import Suite, limit_prompts, load_suite
from alignkeep.models.config import LoadConfig
from alignkeep.models.folders import resolve, tensor_entries
from alignkeep.models.headers import load_json
from alignkeep.types import Checkpoint, Prompt

_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1}
_AS_LOADED = {"float32": 4, "bfloat16": 2, "float16": 2}
# Rough, for the plan only (chosen): characters a token stands for, bytes a token of an answer takes in the files.
_CHARACTERS_PER_TOKEN, _BYTES_PER_TOKEN, _BYTES_PER_ROW = 3, 8, 400


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt as it is asked: plainly, or under an attack. `index` numbers all questions of an evaluation."""

    index: int
    prompt: Prompt
    attack: str | None = None


@dataclass(frozen=True)
class Preparation:
    """Everything an evaluation knows before it touches a model. `task` prompts have kind task."""

    config: EvaluateConfig
    suite: Suite
    prompts: tuple[Prompt, ...]
    attacks: tuple[Attack, ...]
    questions: tuple[Question, ...]
    model: Checkpoint
    base: Checkpoint | None
    task_fingerprint: str | None

    @property
    def fingerprint(self) -> str:
        """Of all questions, in their order: two evaluations that share it asked the same."""
        facts = [[asdict(question.prompt), question.attack] for question in self.questions]
        return f"sha256:{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}"

    @property
    def local_inputs(self) -> list[Path]:
        """Model folders that must not be written to."""
        return [found.folder for found in (self.model, self.base) if found is not None and found.folder is not None]


def prepare(config: EvaluateConfig) -> Preparation:
    """Reads suite and task, chooses the attacks, numbers the questions, finds the models without loading them.

    Raises RecipeError, DataError or CheckpointError for whatever is wrong with any of these, and with the judge.
    """
    from alignkeep.evaluate.judge import load_judge

    load_judge(config.judge)
    _check_options(config)
    suite = load_suite(config.suite)
    attacks = select_attacks(config.attacks, offered_attacks(suite.attacks))
    prompts = limit_prompts((*suite.prompts, *_task(config.task)), config.limit, config.seed)
    return Preparation(
        config=config,
        suite=suite,
        prompts=prompts,
        attacks=tuple(attacks),
        questions=ask(prompts, attacks),
        model=resolve(config.model, config.load.revision),
        base=None if config.base is None else resolve(config.base),
        task_fingerprint=None if config.task is None else fingerprint_data(config.task),
    )


def ask(prompts: Sequence[Prompt], attacks: Sequence[Attack]) -> tuple[Question, ...]:
    """Every prompt plainly, in order, then every harmful one under each attack, attack by attack.

    Raises NoEffectError for an attack that leaves a prompt as it is.
    """
    asked: list[tuple[Prompt, str | None]] = [(prompt, None) for prompt in prompts]
    for attack in attacks:
        for prompt in prompts:
            if prompt.kind != "harmful":
                continue
            attacked = attack.apply(prompt)
            if attacked == prompt:
                raise NoEffectError(
                    f"attack {attack.name}",
                    seen=f"the prompt {prompt.text[:40]!r} as it was",
                    expected="other words, a system message or a prefill",
                    remedy="mend the attack, or leave it out of --attacks",
                )
            asked.append((attacked, attack.name))
    return tuple(Question(index, prompt, attack) for index, (prompt, attack) in enumerate(asked))


def plan_evaluation(config: EvaluateConfig) -> dict[str, object]:
    """What `evaluate` would do, as JSON, with a rough upper estimate of memory and disk. Loads and writes nothing."""
    from alignkeep.evaluate.reuse import check_reusable

    prepared = prepare(config)
    if config.base_answers is not None:
        check_reusable(config, prepared, Path(config.base_answers))
    to_ask = 2 if prepared.base is not None and config.base_answers is None else 1
    length = max(sum(len(turn.content) for turn in question.prompt.messages) for question in prepared.questions)
    texts = sum(len(question.prompt.text.encode()) for question in prepared.questions)
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
        "questions": len(prepared.questions),
        "answers_to_generate": to_ask * len(prepared.questions),
        "answers_reused": 0 if config.base_answers is None else len(prepared.questions),
        "tokens_at_most": to_ask * len(prepared.questions) * config.generation.max_new_tokens,
        "memory_bytes_estimated": _memory(prepared.model, config, length),
        "disk_bytes_estimated": disk,
    }


def _check_options(config: EvaluateConfig) -> None:
    if config.base_answers is not None and config.base is None:
        raise RecipeError(
            "base_answers",
            seen="no base",
            expected="the base whose answers they are",
            remedy="give --base too, or drop base_answers",
        )
    if config.generation.backend == "vllm" and find_spec("vllm") is None:
        raise RecipeError(
            "backend",
            seen="vllm, which is not installed here",
            expected="an installed backend",
            remedy='pip install "alignkeep[vllm]", or take --backend transformers',
        )


def _task(reference: str | None) -> list[Prompt]:
    prompts = [] if reference is None else read_prompts(reference, kind="task")
    for number, prompt in enumerate(prompts, start=1):
        if prompt.expected is None:
            raise DataError(
                f"{reference}, row {number}",
                seen="a prompt without its right answer",
                expected="a column `expected` (or `completion`) in every row of a task",
                remedy="add it, or put these prompts into a suite",
            )
    return prompts


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
