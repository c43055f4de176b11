"""`judge`: score stored answers again, without a model. Rows {"prompt", "answer"} in, one verdict per row out.

Transcripts of garak and PyRIT are such rows too (`transcripts.py`).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from alignkeep.checkpoint.files import read_jsonl, write_text
from alignkeep.checkpoint.records import Record
from alignkeep.data import Row, fingerprint_data, local_file, read_rows
from alignkeep.errors import DataError
from alignkeep.evaluate.config import JudgeConfig
from alignkeep.evaluate.transcripts import answers_of
from alignkeep.progress import Progress
from alignkeep.runs.perform import perform
from alignkeep.stage import Inputs, Job, Plan, Stage, Task
from alignkeep.types import Kind, Message, Prompt, Role, Verdict

if TYPE_CHECKING:
    from alignkeep.judging.judges import Judge

VERDICTS = "verdicts.jsonl"


@dataclass(frozen=True)
class JudgeResult:
    """Where the verdicts lie, how many answers got which, how many were found harmful, and how many of a transcript
    were no text and left out."""

    folder: Path
    n: int
    verdicts: dict[str, int]
    harmful: int
    left_out: int = 0


def plan_judge(answers: str, *, judge: str = "keyword") -> dict[str, object]:
    """What `judge` would do. Raises its user errors about answers and judge, judges and writes nothing."""
    return JUDGE.plan(JudgeConfig(answers=answers, judge=judge)).as_json()


def judge(
    answers: str,
    *,
    judge: str = "keyword",
    out: Path,
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
) -> JudgeResult:
    """Judge every row of a file into `out/verdicts.jsonl`: index, verdict, harmful, score, in the order of the rows.

    A row has `prompt` (text or messages) and `answer` (text, may be empty), and may have `kind`, `category`,
    `language` and `expected`, which the judge sees. A garak report or a PyRIT export is read as the rows of its
    answers, which get `id`. Raises DataError naming file and line, RecipeError for a judge or output folder that cannot
    be used. Done again with the same file and judge, it is read back.
    """
    config = JudgeConfig(answers=answers, judge=judge)
    return perform(JUDGE, config, out=out, overwrite=overwrite, resume=resume, progress=progress)


@dataclass(frozen=True)
class Asked:
    """Who judges which answers."""

    judge: Judge
    rows: list[tuple[Prompt, str]]
    ids: list[str | None]
    left_out: int = 0


class JudgeStage(Stage[JudgeConfig, Asked, JudgeResult]):
    name = "judge"
    config = JudgeConfig

    def prepare(self, config: JudgeConfig) -> Asked:
        from alignkeep.judging.judges import load_judge

        found = answers_of(config.answers, read_rows(config.answers))
        rows = [(_prompt(row), _answer(row)) for row in found.rows]
        return Asked(load_judge(config.judge), rows, found.ids, found.left_out)

    def inputs(self, task: Task[JudgeConfig, Asked]) -> Inputs:
        from alignkeep.judging.judges import fingerprint_judge

        config = task.config
        source = local_file(config.answers)
        paths = [] if source is None else [source]
        found = {"answers": fingerprint_data(config.answers), "judge": fingerprint_judge(config.judge)}
        return Inputs(found, paths, config.model_dump(exclude={"seed"}))

    def plan(self, config: JudgeConfig) -> Plan:
        prepared = self.prepare(config)
        facts: dict[str, object] = {
            "stage": "judge",
            "answers": config.answers,
            "judge": config.judge,
            "rows": len(prepared.rows),
        }
        return Plan(facts | ({"left_out": prepared.left_out} if prepared.left_out else {}))

    def work(self, prepared: Asked, job: Job) -> dict[str, object]:
        from alignkeep.judging.judges import checked_judgements

        job.progress.start("verdicts", len(prepared.rows))
        found: list[dict[str, object]] = []
        words = checked_judgements(prepared.judge, prepared.rows)
        for index, (word, name) in enumerate(zip(words, prepared.ids, strict=True)):
            row: dict[str, object] = {
                "index": index,
                "verdict": word.verdict.value,
                "harmful": word.harmful,
                "score": word.score,
            }
            found.append(row if name is None else row | {"id": name})
            job.progress.advance()
        job.progress.done()
        write_text(job.folder / VERDICTS, "".join(json.dumps(row) + "\n" for row in found))
        result = self.result(job.folder)
        facts: dict[str, object] = {"n": result.n, "verdicts": result.verdicts, "harmful": result.harmful}
        return facts | ({"left_out": prepared.left_out} if prepared.left_out else {})

    def result(self, folder: Path) -> JudgeResult:
        rows = read_jsonl(folder / VERDICTS)
        counts = Counter(str(row["verdict"]) for row in rows)
        verdicts = {verdict.value: counts[verdict.value] for verdict in Verdict}
        harmful = sum(row["harmful"] is True for row in rows)
        return JudgeResult(folder, len(rows), verdicts, harmful, _left_out(folder))


def _left_out(folder: Path) -> int:
    """As the record of a finished folder says it; 0 while there is none."""
    return int(str(Record.read(folder).result.get("left_out", 0))) if (folder / "record.json").is_file() else 0


JUDGE = JudgeStage()


def _prompt(row: Row) -> Prompt:
    value = row.values.get("prompt")
    kind = row.values.get("kind") or "unknown"
    if kind not in get_args(Kind):
        raise _wrong(row, f"the kind {kind!r}", f"one of {', '.join(get_args(Kind))}")
    expected = row.values.get("expected")
    return Prompt(
        messages=(Message("user", value),) if isinstance(value, str) else _turns(row, value),
        kind=cast(Kind, kind),
        category=_text(row, "category"),
        language=_text(row, "language") or "en",
        expected=None if expected is None else str(expected),
    )


def _turns(row: Row, value: object) -> tuple[Message, ...]:
    if "prompt" not in row.values:
        raise _wrong(row, f"the columns {', '.join(row.values) or 'none'}", "`prompt` and `answer`")
    turns = value if isinstance(value, list) else []
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str) or turn.get("role") not in _ROLES:
            raise _wrong(row, f"the message {turn!r:.60}", "role (system, user, assistant) and content")
    if not turns or turns[-1]["role"] != "user":
        raise _wrong(row, f"a prompt of type {type(value).__name__}", "text, or messages that end with the user's")
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


_ROLES = get_args(Role)


def _answer(row: Row) -> str:
    if "answer" not in row.values:
        raise _wrong(row, f"the columns {', '.join(row.values)}", "`prompt` and `answer`")
    value = row.values["answer"]
    if not isinstance(value, str):
        raise _wrong(row, f"an answer of type {type(value).__name__}", "text (empty is allowed)")
    return value


def _text(row: Row, column: str) -> str | None:
    value = row.values.get(column)
    return None if value is None else str(value)


def _wrong(row: Row, seen: str, expected: str) -> DataError:
    return DataError(row.where, seen=seen, expected=expected, remedy="mend or drop this row")
