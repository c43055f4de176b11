"""The metrics of an evaluation, one table: what each is called, what it counts among what, and which way is better.

Terminal, page, model cards, verdicts, sweeps and gates read their words here; `drift.py` computes the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from alignkeep.types import Kind


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. A rate is a share of `among`, in [0, 1]; a difference is between two such shares.

    `kind` is the one kind of prompt whose answers are counted (None: there is not one). `absent` says why there is no
    number where nothing was asked, `caution` what is said of a model whose rate is high. `is_safety` says that better
    is safer.
    """

    name: str
    title: str
    better: Literal["higher", "lower"]
    meaning: str
    among: str
    kind: Kind | None = None
    unit: Literal["share", "difference of shares"] = "share"
    is_safety: bool = False
    absent: str = ""
    caution: str = ""

    @property
    def label(self) -> str:
        """The title within a line."""
        return self.title.lower()

    @property
    def hint(self) -> str:
        """Which way is better, in words."""
        return f"{self.better} is {'safer' if self.is_safety else 'better'}"

    def part(self, name: str) -> str:
        """The metric of one category, or of one attack."""
        return f"{self.name}.{name}"

    def parts_in(self, names: Iterable[str]) -> list[str]:
        """Those of the names that are parts of this metric, each once, in their order."""
        return [name for name in dict.fromkeys(names) if name.startswith(f"{self.name}.")]


def name_of_part(metric: str) -> str:
    """The category or attack of `harm_refusal.theft`; nothing for a whole metric."""
    return metric.partition(".")[2]


HARM_REFUSAL = Metric(
    "harm_refusal",
    "Harm refusal",
    "higher",
    "harmful prompts that were refused, asked plainly",
    "judged answers to harmful prompts, no attack",
    kind="harmful",
    is_safety=True,
    absent="the suite has no harmful prompts",
)
OVER_REFUSAL = Metric(
    "over_refusal",
    "Over-refusal",
    "lower",
    "borderline prompts, which deserve an answer, refused",
    "judged answers to borderline prompts",
    kind="borderline",
    absent="the suite has no borderline prompts",
)
BENIGN_COMPLIANCE = Metric(
    "benign_compliance",
    "Benign compliance",
    "higher",
    "harmless prompts that were answered",
    "judged answers to harmless prompts",
    kind="harmless",
    absent="the suite has no harmless prompts",
)
SKILL_ACCURACY = Metric(
    "skill_accuracy",
    "Skills",
    "higher",
    "right answers to prompts on what the base could do before",
    "answers to skill prompts",
    kind="skill",
    absent="the suite has no skill prompts",
)
TASK_ACCURACY = Metric(
    "task_accuracy",
    "Task",
    "higher",
    "right answers on the task that was tuned for",
    "answers to task prompts",
    kind="task",
    absent="no task was given",
)
DEGENERATE = Metric(
    "degenerate",
    "Degenerate",
    "lower",
    "answers that are gibberish, an echo or a loop",
    "all answers",
    caution="of its answers are gibberish, an echo or a loop",
)
UNSCORED = Metric(
    "unscored",
    "Unscored",
    "lower",
    "answers the judge could not place; left out of the other rates",
    "all answers",
    caution="of its answers are beyond what the judge can tell",
)
UNKNOWN_WORDS = Metric(
    "unknown_words",
    "Unknown words",
    "lower",
    "words that the tokenizer does not know",
    "all words that were asked",
    absent="an endpoint does not show its tokenizer",
    caution="of the words it was asked are unknown to its tokenizer",
)
ATTACK_SUCCESS = Metric(
    "attack_success",
    "Attack success",
    "lower",
    "harmful prompts answered harmfully under an attack",
    "judged answers to harmful prompts under that attack",
    kind="harmful",
    is_safety=True,
)
DRIFT = Metric(
    "drift",
    "Drift",
    "lower",
    "harm refusal of the base minus that of the model",
    "harmful prompts judged for both models",
    unit="difference of shares",
    is_safety=True,
    absent="no harmful prompt was judged for both models",
)
UTILITY = Metric(
    "utility",
    "Utility",
    "higher",
    "mean score on a task of lm-evaluation-harness",
    "items of that task",
)

# What a model has a number for without a base and without attacks, in the order in which it is shown.
RATES = {
    metric.name: metric
    for metric in (
        HARM_REFUSAL,
        OVER_REFUSAL,
        BENIGN_COMPLIANCE,
        SKILL_ACCURACY,
        TASK_ACCURACY,
        DEGENERATE,
        UNSCORED,
    )
}
METRICS = {**RATES, **{metric.name: metric for metric in (UNKNOWN_WORDS, ATTACK_SUCCESS, UTILITY, DRIFT)}}
