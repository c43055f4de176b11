"""The stage `gate`: scorecards read, held against a policy, and one verdict for continuous integration."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alignkeep.checkpoint.records import Record
from alignkeep.errors import DataError
from alignkeep.judging.scorecards import read_scorecard
from alignkeep.policy.bounds import DEFAULT, Policy, read_policy
from alignkeep.policy.decision import Answer, together
from alignkeep.policy.holding import Line, held

SCORECARD = "scorecard.json"


@dataclass(frozen=True, slots=True)
class Gated:
    """One scorecard's verdict, with a line for every bound."""

    folder: Path
    model: str
    base: str | None
    suite: str
    answer: Answer
    lines: tuple[Line, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "folder": str(self.folder),
            "model": self.model,
            "base": self.base,
            "suite": self.suite,
            "answer": self.answer.value,
            "bounds": [line.as_json() for line in self.lines],
        }


@dataclass(frozen=True, slots=True)
class GateResult:
    """The verdict on all scorecards of a folder: the worst of them."""

    policy: str
    answer: Answer
    models: tuple[Gated, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "policy": self.policy,
            "answer": self.answer.value,
            "models": [gated.as_json() for gated in self.models],
        }


def gate(folder: str | Path, *, policy: str | Policy = DEFAULT) -> GateResult:
    """Hold every scorecard in `folder` (or below it) against a policy: `default`, a YAML file, or a Policy.

    Raises DataError where there is no scorecard, or a bound names a metric that was not measured: what nobody measured
    must not pass. Raises RecipeError for a policy that cannot be read or was set for another suite or judge.
    """
    rules = policy if isinstance(policy, Policy) else read_policy(policy)
    found = tuple(_gated(path, rules) for path in _scorecards(Path(folder)))
    return GateResult(rules.name, together([gated.answer for gated in found]), found)


def _scorecards(folder: Path) -> list[Path]:
    """All scorecards of finished evaluations in `folder`, in the order of their paths; the one alone that the folder's
    record names as that of the model to ship."""
    found = _shipped(folder) or (sorted(_walk(folder)) if folder.is_dir() else [])
    if not found:
        raise DataError(
            str(folder),
            seen=f"no {SCORECARD} in it" if folder.is_dir() else "no such folder",
            expected="the --out folder of a finished `alignkeep evaluate` (or of a run, or demo)",
            remedy="evaluate the model first",
        )
    return found


def _shipped(folder: Path) -> list[Path]:
    try:
        named = Record.read(folder).result.get("scorecard")
    except DataError:
        return []
    return [folder / named / SCORECARD] if isinstance(named, str) and (folder / named / SCORECARD).is_file() else []


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # killed stages, not finished ones
        if SCORECARD in names:
            yield Path(root) / SCORECARD


def _gated(path: Path, policy: Policy) -> Gated:
    card, settings = read_scorecard(path)
    lines = held(str(path), card, settings, policy)
    answers = [line.answer for line in lines if line.answer is not None]
    return Gated(path.parent, card.model, card.base, card.suite, together(answers), lines)
