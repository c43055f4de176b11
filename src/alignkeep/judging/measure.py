"""Prompts put to a model in memory, over and over: what a sweep of merge weights, or the
search for the strength of an edit, asks at each step.

No attacks and no folders, only the plain prompts, judged and counted as an evaluation counts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from alignkeep.errors import DataError
from alignkeep.judging.drift import Outcome, metrics, paired_tests
from alignkeep.judging.judges import Judge, checked_judgements, load_judge
from alignkeep.judging.prompts import MOST_UNKNOWN, check_apart, harm_prompts, limit_prompts, task_prompts
from alignkeep.judging.reading import is_correct
from alignkeep.models.chat import unknown_share
from alignkeep.models.config import GenerationConfig
from alignkeep.models.generation import generate_answers
from alignkeep.models.loading import LoadedModel
from alignkeep.progress import Progress, Silent
from alignkeep.types import Judgement, Measurement, PairedTest, Prompt


class Measure(Protocol):
    """Puts its prompts to a model in memory. Measuring the same model again gives the same Measurement."""

    @property
    def prompts(self) -> tuple[Prompt, ...]: ...

    def __call__(self, loaded: LoadedModel, progress: Progress | None = None) -> Measurement:
        """`progress` is advanced by one for every answer."""
        ...

    def compare(self, model: Measurement, base: Measurement) -> dict[str, PairedTest]:
        """Paired tests, prompt by prompt, under the names of a Scorecard's."""
        ...


class PromptMeasure:
    """A Measure: greedy answers to fixed prompts, each judged by itself."""

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
        words = checked_judgements(
            self._judge, [(prompt, answer.text) for prompt, answer in zip(self.prompts, answers, strict=True)]
        )
        judged = [
            Outcome(
                kind=prompt.kind,
                category=prompt.category,
                attack=None,
                judgement=word,
                correct=is_correct(prompt, answer.text),
                language=prompt.language,
            )
            for prompt, answer, word in zip(self.prompts, answers, words, strict=True)
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
    columns: Mapping[str, str] | None = None,
    judge: str = "keyword",
    generation: GenerationConfig | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> PromptMeasure:
    """A measure of files: `prompts` whose rows are harmful unless their column `kind` says otherwise, and `task`, whose
    rows have one right answer each and whose columns may have other names (`columns`). `limit` keeps so many prompts of
    each kind, drawn with `seed`.

    Reads data alone, no model. Raises DataError with file and row for what is missing, misplaced or asked in both
    files, RecipeError for a judge that is none.
    """
    judged_by = load_judge(judge)
    asked = harm_prompts(prompts)
    if task is not None:
        asked += task_prompts(task, remedy="add it, or give another file as the task", columns=columns)
        check_apart(asked, prompts, task)
    return PromptMeasure(limit_prompts(asked, limit, seed), judge=judged_by, generation=generation)


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
