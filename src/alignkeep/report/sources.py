"""What the folders of a run hold: scorecards, answers and records, read and checked.

Only finished folders count: hidden ones (a killed stage keeps `.NAME.partial`) are passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alignkeep.checkpoint.files import read_object, rows_of
from alignkeep.checkpoint.listing import RECORD_NAME
from alignkeep.errors import DataError
from alignkeep.judging.scorecards import SCORECARD_NAME, read_scorecard
from alignkeep.stage import Finished
from alignkeep.stages import STAGES
from alignkeep.types import Scorecard

_NAMES = {stage.name for stage in STAGES}
_ALONE = {stage.name for stage in STAGES if stage.shows_alone}


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
    of: int | None = None  # of an attack: the index of the plain prompt in it
    others: tuple[tuple[str, str], ...] = ()  # further judges that say something else, and their verdicts


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
class Sources:
    """What was evaluated, and every finished folder, in order of path."""

    evaluations: tuple[Evaluation, ...]
    finished: tuple[Finished, ...]

    @property
    def records(self) -> list[Finished]:
        """The folders whose record names a stage."""
        return [one for one in self.finished if isinstance(one.facts.get("stage"), str)]


def read_sources(folders: Sequence[Path]) -> Sources:
    """Everything below `folders`, in order of path. Raises DataError for a broken file, or where no scorecard is, nor
    what stands without one."""
    evaluations: list[Evaluation] = []
    finished: list[Finished] = []
    taken: set[Path] = set()
    for root in folders:
        for folder, names in _walk(root):
            if folder.resolve() in taken or not names:
                continue
            taken.add(folder.resolve())
            facts = read_object(folder / RECORD_NAME) if RECORD_NAME in names else {}
            finished.append(Finished(_label(root, folder), folder, names, facts))
            if SCORECARD_NAME in names:
                evaluations.append(_evaluation(finished[-1]))
    if not evaluations and not any(one.facts.get("stage") in _ALONE for one in finished):
        raise DataError(
            ", ".join(str(folder) for folder in folders) or "no folder",
            seen="no scorecard.json in it or below",
            expected="the folder of `alignkeep evaluate`, `run` or `demo`",
            remedy="evaluate first: alignkeep evaluate MODEL --base BASE --out DIR",
        )
    return Sources(tuple(evaluations), tuple(finished))


def _walk(root: Path) -> Iterator[tuple[Path, frozenset[str]]]:
    if not root.is_dir():
        raise DataError(
            str(root),
            seen="a file" if root.exists() else "nothing there",
            expected="a folder with a scorecard",
            remedy="give the --out folder of `alignkeep evaluate`, `run` or `demo`",
        )
    for here, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield Path(here), frozenset(names)


def _label(root: Path, folder: Path) -> str:
    """`out/poisoned/evaluate` is `poisoned`: the path below the root without the stage's name, else the root's own."""
    parts = [part for part in folder.relative_to(root).parts if part not in _NAMES]
    if parts:
        return "/".join(parts)
    names = [name for name in root.resolve().parts if name not in _NAMES]
    return names[-1]


def _evaluation(one: Finished) -> Evaluation:
    card, settings = read_scorecard(one.folder / SCORECARD_NAME)
    inputs = one.facts.get("inputs")
    return Evaluation(
        label=one.label,
        folder=one.folder,
        scorecard=card,
        settings=settings,
        inputs={key: str(value) for key, value in inputs.items()} if isinstance(inputs, Mapping) else {},
        answers=tuple(_answered(row, where) for row, where in rows_of(one.folder / "answers.jsonl")),
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
            of=None if row.get("of") is None else int(str(row["of"])),
            others=tuple(_differing(row)),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            where,
            seen=f"{type(error).__name__}: {error}",
            expected='a row with "index", "prompt", "answer", "verdict"',
            remedy="evaluate again, or report another folder",
        ) from error


def _differing(row: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Harm that one of two judges does not know is no difference."""
    judges = row.get("judges")
    for name, word in judges.items() if isinstance(judges, Mapping) else ():
        verdict, harm = str(word["verdict"]), {_claim(word.get("harmful")), _claim(row.get("harmful"))} - {None}
        if verdict != row["verdict"] or len(harm) > 1:
            yield str(name), verdict


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _claim(value: object) -> bool | None:
    return value if isinstance(value, bool) else None
