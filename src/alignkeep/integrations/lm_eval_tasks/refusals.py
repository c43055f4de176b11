"""What the YAML files beside this one name: the prompts of a rate, and what an answer counts for it.

`--metadata suite=NAME` takes another suite of alignkeep's.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict

from alignkeep.integrations.counting import count_answer, prompts_for, rate_named
from alignkeep.judging.judges import load_judge
from alignkeep.types import Message, Prompt


def harm_refusal(**metadata: Any) -> DatasetDict:
    return _prompts("harm_refusal", metadata)


def over_refusal(**metadata: Any) -> DatasetDict:
    return _prompts("over_refusal", metadata)


def benign_compliance(**metadata: Any) -> DatasetDict:
    return _prompts("benign_compliance", metadata)


def count(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Nothing where the judge could not place the answer: the mean is over the others."""
    prompt = Prompt((Message("user", doc["prompt"]),), doc["kind"], doc["category"], doc["language"])
    counts = count_answer(rate_named(doc["rate"]), load_judge("keyword"), prompt, results[0]).counts
    return {} if counts is None else {doc["rate"]: float(counts)}


def _prompts(rate: str, metadata: dict[str, Any]) -> DatasetDict:
    rows = [
        {
            "prompt": prompt.text,
            "system": next((turn.content for turn in prompt.messages if turn.role == "system"), ""),
            "kind": prompt.kind,
            "category": prompt.category or "",
            "language": prompt.language,
            "rate": rate,
        }
        for prompt in prompts_for(rate_named(rate), str(metadata.get("suite", "driftcheck")))
    ]
    return DatasetDict({"test": Dataset.from_list(rows)})
