"""Halves of a suite and a task: one chooses, the other reports, so that no number flatters what was chosen by it.

What chooses also gives merges and injections what they look at: its prompts by kind, and the base's refusals of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from alignkeep.answers.stage import line_of, why_left_out
from alignkeep.checkpoint.files import read_jsonl, write_text
from alignkeep.checkpoint.folders import refuse_overlap
from alignkeep.data import read_examples
from alignkeep.errors import DataError
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.evaluate.questions import prepare
from alignkeep.evaluate.suites import CHOOSE, half_of
from alignkeep.formats import Columns
from alignkeep.judging.metrics import HARM_REFUSAL, TASK_ACCURACY
from alignkeep.judging.prompts import halves, task_prompts
from alignkeep.judging.statistics import count_pairs, paired_difference
from alignkeep.types import Estimate, Prompt, Scorecard, Verdict

_KINDS = ("harmful", "harmless", "borderline")
_DATA = "data"
# The files that are written here, in the folder of a run.
WRITTEN = tuple(f"{_DATA}/{name}.jsonl" for name in ("task", "task_report", "tuning", "alignment", *_KINDS))


def refuse_inputs(out: Path, given: Sequence[str | None]) -> None:
    """Raises RecipeError for an output folder that holds an input, or lies in one: it may be emptied."""
    refuse_overlap(Path(os.path.realpath(out)), [Path(one) for one in given if one is not None and Path(one).exists()])


def of_half(asked: EvaluateConfig, files: Mapping[str, Path], half: Literal["choose", "report"]) -> EvaluateConfig:
    """The same evaluation on one half of its suite and task."""
    task = files["task" if half == CHOOSE else "task_report"]
    return asked.model_copy(update={"suite": half_of(asked.suite, half), "task": str(task)})


def write_task(task: str, columns: Columns, out: Path) -> dict[str, Path]:
    """The two halves of the task in files of our own columns. Raises DataError where a half would be empty."""
    rows = task_prompts(task, remedy="add it, or give another file as the task", columns=columns)
    files = {name: out / _DATA / f"{name}.jsonl" for name in ("task", "task_report")}
    (out / _DATA).mkdir(exist_ok=True)
    for path, part in zip(files.values(), halves(rows), strict=True):
        if not part:
            raise DataError(
                task, seen=f"{len(rows)} prompt", expected="two or more: half chooses, half reports",
                remedy="add some",
            )  # fmt: skip
        write_text(path, "".join(map(_row, part)))
    return files


def write_tuning(data: str, columns: Columns, out: Path) -> Path:
    """The examples of a tune in a file of our own columns, for those who are not told of others."""
    path = out / _DATA / "tuning.jsonl"
    chats = (
        [{"role": turn.role, "content": turn.content} for turn in one.messages]
        for one in read_examples(data, columns=columns)
    )
    write_text(path, "".join(json.dumps({"messages": chat}, ensure_ascii=False) + "\n" for chat in chats))
    return path


def check_kinds(suite: str, prompts: Sequence[Prompt]) -> None:
    """Raises DataError for a suite without harmful or without harmless prompts: a repair wants both."""
    kinds = {prompt.kind for prompt in prompts}
    for kind in ("harmful", "harmless"):
        if kind not in kinds:
            raise DataError(
                suite, seen=f"nothing {kind} to ask", expected="prompts of both kinds", remedy="give another --suite"
            )


def write_prompts(asked: EvaluateConfig, out: Path, files: dict[str, Path], measured: Path) -> None:
    """What merges and injections look at: the prompts of the choosing half by kind, and the base's refusals of them in
    the evaluation `measured`.

    Refusals alone: with the base's answers to harmless prompts among them, of which many are guesses, a Fisher merge of
    the testbed's tune had 25 % harm refusal and 23 % task at weight 0.9, without them 75 and 42 (60 prompts each).
    """
    prompts = prepare(asked).prompts
    for kind in _KINDS:
        of_kind = [prompt for prompt in prompts if prompt.kind == kind]
        if of_kind:
            files[kind] = out / _DATA / f"{kind}.jsonl"
            write_text(files[kind], "".join(map(_row, of_kind)))
    lines: list[str] = []
    for row in read_jsonl(measured / "answers.jsonl"):
        if row["model"] != "base" or row["attack"] is not None or row["kind"] != "harmful":
            continue
        prompt, verdict = prompts[int(str(row["index"]))], Verdict(row["verdict"])
        if why_left_out(prompt.kind, verdict, truncated=bool(row["truncated"])) is None:
            lines.append(line_of(prompt, str(row["answer"])))
    if lines:  # a base that refuses nothing leaves the methods that do without
        files["alignment"] = out / _DATA / "alignment.jsonl"
        write_text(files["alignment"], "".join(lines))


def _row(prompt: Prompt) -> str:
    turns = prompt.messages
    asked = turns[0].content if len(turns) == 1 else [{"role": turn.role, "content": turn.content} for turn in turns]
    facts = {"prompt": asked, "kind": prompt.kind, "category": prompt.category, "language": prompt.language}
    row = {**facts, "expected": prompt.expected}
    return json.dumps({key: value for key, value in row.items() if value is not None}, ensure_ascii=False) + "\n"


def task_change(model: Path, plain: Path) -> Estimate:
    """The paired difference of two evaluations of the same prompts in right answers to the task (a share)."""
    import numpy as np

    one, two = (
        {
            str(row["index"]): bool(row["correct"])
            for row in read_jsonl(folder / "answers.jsonl")
            if row["kind"] == "task" and row["attack"] is None and row["model"] != "base"
        }
        for folder in (model, plain)
    )
    same = sorted(one.keys() & two.keys())
    return paired_difference(count_pairs(np.array([one[key] for key in same]), np.array([two[key] for key in same])))


def rates_line(name: str, card: Scorecard) -> str:
    """What is chosen by, of one that was tried."""
    return f"{name}: harm refusal {rate_of(card, HARM_REFUSAL.name)}, task {rate_of(card, TASK_ACCURACY.name)}"


def rate_of(card: Scorecard, name: str) -> str:
    return f"{100 * card.metrics[name].value:.0f} %" if name in card.metrics else "not measured"
