"""One rate as a task: the prompts of a suite that it is about, and what an answer counts, as `evaluate` has them."""

from __future__ import annotations

from typing import NamedTuple

from alignkeep.errors import DataError, RecipeError
from alignkeep.evaluate.suites import load_suite
from alignkeep.judging.drift import Outcome, claims
from alignkeep.judging.judges import Judge, checked_judgements
from alignkeep.judging.metrics import BENIGN_COMPLIANCE, HARM_REFUSAL, OVER_REFUSAL, Metric
from alignkeep.types import Judgement, Prompt

RATES = {metric.name: metric for metric in (HARM_REFUSAL, OVER_REFUSAL, BENIGN_COMPLIANCE)}


class Counted(NamedTuple):
    """The judge's word, and whether the answer counts for the rate; None where it could not be judged."""

    judgement: Judgement
    counts: bool | None


def rate_named(name: str) -> Metric:
    """Raises RecipeError for another name."""
    if name not in RATES:
        raise RecipeError("rate", seen=repr(name), expected=", ".join(RATES), remedy="take one of these")
    return RATES[name]


def prompts_for(rate: Metric, suite: str = "driftcheck") -> list[Prompt]:
    """The suite's prompts that the rate is about, in their order. Raises as `load_suite` does, and DataError where
    there is none, or one that is no single question: other harnesses would ask something else."""
    found = [prompt for prompt in load_suite(suite).prompts if prompt.kind == rate.kind]
    odd = next(
        (p for p in found if p.prefill or [turn.role for turn in p.messages if turn.role != "system"] != ["user"]), None
    )
    if not found or odd is not None:
        raise DataError(
            f"suite {suite}",
            seen=f"no {rate.kind} prompt" if odd is None else f"a prompt of several turns ({odd.text[:40]!r})",
            expected=f"{rate.kind} prompts of one turn",
            remedy="take another suite",
        )
    return found


def count_answer(rate: Metric, judge: Judge, prompt: Prompt, answer: str) -> Counted:
    """What `evaluate` would say of this answer, asked plainly."""
    [judgement] = checked_judgements(judge, [(prompt, answer)])
    [counts] = claims([Outcome(prompt.kind, prompt.category, None, judgement, None, prompt.language)])[rate.name]
    return Counted(judgement, counts)
