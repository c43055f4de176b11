"""What the folders of a run hold: scorecards, answers, training logs and records, read and checked.

Only finished folders count: hidden ones (a killed stage keeps `.NAME.partial`) are passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alignkeep.checkpoint.explanations import EXPLANATION_NAME, Explanation, read_explanation
from alignkeep.checkpoint.files import read_object
from alignkeep.checkpoint.forgetting import FORGETTING_NAME, ForgettingLaw, read_forgetting
from alignkeep.checkpoint.injections import INJECTION_NAME, Injection, read_injection
from alignkeep.checkpoint.scorecards import read_scorecard
from alignkeep.checkpoint.sweeps import SWEEP_NAME, SweepResult, read_sweep
from alignkeep.errors import DataError
from alignkeep.report.logs import LOG_NAME, Alignment, Training, read_alignment, read_training, rows_of
from alignkeep.stages import STAGES
from alignkeep.types import Scorecard

_READ = {"scorecard.json", LOG_NAME, "record.json", SWEEP_NAME, INJECTION_NAME, FORGETTING_NAME}
_READ |= {EXPLANATION_NAME}
_NAMES = {stage.name for stage in STAGES}


@dataclass(frozen=True, slots=True)
class Answered:
    """One row of `answers.jsonl`."""

    model: str
    index: int
    kind: str
    category: str | None
    attack: str | None
    prompt: str
    expected: str | None
    answer: str
    truncated: bool
    verdict: str
    harmful: bool | None
    correct: bool | None


@dataclass(frozen=True)
class Evaluation:
    """A folder with a scorecard. `inputs` are the fingerprints in its record, empty where there is none."""

    label: str
    folder: Path
    scorecard: Scorecard
    settings: Mapping[str, object]
    inputs: Mapping[str, str] = field(default_factory=dict)
    answers: tuple[Answered, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """A folder with the sweep of a merge's weight."""

    label: str
    found: SweepResult


@dataclass(frozen=True)
class Injected:
    """A folder with an injection."""

    label: str
    found: Injection


@dataclass(frozen=True)
class Curated:
    """A folder with a curation."""

    label: str
    found: Explanation


@dataclass(frozen=True)
class StageRecord:
    """The `record.json` of one finished stage; `label` is the model it belongs to."""

    label: str
    stage: str
    facts: Mapping[str, object]


@dataclass(frozen=True)
class Sources:
    evaluations: tuple[Evaluation, ...]
    trainings: tuple[Training, ...]
    records: tuple[StageRecord, ...]
    sweeps: tuple[Sweep, ...] = ()
    injections: tuple[Injected, ...] = ()
    laws: tuple[ForgettingLaw, ...] = ()
    curations: tuple[Curated, ...] = ()
    alignments: tuple[Alignment, ...] = ()


def read_sources(folders: Sequence[Path]) -> Sources:
    """Everything below `folders`, in order of path. Raises DataError for a broken file, or where no scorecard is."""
    evaluations: list[Evaluation] = []
    trainings: list[Training] = []
    records: list[StageRecord] = []
    sweeps: list[Sweep] = []
    injections: list[Injected] = []
    laws: list[ForgettingLaw] = []
    curations: list[Curated] = []
    alignments: list[Alignment] = []
    taken: dict[Path, str] = {}
    for root in folders:
        for folder, names in _walk(root):
            if folder.resolve() in taken or not names & _READ:
                continue
            label = taken[folder.resolve()] = _label(root, folder)
            facts = read_object(folder / "record.json") if "record.json" in names else {}
            if isinstance(facts.get("stage"), str):
                records.append(StageRecord(label, str(facts["stage"]), facts))
            if "scorecard.json" in names:
                evaluations.append(_evaluation(folder, label, facts))
            if LOG_NAME in names and facts.get("stage") == "align":  # its loss is no loss of an example
                alignments.append(read_alignment(folder / LOG_NAME, label, facts))
            elif LOG_NAME in names:
                trainings.append(read_training(folder / LOG_NAME, label, facts))
            if SWEEP_NAME in names:
                sweeps.append(Sweep(label, read_sweep(folder / SWEEP_NAME)))
            if INJECTION_NAME in names:
                injections.append(Injected(label, read_injection(folder / INJECTION_NAME)))
            if FORGETTING_NAME in names:
                laws.append(read_forgetting(folder / FORGETTING_NAME))
            if EXPLANATION_NAME in names:
                curations.append(Curated(label, read_explanation(folder / EXPLANATION_NAME)))
    if not evaluations:
        raise DataError(
            ", ".join(str(folder) for folder in folders) or "no folder",
            seen="no scorecard.json in it or below",
            expected="the folder of `alignkeep evaluate`, `run` or `demo`",
            remedy="evaluate first: alignkeep evaluate MODEL --base BASE --out DIR",
        )
    return Sources(
        tuple(evaluations), tuple(trainings), tuple(records), tuple(sweeps), tuple(injections), tuple(laws),
        tuple(curations), tuple(alignments),
    )  # fmt: skip


def _walk(root: Path) -> Iterator[tuple[Path, set[str]]]:
    if not root.is_dir():
        raise DataError(
            str(root),
            seen="a file" if root.exists() else "nothing there",
            expected="a folder with a scorecard",
            remedy="give the --out folder of `alignkeep evaluate`, `run` or `demo`",
        )
    for here, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield Path(here), set(names)


def _label(root: Path, folder: Path) -> str:
    """`out/poisoned/evaluate` is `poisoned`: the path below the root without the stage's name, else the root's own."""
    parts = [part for part in folder.relative_to(root).parts if part not in _NAMES]
    if parts:
        return "/".join(parts)
    names = [name for name in root.resolve().parts if name not in _NAMES]
    return names[-1]


def _evaluation(folder: Path, label: str, facts: Mapping[str, object]) -> Evaluation:
    card, settings = read_scorecard(folder / "scorecard.json")
    inputs = facts.get("inputs")
    return Evaluation(
        label=label,
        folder=folder,
        scorecard=card,
        settings=settings,
        inputs={key: str(value) for key, value in inputs.items()} if isinstance(inputs, Mapping) else {},
        answers=tuple(_answered(row, where) for row, where in rows_of(folder / "answers.jsonl")),
    )


def _answered(row: Mapping[str, object], where: str) -> Answered:
    try:
        return Answered(
            model=str(row.get("model") or "tuned"),
            index=int(str(row["index"])),
            kind=str(row.get("kind") or "unknown"),
            category=_text(row.get("category")),
            attack=_text(row.get("attack")),
            prompt=str(row["prompt"]),
            expected=_text(row.get("expected")),
            answer=str(row["answer"]),
            truncated=bool(row.get("truncated")),
            verdict=str(row["verdict"]),
            harmful=_claim(row.get("harmful")),
            correct=_claim(row.get("correct")),
        )
    except (KeyError, ValueError) as error:
        raise DataError(
            where,
            seen=f"{type(error).__name__}: {error}",
            expected='a row with "index", "prompt", "answer", "verdict"',
            remedy="evaluate again, or report another folder",
        ) from error


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _claim(value: object) -> bool | None:
    return value if isinstance(value, bool) else None
