"""Answers on disk: stored as they come, so that a killed evaluation goes on where it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from alignkeep.checkpoint.parts import append_rows, recover_rows
from alignkeep.evaluate.questions import Question
from alignkeep.types import Judgement

Side = Literal["tuned", "base"]

ANSWERS = "answers.jsonl"


class Said(NamedTuple):
    """A model's answer, and whether it was cut off."""

    text: str
    truncated: bool


class AnswerLog:
    """Every answer in a file as soon as it is there. A line that a kill tore, or that is not what was written, is
    dropped and its question asked again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._said: dict[tuple[str, int], Said] = {}
        for row in recover_rows(path):
            self._said[row["model"], row["index"]] = Said(row["answer"], row["truncated"])

    def add(self, side: Side, answers: Iterable[tuple[int, str, bool]]) -> None:
        """Store (question index, text, truncated) on the disk."""
        rows = [{"model": side, "index": i, "answer": text, "truncated": cut} for i, text, cut in answers]
        append_rows(self.path, rows)
        for row in rows:
            self._said[side, row["index"]] = Said(row["answer"], row["truncated"])

    def missing(self, side: Side, questions: Sequence[Question]) -> list[Question]:
        """The questions this side has not answered yet, in their order."""
        return [question for question in questions if (side, question.index) not in self._said]

    def said(self, side: Side, question: Question) -> Said:
        """The stored answer. KeyError if there is none."""
        return self._said[side, question.index]


class Judged(NamedTuple):
    """One line of `answers.jsonl`."""

    side: Side
    question: Question
    said: Said
    judgement: Judgement
    correct: bool | None

    def as_json(self) -> dict[str, object]:
        prompt = self.question.prompt
        return {
            "model": self.side,
            "index": self.question.index,
            "kind": prompt.kind,
            "category": prompt.category,
            "language": prompt.language,
            "attack": self.question.attack,
            "prompt": prompt.text,
            "expected": prompt.expected,
            "answer": self.said.text,
            "truncated": self.said.truncated,
            "verdict": self.judgement.verdict.value,
            "harmful": self.judgement.harmful,
            "score": self.judgement.score,
            "correct": self.correct,
        }
