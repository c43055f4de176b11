"""Answers on disk: stored as they come, so that a killed evaluation goes on where it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from alignkeep.checkpoint.parts import append_rows, recover_rows
from alignkeep.evaluate.questions import Question
from alignkeep.types import Judgement, Message

Side = Literal["tuned", "base"]

ANSWERS = "answers.jsonl"


class Said(NamedTuple):
    """A model's answer, whether it was cut off, and the turns before the one it answers that were the model's own;
    `no_answer` says why a served model gave none."""

    text: str
    truncated: bool
    before: tuple[Message, ...] = ()
    no_answer: str | None = None


class Given(NamedTuple):
    """An answer to the question of that number, or why there is none."""

    question: int
    text: str
    truncated: bool
    no_answer: str | None = None


class AnswerLog:
    """Every answer in a file as soon as it is there. A line that a kill tore, or that is not what was written, is
    dropped and its question asked again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._said: dict[tuple[str, int, int | None], Said] = {}
        for row in recover_rows(path):
            self._said[row["model"], row["index"], row.get("lead")] = _said(row)

    def add(self, side: Side, answers: Iterable[Given | tuple[int, str, bool]], lead: int | None = None) -> None:
        """Store them on the disk; `lead` is the number of the turn before the last that they answer, None for the
        last."""
        turn = {} if lead is None else {"lead": lead}
        rows: list[dict[str, Any]] = [
            {"model": side, "index": one.question, "answer": one.text, "truncated": one.truncated}
            | turn
            | ({} if one.no_answer is None else {"no_answer": one.no_answer})
            for one in (answer if isinstance(answer, Given) else Given(*answer) for answer in answers)
        ]
        append_rows(self.path, rows)
        for row in rows:
            self._said[side, row["index"], lead] = _said(row)

    def missing(self, side: Side, questions: Sequence[Question], lead: int | None = None) -> list[Question]:
        """The questions this side has not answered yet, in their order: at the last turn, or at this one before it."""
        return [
            question
            for question in questions
            if (side, question.index, lead) not in self._said and (lead is None or lead < len(question.leads))
        ]

    def no_answer(self, side: Side, question: Question) -> str | None:
        """Why a turn before the last got no answer; None where none did without one."""
        stored = (self._said.get((side, question.index, lead)) for lead in range(len(question.leads)))
        return next((said.no_answer for said in stored if said is not None and said.no_answer is not None), None)

    def said(self, side: Side, question: Question) -> Said:
        """The stored answer. KeyError if there is none."""
        said = self._said[side, question.index, None]
        return said._replace(before=self.before(side, question)) if question.leads else said

    def before(self, side: Side, question: Question, turns: int | None = None) -> tuple[Message, ...]:
        """The first `turns` of the question's leads with the answers to them (None: all, as far as they are stored:
        those of a base that answered elsewhere are not)."""
        found: list[Message] = []
        for number, asked in enumerate(question.leads[:turns]):
            said = self._said.get((side, question.index, number))
            if said is not None:
                found += [Message("user", asked), Message("assistant", said.text)]
        return tuple(found)


def _said(row: Mapping[str, Any]) -> Said:
    return Said(row["answer"], row["truncated"], no_answer=row.get("no_answer"))


class Judged(NamedTuple):
    """One line of `answers.jsonl`."""

    side: Side
    question: Question
    said: Said
    judgement: Judgement
    correct: bool | None
    others: Mapping[str, Judgement] = MappingProxyType({})  # what further judges say, by their names

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
            **self.judgement.as_json(),
            "correct": self.correct,
            **({"judges": {name: word.as_json() for name, word in self.others.items()}} if self.others else {}),
            **({} if self.said.no_answer is None else {"no_answer": self.said.no_answer}),
            **({"of": self.question.of} if self.question.attack is not None else {}),
            **({"before": [[turn.role, turn.content] for turn in self.said.before]} if self.said.before else {}),
        }
