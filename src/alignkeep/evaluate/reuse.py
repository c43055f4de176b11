"""The base's answers from an earlier evaluation, taken over only if it was asked the very same in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignkeep.checkpoint.folders import read_jsonl
from alignkeep.checkpoint.records import Record
from alignkeep.errors import RecipeError
from alignkeep.evaluate.answers import ANSWERS, Given, Side
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.evaluate.harness import Item
from alignkeep.evaluate.items import ITEMS
from alignkeep.evaluate.questions import Preparation, Question
from alignkeep.models.endpoint import is_endpoint

# What an answer depends on besides the question and the model.
_SAME = (
    "load.dtype",
    "load.quantization",
    "load.template",
    "generation.max_new_tokens",
    "generation.backend",
    "generation.thinking_tokens",
    "generation.vllm",
)
_SAME_SERVED = ("generation.max_new_tokens", "endpoint.body")


def check_reusable(
    config: EvaluateConfig, prepared: Preparation, folder: Path, base_fingerprint: str | None = None
) -> Side:
    """Under which name the base answers in `folder`: as the model evaluated there, or as its base.

    `base_fingerprint` None checks everything but the model. Raises RecipeError naming what differs, DataError where
    the folder is no finished evaluation.
    """
    where = f"base_answers {folder}"
    record = Record.read(folder)
    if record.stage != "evaluate":
        raise _mismatch(where, f"the result of {record.stage}", "the folder of an evaluation")
    if record.inputs.get("questions") != prepared.fingerprint:
        raise _mismatch(where, *_first_difference(config, prepared, record))
    if prepared.utility.tasks and record.inputs.get("utility") != prepared.utility.fingerprint:
        then = ", ".join(map(str, tasks)) if isinstance(tasks := record.config.get("utility"), list) else "not measured"
        raise _mismatch(
            where, f"utility {then}", f"utility {', '.join(config.utility)}, with the same items and settings"
        )
    for key in _SAME_SERVED if is_endpoint(str(config.base)) else _SAME:
        then, now = _setting(record.config, key) or None, _setting(config.model_dump(mode="json"), key) or None
        if then != now:
            raise _mismatch(where, f"{key} {then}", f"{key} {now}")
    if base_fingerprint is None or record.inputs.get("model") == base_fingerprint:
        return "tuned"
    if record.inputs.get("base") == base_fingerprint:
        return "base"
    models = " and ".join(str(record.config[key]) for key in ("model", "base") if record.config.get(key))
    raise _mismatch(where, f"answers of {models}", f"answers of {config.base}, with the same files")


def read_reused(folder: Path, side: Side, questions: Sequence[Question]) -> list[Given]:
    """The answer to every question. Raises RecipeError where one is not there."""
    found = {
        int(str(row["index"])): (str(row["answer"]), bool(row["truncated"]), _text_or_none(row.get("no_answer")))
        for row in read_jsonl(folder / ANSWERS)
        if row["model"] == side
    }
    for question in questions:
        if question.index not in found:
            under = "" if question.attack is None else f" under {question.attack}"
            raise _mismatch(
                f"base_answers {folder / ANSWERS}",
                f"no answer to question {question.index}{under}",
                "an answer to each",
            )
    return [Given(question.index, *found[question.index]) for question in questions]


def read_reused_utility(folder: Path, side: Side) -> list[Item]:
    """The items of utility that this side did; those that are not there are measured."""
    rows = (dict(row) for row in read_jsonl(folder / ITEMS)) if (folder / ITEMS).is_file() else ()
    return [Item(**row) for row in rows if row.pop("model") == side]  # pyright: ignore[reportArgumentType]


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)


def _first_difference(config: EvaluateConfig, prepared: Preparation, record: Record) -> tuple[str, str]:
    """(seen, expected) for questions that are not the same."""
    now = config.model_dump(mode="json")
    for key, fingerprint in (("suite", prepared.suite.fingerprint), ("task", prepared.task_fingerprint)):
        if record.inputs.get(key) != fingerprint:
            then = record.config.get(key)
            what = f"{key} {now[key]}"
            return (f"{key} {then}", what if then != now[key] else f"{what}, whose content is another now")
    for key in ("attacks", "limit", "seed"):
        if record.config.get(key) != now[key]:
            return f"{key} {record.config.get(key)}", f"{key} {now[key]}"
    return "other questions", "the questions of this evaluation"


def _setting(config: dict[str, object], key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _mismatch(where: str, seen: str, expected: str) -> RecipeError:
    return RecipeError(where, seen=seen, expected=expected, remedy="drop base_answers, or evaluate the base like this")
