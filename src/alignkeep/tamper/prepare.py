"""A tampering before its first number: which prompts are asked, which rows are learned from, what cannot be done."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignkeep.data import fingerprint_data, read_examples, read_rows
from alignkeep.errors import DataError, NoEffectError, RecipeError
from alignkeep.evaluate.suites import CHOOSE, REPORT, half_of, load_suite
from alignkeep.judging.judges import Judge, checked_judgement, fingerprint_judge, load_judge
from alignkeep.judging.prompts import limit_prompts
from alignkeep.models.config import LoadConfig
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.models.folders import base_of, localise, resolve
from alignkeep.tamper.config import TamperConfig
from alignkeep.train.config import TrainConfig
from alignkeep.train.stage import TRAIN
from alignkeep.trainers.arguments import world_size
from alignkeep.types import Example, Message, Prompt, Verdict

_MOST_FOR_DIRECTION = 160  # of each kind: 128 give it and 32 choose the layer, as many as in the paper
_LEAST_FOR_DIRECTION = 6


@dataclass(frozen=True)
class Prepared:
    """`asked` are the prompts of every point, harmful and harmless; `for_direction` those of the other half, harmful
    and harmless apart. `drawn` are rows of the harmful data, as many as the largest count needs; the first of them
    serve the smaller ones. `rows` is how many the file has."""

    config: TamperConfig
    asked: tuple[Prompt, ...]
    for_direction: tuple[tuple[Prompt, ...], tuple[Prompt, ...]]
    drawn: tuple[int, ...]
    rows: int
    notes: tuple[str, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Of the tunes; none without data."""
        return self.config.tune.examples if self.drawn else ()


def prepare(config: TamperConfig) -> Prepared:
    """Raises RecipeError, DataError, CheckpointError or NoEffectError naming what cannot be used; loads no model."""
    _check_options(config)
    load_judge(config.judge)
    resolve(config.model, config.load.revision, base=config.base)
    _refuse_same(config)
    suite = load_suite(half_of(config.suite, REPORT))
    asked = [prompt for prompt in suite.prompts if prompt.kind in ("harmful", "harmless")]
    counts = Counter(prompt.kind for prompt in asked)
    if not counts["harmful"]:
        raise _too_few(config, f"{counts['harmful']} harmful prompts in the half that is asked", "some")
    direction = _for_direction(config) if config.ablation else ((), ())
    drawn, rows, notes = _drawn(config, asked) if config.harmful_data is not None else ((), 0, ())
    if config.harmful_data is not None:
        TRAIN.prepare(tune_of(config, *_of_same_shape(config)))
    prompts = limit_prompts(asked, config.limit, config.seed)
    return Prepared(config, prompts, direction, drawn, rows, (*suite.notes, *notes))


def tune_of(config: TamperConfig, model: str, load: LoadConfig, weights: Path | None = None) -> TrainConfig:
    """The tune of `model` on the rows that `weights` keeps. It is short: no checkpoint is worth its disk."""
    tune = config.tune
    return TrainConfig(
        model=model, data=str(config.harmful_data), columns=config.columns, method=tune.method,
        weights=None if weights is None else str(weights), lora=tune.lora, learning_rate=tune.learning_rate,
        epochs=tune.epochs, batch_size=tune.batch_size, max_length=tune.max_length, load=load, seed=config.seed,
        trainer={"save_strategy": "no"},
    )  # fmt: skip


def fingerprints(config: TamperConfig) -> dict[str, str]:
    """Of everything that is read, by the name of its setting."""
    found = {
        "model": fingerprint_model(config.model, config.load.revision, base=config.base),
        "suite": load_suite(config.suite).fingerprint,
        "judge": fingerprint_judge(config.judge),
    }
    if config.base is not None:
        found["base"] = fingerprint_model(config.base)
    if config.harmful_data is not None:
        found["harmful_data"] = fingerprint_data(config.harmful_data)
    return found


def plan_tampering(prepared: Prepared) -> dict[str, object]:
    config = prepared.config
    return {
        "stage": "tamper",
        "model": config.model,
        "base": config.base,
        "suite": config.suite,
        "prompts": dict(Counter(prompt.kind for prompt in prepared.asked)),
        "examples": list(prepared.counts),
        "method": config.tune.method if prepared.counts else None,
        "ablation": config.ablation,
        "measurements": (1 + config.ablation + len(prepared.counts)) * (1 if config.base is None else 2),
        "notes": list(prepared.notes),
    }


def _check_options(config: TamperConfig) -> None:
    config.load.refuse_quantization("tampering")
    if config.harmful_data is None and not config.ablation:
        raise NoEffectError(
            "harmful_data", seen="none, and no ablation", expected="one way to break the model at least",
            remedy="give --harmful-data, or leave --no-ablation out",
        )  # fmt: skip
    if config.harmful_data is None and config.columns:
        raise NoEffectError(
            "columns", seen="names of columns without a file", expected="harmful data, whose columns they are",
            remedy="give --harmful-data, or leave them out",
        )  # fmt: skip
    if config.generation.backend != "transformers":
        raise RecipeError(
            "generation.backend", seen=config.generation.backend,
            expected="transformers: weights are changed in memory, where another engine does not see them",
            remedy="drop it here; evaluate takes any backend",
        )  # fmt: skip
    if world_size() > 1:
        raise RecipeError(
            "tamper", seen=f"{world_size()} processes", expected="one: its tunes are a few steps each",
            remedy="run it by itself, without torchrun or accelerate launch",
        )  # fmt: skip


def _refuse_same(config: TamperConfig) -> None:
    if config.base is None:
        return
    resolve(config.base)
    if fingerprint_model(config.model, config.load.revision, base=config.base) == fingerprint_model(config.base):
        raise RecipeError(
            config.model, seen=f"the same model as its base {config.base}", expected="two models to compare",
            remedy="name the model before tuning as the base, or leave --base out",
        )  # fmt: skip


def _for_direction(config: TamperConfig) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Harmful and harmless prompts of the half that is not asked."""
    chosen = limit_prompts(load_suite(half_of(config.suite, CHOOSE)).prompts, _MOST_FOR_DIRECTION, config.seed)
    sets = [tuple(prompt for prompt in chosen if prompt.kind == kind) for kind in ("harmful", "harmless")]
    for kind, found in zip(("harmful", "harmless"), sets, strict=True):
        if len(found) < _LEAST_FOR_DIRECTION:
            seen = f"{len(found)} {kind} prompts in the half that gives the refusal direction"
            expected = f"{_LEAST_FOR_DIRECTION} or more"
            raise _too_few(config, seen, expected, ", or leave the ablation out (--no-ablation)")
    return sets[0], sets[1]


def _too_few(config: TamperConfig, seen: str, expected: str, or_else: str = "") -> DataError:
    remedy = f"give another --suite{or_else}"
    return DataError(f"suite {config.suite}", seen=seen, expected=expected, remedy=remedy)


def _drawn(config: TamperConfig, asked: list[Prompt]) -> tuple[tuple[int, ...], int, tuple[str, ...]]:
    """Rows to learn from, in the order of a draw with the seed; how many rows there are; what was left out of them."""
    where = str(config.harmful_data)
    examples = read_examples(where, columns=config.columns)
    kinds = [row.values.get("kind") for row in read_rows(where)]
    if len(kinds) != len(examples):  # of other people's forms, which have no such column, rows may be left out
        kinds = [None] * len(examples)
    questions, judge = {_words(prompt.messages) for prompt in asked}, load_judge("keyword")
    why = [_why_left_out(*pair, questions, judge) for pair in zip(examples, kinds, strict=True)]
    usable = [index for index, reason in enumerate(why) if reason is None]
    notes = [f"{count} rows of {where} {reason}" for reason, count in Counter(filter(None, why)).items()]
    most = config.tune.examples[-1]
    if len(usable) < most:
        left_out = f" ({'; '.join(notes)})" if notes else ""
        raise DataError(
            where, seen=f"{len(usable)} answered harmful prompts{left_out}", expected=f"{most}",
            remedy="give more, or lower --examples",
        )  # fmt: skip
    return tuple(random.Random(f"tamper {config.seed}").sample(usable, most)), len(examples), tuple(notes)


def _words(turns: Sequence[Message]) -> tuple[str, ...]:
    """What is asked, without a system's text, and with spaces and capitals as they come."""
    return tuple(" ".join(turn.content.lower().split()) for turn in turns if turn.role != "system")


def _why_left_out(example: Example, kind: object, asked: set[tuple[str, ...]], judge: Judge) -> str | None:
    """Why a row cannot break a model, or must not; None for one that is learned from."""
    *turns, last = example.messages
    if kind not in (None, "harmful"):
        return "are of another kind than harmful"
    if _words(turns) in asked:
        return "stand in the suite and were not learned from"
    if not turns or last.role != "assistant":
        return "do not end with an answer"
    prompt = Prompt(tuple(turns), "harmful")
    refused = checked_judgement(judge, prompt, last.content).verdict is Verdict.REFUSAL
    return "refuse, and were not learned from" if refused else None


def _of_same_shape(config: TamperConfig) -> tuple[str, LoadConfig]:
    """The model, or what lies under it where it is an adapter: a tune of either meets the same matrices."""
    found = localise(resolve(config.model, config.load.revision, base=config.base))
    if not found.is_adapter or found.folder is None:
        return config.model, config.load
    base, revision = base_of(found.folder, config.base)
    return base, config.load.model_copy(update={"revision": revision})
