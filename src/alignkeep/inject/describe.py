"""What a person can read of an injection: a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from alignkeep.checkpoint.files import write_text
from alignkeep.inject.injection import Injection, Tried
from alignkeep.inject.prepare import Prepared
from alignkeep.judging.metrics import BENIGN_COMPLIANCE, HARM_REFUSAL, OVER_REFUSAL

CARD = "README.md"
_TEXT = """\
---
{front}---

# {model}, with refusal turned up by alignkeep

A rank-one edit of {count} matrices that write to the residual stream (ROSI, arXiv:2508.20766): direction from layer
{layer} of {source}, right factor {right}, strength {strength}. Nothing was trained.

| held-out prompts | before | after |
| --- | --- | --- |
{rows}

{n} harmful, {m} harmless and {k} borderline prompts that gave no direction, but by which layer and strength were
chosen: measure it with prompts of your own.

| | sha256 |
| --- | --- |
{inputs}

`alignkeep verify DIR` proves the folder against `manifest.json`; which matrices were changed, and by how much, stands
in `injection.json`.
"""
_RATES = (HARM_REFUSAL, BENIGN_COMPLIANCE, OVER_REFUSAL)


def describe(prepared: Prepared, found: Injection, fingerprints: Mapping[str, str], work: Path) -> None:
    """Write `README.md`."""
    config = prepared.config
    library = "peft" if config.form == "adapter" else "transformers"
    facts = {"base_model": config.model, "library_name": library, "tags": ["rosi", "safety", "alignkeep"]}
    rows = [
        f"| {metric.label} | {_rate(found.base, metric.name)} | {_rate(found.chosen, metric.name)} |"
        for metric in _RATES
        if metric.name in found.chosen.rates and found.chosen.rates[metric.name].n
    ]
    text = _TEXT.format(
        front=yaml.safe_dump(facts, sort_keys=False),
        model=config.model,
        count=len(found.matrices),
        layer=found.layer,
        source=found.source,
        right=found.right,
        strength=found.strength,
        rows="\n".join(rows),
        n=found.prompts["held-out harmful"],
        m=found.prompts["held-out harmless"],
        k=found.prompts["borderline"],
        inputs="\n".join(f"| {role} | {digest} |" for role, digest in fingerprints.items()),
    )
    write_text(work / CARD, text)


def _rate(trial: Tried, name: str) -> str:
    rate = trial.rates[name]
    return f"{100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
