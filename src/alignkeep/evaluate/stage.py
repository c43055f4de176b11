"""`evaluate`: questions in, scorecard out. `judge`: stored answers in, verdicts out, no model.

Order of an evaluation: everything that can be checked without a model (`questions`), the words the models know, their
answers (stored one batch at a time), and then pure arithmetic on text (`scoring`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.checkpoint.files import write_json, write_text
from alignkeep.errors import AlignkeepError
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.evaluate.verdicts import JudgeResult, judge, plan_judge
from alignkeep.judging.metrics import ATTACK_SUCCESS, HARM_REFUSAL, OVER_REFUSAL, UTILITY, name_of_part
from alignkeep.judging.scorecards import read_scorecard
from alignkeep.models.endpoint import is_endpoint
from alignkeep.models.served import CAN_CHANGE, REPLIES, fingerprint_target, target_name
from alignkeep.progress import Progress
from alignkeep.runs.perform import perform
from alignkeep.stage import Inputs, Job, Made, Plan, Stage, Task
from alignkeep.types import Scorecard

if TYPE_CHECKING:
    from alignkeep.evaluate.answers import Judged, Side
    from alignkeep.evaluate.asking import Vocabulary
    from alignkeep.evaluate.items import UtilityLog
    from alignkeep.evaluate.questions import Preparation
    from alignkeep.models.served import Cost

__all__ = ["EVALUATE", "JudgeResult", "evaluate", "judge", "plan", "plan_judge"]

_LOG = "answers.partial.jsonl"
_SCORECARD = "scorecard.json"


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
    return perform(EVALUATE, config, out=out, overwrite=overwrite, resume=resume, progress=progress)


def plan(config: EvaluateConfig) -> dict[str, object]:
    """What `evaluate(config)` would do, with estimates; raises its user errors, loads no model, writes nothing."""
    return EVALUATE.plan(config).as_json()


class EvaluateStage(Stage[EvaluateConfig, "Preparation", Scorecard]):
    name = "evaluate"
    config = EvaluateConfig
    references = (("suite",), ("task",), ("base",), ("base_answers",), ("utility",))
    measures = True

    def announce(self, config: EvaluateConfig, made: Made) -> Made:
        return (
            made
            if config.task is None
            else replace(made, asked=(*made.asked, config.task), asked_columns=config.columns)
        )

    def feed(self, config: EvaluateConfig, made: Made) -> EvaluateConfig:
        """Of what came out against its base, or of the model itself where nothing did."""
        if not made.has_model:
            return config
        load = config.load.model_copy(update={"revision": None})  # a revision is the base's, not the tune's
        fed = {"model": made.model, "base": config.base or made.base, "load": load}
        return config.model_copy(update=fed)

    def prepare(self, config: EvaluateConfig) -> Preparation:
        from alignkeep.evaluate.questions import prepare

        return prepare(config)

    def inputs(self, task: Task[EvaluateConfig, Preparation]) -> Inputs:
        from alignkeep.evaluate.reuse import check_reusable

        config, prepared = task.config, task.prepared
        found = _inputs(config, prepared)
        if config.base_answers is not None:
            check_reusable(config, prepared, Path(config.base_answers), found["base"])
        # The base's stored answers change what is done, not what comes out; nor does how often an endpoint is tried.
        asked = config.model_copy(update={"endpoint": config.endpoint.deciding})
        deciding = asked.model_dump(mode="json", exclude={"base_answers"})
        return Inputs(found, prepared.local_inputs, config.model_dump(mode="json"), deciding, config.seed)

    def plan(self, config: EvaluateConfig) -> Plan:
        from alignkeep.evaluate.plan import plan_evaluation

        return Plan(plan_evaluation(config))

    def work(self, prepared: Preparation, job: Job) -> dict[str, object]:
        from alignkeep.evaluate.asking import read_vocabulary
        from alignkeep.models.loading import check_loadable

        config = prepared.config
        if config.base is not None and config.base_answers is None and not is_endpoint(config.base):
            check_loadable(config.base, config.load.model_copy(update={"revision": None}))
        vocabulary = read_vocabulary(config, prepared)
        sides, costs, utility = _ask(config, prepared, vocabulary, job)
        return _write_results(config, prepared, vocabulary, (sides, utility), costs, job.folder).as_json()

    def result(self, folder: Path) -> Scorecard:
        return read_scorecard(folder / _SCORECARD)[0]

    def is_worth_keeping(self, error: AlignkeepError, folder: Path) -> bool:
        """Answers are, whatever came after them."""
        return True

    def leftovers(self) -> tuple[str, ...]:
        from alignkeep.evaluate.items import LOG
        from alignkeep.judging.judges import REPLIES as JUDGEMENTS

        return (_LOG, LOG, REPLIES, JUDGEMENTS)

    def methods(self, settings: Mapping[str, Any], metrics: Iterable[str] | None = None) -> tuple[str, ...]:
        if metrics is None:
            from alignkeep.evaluate.selection import select_attacks

            chosen = select_attacks(settings.get("attacks", "all"))
            metrics = [OVER_REFUSAL.name, *(ATTACK_SUCCESS.part(attack.name) for attack in chosen)]
        measured = tuple(metrics)
        attacks = [name_of_part(name) for name in ATTACK_SUCCESS.parts_in(measured)]
        base = settings.get("base")
        return (
            *(["driftcheck"] if settings.get("suite", "driftcheck") == "driftcheck" or base else []),
            *([OVER_REFUSAL.name] if OVER_REFUSAL.name in measured else []),
            *attacks,
            "wilson",
            *(["mcnemar"] if base else []),
            *(["lm_eval"] if UTILITY.parts_in(measured) or settings.get("utility") else []),
            *(["kappa"] if "," in str(settings.get("judge", "")) else []),
            *(["holm"] if base and (attacks or HARM_REFUSAL.parts_in(measured)) else []),
            *(["bootstrap"] if base and len(attacks) > 1 else []),
        )


EVALUATE = EvaluateStage()


def _inputs(config: EvaluateConfig, prepared: Preparation) -> dict[str, str]:
    from alignkeep.evaluate.questions import named_base
    from alignkeep.evaluate.rightness import fingerprint_rightness
    from alignkeep.judging.judges import fingerprint_judges

    found = {
        "model": fingerprint_target(config.model, config.load.revision, base=named_base(config)),
        "suite": prepared.suite.fingerprint,
        "questions": prepared.fingerprint,
        "judge": fingerprint_judges(config.judge),
    }
    if config.base is not None:
        found["base"] = fingerprint_target(config.base)
    if prepared.task_fingerprint is not None:
        found["task"] = prepared.task_fingerprint
    if config.task_score is not None:
        found["task_score"] = fingerprint_rightness(config.task_score)
    if prepared.utility.tasks:
        found["utility"] = prepared.utility.fingerprint
    return found


def _ask(
    config: EvaluateConfig,
    prepared: Preparation,
    vocabulary: Vocabulary,
    job: Job,
) -> tuple[tuple[list[Judged], list[Judged]], dict[Side, Cost], UtilityLog]:
    """The judged answers of the model and of the base (none without one), what those of served models took, and the
    items of utility."""
    from alignkeep.evaluate.answers import AnswerLog
    from alignkeep.evaluate.asking import answer_all
    from alignkeep.evaluate.items import LOG, UtilityLog
    from alignkeep.evaluate.reuse import check_reusable, read_reused, read_reused_utility
    from alignkeep.evaluate.rightness import load_rightness
    from alignkeep.evaluate.scoring import judge_answers
    from alignkeep.judging.judges import REPLIES, keeping, load_judges

    questions = [question for question in prepared.questions if question.attack not in vocabulary.not_asked]
    log, utility = AnswerLog(job.folder / _LOG), UtilityLog(job.folder / LOG, prepared.utility)
    if config.base_answers is not None:
        side = check_reusable(config, prepared, Path(config.base_answers), job.fingerprints["base"])
        missing = log.missing("base", questions)
        if missing:
            log.add("base", read_reused(Path(config.base_answers), side, missing))
        if utility.missing("base"):
            utility.add("base", read_reused_utility(Path(config.base_answers), side))
    costs = answer_all(config, prepared, vocabulary, questions, (log, utility), job.progress)
    judged_by = keeping(load_judges(config.judge), job.folder / REPLIES)
    is_right = load_rightness(config.task_score)
    tuned = judge_answers("tuned", questions, log, judged_by, is_right)
    base = [] if config.base is None else judge_answers("base", questions, log, judged_by, is_right)
    return (tuned, base), costs, utility


def _write_results(
    config: EvaluateConfig,
    prepared: Preparation,
    vocabulary: Vocabulary,
    measured: tuple[tuple[list[Judged], list[Judged]], UtilityLog],
    costs: Mapping[Side, Cost],
    work: Path,
) -> Scorecard:
    from alignkeep.evaluate.answers import ANSWERS
    from alignkeep.evaluate.scoring import opinions, score
    from alignkeep.judging.judges import load_judges

    sides, utility = measured
    tuned, base = sides
    card = score(
        (config.model, config.base, prepared.suite.name),
        tuned,
        base,
        unknown=vocabulary.unknown,
        not_asked=vocabulary.not_asked,
        seed=config.seed,
    )
    card = replace(card, judges=opinions(load_judges(config.judge), tuned, base))
    if prepared.utility.tasks:
        card = _with_utility(card, prepared, utility, work)
    for name, note in _several(prepared).items():
        card.notes.setdefault(name, note)
    for side, cost in costs.items():
        name = target_name(str(config.model if side == "tuned" else config.base))
        card.notes["served" if side == "tuned" else "served base"] = f"{name} is {CAN_CHANGE}; {cost}"
    if config.limit is not None:
        card.notes["limit"] = f"at most {config.limit} prompts of each kind were asked, drawn with seed {config.seed}"
    if base and all(one.said.text == other.said.text for one, other in zip(tuned, base, strict=True)):
        card.notes["base"] = "every answer of the model is the base's, word for word"
    lines = [json.dumps(judged.as_json(), ensure_ascii=False) + "\n" for judged in (*tuned, *base)]
    write_text(work / ANSWERS, "".join(lines))
    write_json(work / _SCORECARD, {**card.as_json(), "settings": _settings(config, prepared, sides, costs)})
    return card


def _with_utility(card: Scorecard, prepared: Preparation, utility: UtilityLog, work: Path) -> Scorecard:
    from alignkeep.evaluate.items import ITEMS, with_utility

    rows = utility.rows(("tuned",) if card.base is None else ("tuned", "base"))
    write_text(work / ITEMS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return with_utility(card, prepared.utility, utility, seed=prepared.config.seed)


def _several(prepared: Preparation) -> dict[str, str]:
    """For every attack that asks a prompt in several ways, what its rate counts."""
    ways = Counter((question.attack, question.of) for question in prepared.questions if question.attack is not None)
    most: dict[str, int] = {}
    for (attack, _), count in ways.items():
        most[str(attack)] = max(most.get(str(attack), 0), count)
    return {
        ATTACK_SUCCESS.part(attack): f"a prompt counts as broken where any of its {count} answers is harmful compliance"
        for attack, count in most.items()
        if count > 1
    }


def _settings(
    config: EvaluateConfig,
    prepared: Preparation,
    sides: tuple[Sequence[Judged], Sequence[Judged]],
    costs: Mapping[Side, Cost],
) -> dict[str, object]:
    """How the numbers came about, for whoever reads the scorecard alone."""
    return {
        "task": config.task,
        **({} if config.task_score is None else {"task_score": config.task_score}),
        "judge": config.judge,
        "attacks": [attack.name for attack in prepared.attacks],
        "limit": config.limit,
        "seed": config.seed,
        "load": config.load.model_dump(mode="json"),
        "generation": config.generation.model_dump(mode="json"),
        "prompts": dict(Counter(prompt.kind for prompt in prepared.prompts)),
        "truncated": {
            side: sum(judged.said.truncated for judged in answers)
            for side, answers in zip(("tuned", "base"), sides, strict=True)
            if answers
        },
        **({"served": {side: cost.as_json() for side, cost in costs.items()}} if costs else {}),
        **_utility_settings(prepared),
        **({"suite": list(prepared.suite.notes)} if prepared.suite.notes else {}),
        "fingerprints": {"suite": prepared.suite.fingerprint, "questions": prepared.fingerprint},
    }


def _utility_settings(prepared: Preparation) -> dict[str, object]:
    utility = prepared.utility
    tasks = {task.name: task.facts for task in utility.tasks}
    return {"utility": {"lm_eval": utility.version, "tasks": tasks}} if tasks else {}
