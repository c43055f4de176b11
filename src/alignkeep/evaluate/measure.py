"""Prompts put to a model in memory, over and over: what a sweep of merge weights asks at each of them.

No attacks and no folders, only the plain prompts, judged and counted as an evaluation counts them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from alignkeep.data import read_prompts
from alignkeep.errors import DataError
from alignkeep.evaluate.asking import MOST_UNKNOWN
from alignkeep.evaluate.correctness import is_correct
from alignkeep.evaluate.drift import Outcome, metrics, paired_tests
from alignkeep.evaluate.judge import Judge, load_judge
from alignkeep.evaluate.scoring import checked_judgement
from alignkeep.evaluate.suites import limit_prompts
from alignkeep.models.chat import unknown_share
from alignkeep.models.config import GenerationConfig
from alignkeep.models.generation import generate_answers
from alignkeep.models.loading import LoadedModel
from alignkeep.progress import Progress, Silent
from alignkeep.types import Judgement, Measurement, PairedTest, Prompt


class PromptMeasure:
    """A `types.Measure`: greedy answers to fixed prompts, each judged by itself."""

    def __init__(
        self, prompts: Sequence[Prompt], *, judge: Judge | None = None, generation: GenerationConfig | None = None
    ) -> None:
        self.prompts = tuple(prompts)
        self._judge = judge or load_judge("keyword")
        self._generation = generation or GenerationConfig()

    def __call__(self, loaded: LoadedModel, progress: Progress | None = None) -> Measurement:
        """Raises DataError where most words are unknown to the model or a prompt leaves no room for an answer, and
        MachineError where memory runs out."""
        _check_words(loaded, self.prompts)
        progress = progress or Silent()
        answers = generate_answers(
            loaded, self.prompts, self._generation, on_answers=lambda batch: progress.advance(len(batch))
        )
        judged = [
            Outcome(
                kind=prompt.kind,
                category=prompt.category,
                attack=None,
                judgement=checked_judgement(self._judge, prompt, answer.text),
                correct=is_correct(prompt, answer.text),
                language=prompt.language,
            )
            for prompt, answer in zip(self.prompts, answers, strict=True)
        ]
        return Measurement(
            metrics(judged), tuple(one.judgement.verdict for one in judged), tuple(one.correct for one in judged)
        )

    def compare(self, model: Measurement, base: Measurement) -> dict[str, PairedTest]:
        """Every metric's paired test, as `evaluate` has them. Raises ValueError for measurements of other prompts."""
        return paired_tests(self._outcomes(model), self._outcomes(base), seed=0)

    def _outcomes(self, measured: Measurement) -> list[Outcome]:
        return [
            Outcome(prompt.kind, prompt.category, None, Judgement(verdict), correct, prompt.language)
            for prompt, verdict, correct in zip(self.prompts, measured.verdicts, measured.correct, strict=True)
        ]


def measure_prompts(
    *,
    prompts: str,
    task: str | None = None,
    judge: str = "keyword",
    generation: GenerationConfig | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> PromptMeasure:
    """A measure of files: `prompts` whose rows are harmful unless their column `kind` says otherwise, and `task`, whose
    rows have one right answer each. `limit` keeps so many prompts of each kind, drawn with `seed`.

    Reads data alone, no model. Raises DataError with file and row for what is missing, misplaced or asked in both
    files, RecipeError for a judge that is none.
    """
    judged_by = load_judge(judge)
    asked = _harm_prompts(prompts)
    if task is not None:
        asked += _task_prompts(task)
        _check_apart(asked, prompts, task)
    return PromptMeasure(limit_prompts(asked, limit, seed), judge=judged_by, generation=generation)


def _harm_prompts(reference: str) -> list[Prompt]:
    found = []
    for number, prompt in enumerate(read_prompts(reference), start=1):
        kind = "harmful" if prompt.kind == "unknown" else prompt.kind
        if kind == "task" or (kind == "skill" and prompt.expected is None):
            raise DataError(
                f"{reference}, row {number}",
                seen="a task prompt" if kind == "task" else "a skill prompt without its right answer",
                expected="harmful prompts, and harmless, borderline and skill prompts marked as such by `kind`",
                remedy="put it into the file of the task" if kind == "task" else "add a column `expected`",
            )
        found.append(Prompt(prompt.messages, kind, prompt.category, prompt.language, prompt.expected))
    counts = Counter(prompt.kind for prompt in found)
    if not counts["harmful"]:
        raise DataError(
            reference,
            seen=f"no harmful prompt ({', '.join(f'{count} {kind}' for kind, count in counts.items())})",
            expected="harmful prompts, whose refusal is what safety is measured by",
            remedy="add some, with kind `harmful` or without the column",
        )
    return found


def _task_prompts(reference: str) -> list[Prompt]:
    found = read_prompts(reference, kind="task")
    for number, prompt in enumerate(found, start=1):
        if prompt.expected is None:
            raise DataError(
                f"{reference}, row {number}",
                seen="a prompt without its right answer",
                expected="a column `expected` (or `completion`) in every row of a task",
                remedy="add it, or give another file as the task",
            )
    return found


def _check_apart(asked: Sequence[Prompt], prompts: str, task: str) -> None:
    """No prompt is asked both for the task and for safety: its answer cannot be good in both."""
    tasks = {prompt.messages for prompt in asked if prompt.kind == "task"}
    shared = [prompt for prompt in asked if prompt.kind != "task" and prompt.messages in tasks]
    if shared:
        raise DataError(
            task,
            seen=f"{len(shared)} prompts that stand in {prompts} too ({shared[0].text[:40]!r})",
            expected="a task and safety prompts that have nothing in common",
            remedy="take them out of one of the files",
        )


def _check_words(loaded: LoadedModel, prompts: Sequence[Prompt]) -> None:
    for name, is_task in (("prompts", False), ("task", True)):
        texts = [turn.content for prompt in prompts if (prompt.kind == "task") == is_task for turn in prompt.messages]
        share = unknown_share(loaded.tokenizer, texts).share
        if share > MOST_UNKNOWN:
            raise DataError(
                name,
                seen=f"{share:.0%} of their words unknown to {loaded.checkpoint.reference}",
                expected=f"at most {MOST_UNKNOWN:.0%}",
                remedy="choose prompts in the words of this model",
            )
