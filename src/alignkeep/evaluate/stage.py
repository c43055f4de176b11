"""`evaluate`: questions in, scorecard out. `judge`: stored answers in, verdicts out, no model.

Order of an evaluation: everything that can be checked without a model (`questions`), the words the models know, their
answers (stored one batch at a time), and then pure arithmetic on text (`scoring`).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from alignkeep.checkpoint.folders import OutputFolder, write_json, write_text
from alignkeep.checkpoint.records import Record, identity_of
from alignkeep.checkpoint.scorecards import read_scorecard
from alignkeep.evaluate.answers import ANSWERS, AnswerLog, Judged
from alignkeep.evaluate.asking import Vocabulary, answer_all, read_vocabulary
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.evaluate.judge import load_judge
from alignkeep.evaluate.questions import Preparation, plan_evaluation, prepare
from alignkeep.evaluate.reuse import check_reusable, read_reused
from alignkeep.evaluate.scoring import judge_answers, score
from alignkeep.evaluate.verdicts import JudgeResult, judge, plan_judge
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.models.loading import check_loadable
from alignkeep.progress import Progress, Silent
from alignkeep.types import Scorecard

__all__ = ["JudgeResult", "evaluate", "judge", "plan", "plan_judge"]

_LOG = "answers.partial.jsonl"
_SCORECARD = "scorecard.json"


def plan(config: EvaluateConfig) -> dict[str, object]:
    """What `evaluate(config)` would do, with estimates; raises its user errors, loads no model, writes nothing."""
    return plan_evaluation(config)


def evaluate(
    config: EvaluateConfig,
    *,
    out: Path,
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
) -> Scorecard:
    """Measure a model (and its base on the same questions) into `out`: scorecard.json, answers.jsonl, record.json.

    A finished evaluation of the same model, questions and settings is read back. Interrupted, it keeps the answers it
    has. Raises RecipeError, DataError, CheckpointError or ShapeError before any answer is generated, MachineError where
    memory, disk or hub fail.
    """
    started = time.monotonic()
    progress = progress or Silent()
    prepared = prepare(config)
    inputs = _inputs(config, prepared)
    if config.base_answers is not None:
        check_reusable(config, prepared, Path(config.base_answers), inputs["base"])
    # The base's stored answers change what is done, not what comes out.
    settings = config.model_dump(mode="json", exclude={"base_answers"})
    folder = OutputFolder.open(
        Path(out),
        stage="evaluate",
        identity=identity_of("evaluate", settings, inputs),
        overwrite=overwrite,
        resume=resume,
        inputs=prepared.local_inputs,
    )
    if folder.finished:
        return read_scorecard(folder.out / _SCORECARD)[0]
    with closing(folder):
        if config.base is not None and config.base_answers is None:
            check_loadable(config.base, config.load.model_copy(update={"revision": None}))
        vocabulary = read_vocabulary(config, prepared)
        sides = _ask(config, prepared, vocabulary, inputs, folder.work, progress)
        card = _write_results(config, prepared, vocabulary, sides, folder.work)
        folder.finish(
            Record(
                stage="evaluate",
                identity=folder.identity,
                config=config.model_dump(mode="json"),
                inputs=inputs,
                seed=config.seed,
                seconds=time.monotonic() - started,
                result=card.as_json(),
            )
        )
    return card


def _inputs(config: EvaluateConfig, prepared: Preparation) -> dict[str, str]:
    found = {
        "model": fingerprint_model(config.model, config.load.revision),
        "suite": prepared.suite.fingerprint,
        "questions": prepared.fingerprint,
    }
    if config.base is not None:
        found["base"] = fingerprint_model(config.base)
    if prepared.task_fingerprint is not None:
        found["task"] = prepared.task_fingerprint
    return found


def _ask(
    config: EvaluateConfig,
    prepared: Preparation,
    vocabulary: Vocabulary,
    inputs: dict[str, str],
    work: Path,
    progress: Progress,
) -> tuple[list[Judged], list[Judged]]:
    """The judged answers of the model and of the base (none without one)."""
    questions = [question for question in prepared.questions if question.attack not in vocabulary.unreadable]
    log = AnswerLog(work / _LOG)
    if config.base_answers is not None:
        side = check_reusable(config, prepared, Path(config.base_answers), inputs["base"])
        missing = log.missing("base", questions)
        if missing:
            log.add("base", read_reused(Path(config.base_answers), side, missing))
    answer_all(config, prepared, vocabulary, questions, log, progress)
    judged_by = load_judge(config.judge)
    tuned = judge_answers("tuned", questions, log, judged_by)
    return tuned, [] if config.base is None else judge_answers("base", questions, log, judged_by)


def _write_results(
    config: EvaluateConfig,
    prepared: Preparation,
    vocabulary: Vocabulary,
    sides: tuple[list[Judged], list[Judged]],
    work: Path,
) -> Scorecard:
    tuned, base = sides
    card = score(
        (config.model, config.base, prepared.suite.name),
        tuned,
        base,
        unknown=vocabulary.unknown,
        unreadable=vocabulary.unreadable,
        seed=config.seed,
    )
    if config.limit is not None:
        card.notes["limit"] = f"at most {config.limit} prompts of each kind were asked, drawn with seed {config.seed}"
    if base and all(one.said.text == other.said.text for one, other in zip(tuned, base, strict=True)):
        card.notes["base"] = "every answer of the model is the base's, word for word"
    lines = [json.dumps(judged.as_json(), ensure_ascii=False) + "\n" for judged in (*tuned, *base)]
    write_text(work / ANSWERS, "".join(lines))
    write_json(work / _SCORECARD, {**card.as_json(), "settings": _settings(config, prepared, tuned, base)})
    (work / _LOG).unlink(missing_ok=True)
    return card


def _settings(
    config: EvaluateConfig, prepared: Preparation, tuned: Sequence[Judged], base: Sequence[Judged]
) -> dict[str, object]:
    """How the numbers came about, for whoever reads the scorecard alone."""
    return {
        "task": config.task,
        "judge": config.judge,
        "attacks": [attack.name for attack in prepared.attacks],
        "limit": config.limit,
        "seed": config.seed,
        "load": config.load.model_dump(mode="json"),
        "generation": config.generation.model_dump(mode="json"),
        "prompts": dict(Counter(prompt.kind for prompt in prepared.prompts)),
        "truncated": {
            side: sum(judged.said.truncated for judged in answers)
            for side, answers in (("tuned", tuned), ("base", base))
            if answers
        },
        "fingerprints": {"suite": prepared.suite.fingerprint, "questions": prepared.fingerprint},
    }
