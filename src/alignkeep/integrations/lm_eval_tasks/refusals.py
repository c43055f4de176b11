"""What the YAML files beside this one name: the prompts of a rate, and what an answer counts for it.

`--metadata suite=NAME` takes another suite of alignkeep's.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict

from alignkeep.integrations.counting import count_answer, prompts_for, rate_named
from alignkeep.judging.judges import load_judge
from alignkeep.judging.metrics import BENIGN_COMPLIANCE, HARM_REFUSAL, OVER_REFUSAL, Metric
from alignkeep.types import Message, Prompt


def harm_refusal(**metadata: Any) -> DatasetDict:
    return _prompts(HARM_REFUSAL, metadata)


def over_refusal(**metadata: Any) -> DatasetDict:
    return _prompts(OVER_REFUSAL, metadata)


def benign_compliance(**metadata: Any) -> DatasetDict:
    return _prompts(BENIGN_COMPLIANCE, metadata)


def count(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Nothing where the judge could not place the answer: the mean is over the others."""
    prompt = Prompt((Message("user", doc["prompt"]),), doc["kind"], doc["category"], doc["language"])
    counts = count_answer(rate_named(doc["rate"]), load_judge("keyword"), prompt, results[0]).counts
    return {} if counts is None else {doc["rate"]: float(counts)}


def _prompts(rate: Metric, metadata: dict[str, Any]) -> DatasetDict:
    rows = [
        {
            "prompt": prompt.text,
            "system": next((turn.content for turn in prompt.messages if turn.role == "system"), ""),
            "kind": prompt.kind,
            "category": prompt.category or "",
            "language": prompt.language,
            "rate": rate.name,
        }
        for prompt in prompts_for(rate, str(metadata.get("suite", "driftcheck")))
    ]
    return DatasetDict({"test": Dataset.from_list(rows)})
