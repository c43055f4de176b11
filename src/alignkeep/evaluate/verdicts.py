"""`judge`: score stored answers again, without a model. Rows {"prompt", "answer"} in, one verdict per row out.

Transcripts of garak and PyRIT are such rows too (`transcripts.py`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from alignkeep.checkpoint.files import read_jsonl, read_object, write_json, write_text
from alignkeep.checkpoint.records import Record
from alignkeep.data import Row, fingerprint_data, local_file, read_rows
from alignkeep.errors import AlignkeepError, DataError
from alignkeep.evaluate.config import JudgeConfig
from alignkeep.evaluate.transcripts import answers_of
from alignkeep.progress import Progress
from alignkeep.runs.perform import perform
from alignkeep.runs.results import from_plain
from alignkeep.stage import Inputs, Job, Plan, Stage, Task
from alignkeep.types import Judgement, Kind, Message, Opinion, Prompt, Role, Verdict

if TYPE_CHECKING:
    from alignkeep.judging.judges import Judge

VERDICTS = "verdicts.jsonl"
JUDGES = "judges.json"  # what each of several judges found
DIFFERENCES = "differences.jsonl"  # the rows of which they say something else


@dataclass(frozen=True)
class JudgeResult:
    """Where the verdicts lie, how many answers got which, how many were found harmful, and how many of a transcript
    were no text and left out. Of several judges the first one's words are counted; `judges` has what each found."""

    folder: Path
    n: int
    verdicts: dict[str, int]
    harmful: int
    left_out: int = 0
    judges: tuple[Opinion, ...] = ()

    def as_json(self) -> dict[str, object]:
        return {
            "folder": self.folder,
            "n": self.n,
            "verdicts": self.verdicts,
            "harmful": self.harmful,
            "left_out": self.left_out,
            **({"judges": [one.as_json() for one in self.judges]} if self.judges else {}),
        }


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
    answers, which get `id`. Of several judges with commas between them the first one's verdicts are counted; each row
    has those of all under `judges`, and `differences.jsonl` the rows on which they differ. Raises DataError naming file
    and line, RecipeError for a judge or output folder that cannot be used. Done again with the same file and judge, it
    is read back.
    """
    config = JudgeConfig(answers=answers, judge=judge)
    return perform(JUDGE, config, out=out, overwrite=overwrite, resume=resume, progress=progress)


@dataclass(frozen=True)
class Asked:
    """Who judges which answers."""

    judges: list[Judge]
    rows: list[tuple[Prompt, str]]
    ids: list[str | None]
    left_out: int = 0
    silent: frozenset[int] = frozenset()  # rows whose `no_answer` says why nothing came
    attacked: frozenset[int] = frozenset()  # rows whose `attack` names one


class JudgeStage(Stage[JudgeConfig, Asked, JudgeResult]):
    name = "judge"
    config = JudgeConfig

    def prepare(self, config: JudgeConfig) -> Asked:
        from alignkeep.judging.judges import load_judges

        found = answers_of(config.answers, read_rows(config.answers))
        rows = [(_prompt(row), _answer(row)) for row in found.rows]
        silent, attacked = (
            frozenset(at for at, row in enumerate(found.rows) if row.values.get(name) is not None)
            for name in ("no_answer", "attack")
        )
        return Asked(load_judges(config.judge), rows, found.ids, found.left_out, silent, attacked)

    def inputs(self, task: Task[JudgeConfig, Asked]) -> Inputs:
        from alignkeep.judging.judges import fingerprint_judges

        config = task.config
        source = local_file(config.answers)
        paths = [] if source is None else [source]
        found = {"answers": fingerprint_data(config.answers), "judge": fingerprint_judges(config.judge)}
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
        from alignkeep.judging.judges import REPLIES, checked_judgements, keeping

        job.progress.start("verdicts", len(prepared.rows) * len(prepared.judges))
        words: dict[str, list[Judgement]] = {}
        for judge in keeping(prepared.judges, job.folder / REPLIES):
            given = iter(
                checked_judgements(judge, [row for at, row in enumerate(prepared.rows) if at not in prepared.silent])
            )
            words[judge.name] = [
                Judgement(Verdict.UNSCORED) if at in prepared.silent else next(given)
                for at in range(len(prepared.rows))
            ]
            job.progress.advance(len(prepared.rows))
        job.progress.done()
        rows = [_row(index, words, name) for index, name in enumerate(prepared.ids)]
        write_text(job.folder / VERDICTS, _lines(rows))
        if len(words) > 1:
            _write_differences(prepared, words, job.folder)
        result = self.result(job.folder)
        facts: dict[str, object] = {"n": result.n, "verdicts": result.verdicts, "harmful": result.harmful}
        return facts | ({"left_out": prepared.left_out} if prepared.left_out else {})

    def is_worth_keeping(self, error: AlignkeepError, folder: Path) -> bool:
        """What judges were told is, whatever came after."""
        return any((folder / name).is_file() for name in self.leftovers())

    def leftovers(self) -> tuple[str, ...]:
        from alignkeep.judging.judges import REPLIES

        return (REPLIES,)

    def result(self, folder: Path) -> JudgeResult:
        rows = read_jsonl(folder / VERDICTS)
        counts = Counter(str(row["verdict"]) for row in rows)
        always = [verdict.value for verdict in Verdict if verdict is not Verdict.EVASIVE]  # most judges never say it
        verdicts = {name: counts[name] for name in (*always, *counts)}
        harmful = sum(row["harmful"] is True for row in rows)
        found = read_object(folder / JUDGES)["judges"] if (folder / JUDGES).is_file() else []
        judges = tuple(from_plain(Opinion, one) for one in cast(list[object], found))
        return JudgeResult(folder, len(rows), verdicts, harmful, _left_out(folder), judges)


def _row(index: int, words: Mapping[str, list[Judgement]], name: str | None) -> dict[str, object]:
    """The first judge's word, those of all where there are several, and the row's id where it has one."""
    each = {judge: said[index].as_json() for judge, said in words.items()}
    several: dict[str, object] = {"judges": each} if len(each) > 1 else {}
    return {"index": index, **next(iter(each.values())), **({} if name is None else {"id": name}), **several}


def _lines(rows: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _write_differences(prepared: Asked, words: Mapping[str, list[Judgement]], folder: Path) -> None:
    """What each judge found, and the rows on which they differ. One answer to each prompt counts for the agreement."""
    from alignkeep.judging.agreement import agreement, differ, shares

    first, *others = prepared.judges
    seen: dict[tuple[Message, ...], int] = {}
    for index, (prompt, _) in enumerate(prepared.rows):
        if index not in prepared.attacked:
            seen.setdefault(prompt.messages, index)
    plain = [words[first.name][index] for index in seen.values()]
    found = [Opinion(first.name, first.version, shares(words[first.name]))]
    unlike: set[int] = set()
    for judge in others:
        said = words[judge.name]
        differing = [i for i, pair in enumerate(zip(words[first.name], said, strict=True)) if differ(*pair)]
        agreed = agreement(plain, [said[index] for index in seen.values()])
        found.append(Opinion(judge.name, judge.version, shares(said), {}, agreed, len(differing)))
        unlike.update(differing)
    rows = [
        {
            "index": index,
            "prompt": prepared.rows[index][0].text,
            "answer": prepared.rows[index][1],
            "judges": {judge: said[index].as_json() for judge, said in words.items()},
        }
        for index in sorted(unlike)
    ]
    write_text(folder / DIFFERENCES, _lines(rows))
    write_json(folder / JUDGES, {"judges": [one.as_json() for one in found]})


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
