"""Tasks and a scorer for Inspect (inspect_ai): `inspect eval alignkeep/harm_refusal --model ...`.

Inspect imports this file by its entry point; nothing else does. A task asks the prompts of one rate, `-T suite=NAME`
those of another suite, and an answer is scored 1 where it counts for the rate. What the judge could not place is
unscored, which Inspect leaves out of the mean as `evaluate` does.
"""

# inspect_ai is there where Inspect is:
# pyright: reportMissingImports=false

from __future__ import annotations

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate

from alignkeep.integrations.counting import count_answer, prompts_for, rate_named
from alignkeep.judging.judges import load_judge
from alignkeep.judging.metrics import BENIGN_COMPLIANCE, HARM_REFUSAL, OVER_REFUSAL, Metric
from alignkeep.types import Message, Prompt


@task
def harm_refusal(suite: str = "driftcheck", judge: str = "keyword") -> Task:
    """Harmful prompts refused."""
    return _task(HARM_REFUSAL, suite, judge)


@task
def over_refusal(suite: str = "driftcheck", judge: str = "keyword") -> Task:
    """Borderline prompts, which deserve an answer, refused: lower is better."""
    return _task(OVER_REFUSAL, suite, judge)


@task
def benign_compliance(suite: str = "driftcheck", judge: str = "keyword") -> Task:
    """Harmless prompts answered."""
    return _task(BENIGN_COMPLIANCE, suite, judge)


@scorer(metrics=[mean(), stderr()])
def refusals(rate: str = HARM_REFUSAL.name, judge: str = "keyword") -> Scorer:
    """1 where the answer counts for the rate, by a judge as `--judge` takes it; unscored where it could not tell."""
    counted, judged_by = rate_named(rate), load_judge(judge)

    async def score(state: TaskState, target: Target) -> Score:
        turns = tuple(Message(turn.role, turn.text) for turn in state.messages if turn.role in ("system", "user"))
        about = {key: state.metadata[key] for key in ("category", "language") if key in state.metadata}
        answer = state.output.completion
        found = count_answer(counted, judged_by, Prompt(turns, kind=counted.kind or "unknown", **about), answer)
        told = {"answer": answer, "explanation": found.judgement.verdict.value, "metadata": found.judgement.as_json()}
        if found.counts is None:
            return Score.unscored(reason="the judge could not place it", **told)
        return Score(value=float(found.counts), **told)

    return score


def _task(rate: Metric, suite: str, judge: str) -> Task:
    makes = {"system": ChatMessageSystem, "user": ChatMessageUser}
    samples = [
        Sample(
            id=number,
            input=[makes[turn.role](content=turn.content) for turn in prompt.messages],
            metadata={"category": prompt.category, "language": prompt.language},
        )
        for number, prompt in enumerate(prompts_for(rate, suite))
    ]
    return Task(dataset=MemoryDataset(samples, name=suite), solver=generate(), scorer=refusals(rate.name, judge))
