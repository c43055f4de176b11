"""What a person, and mergekit, can read of a merge: a model card and, where there is one, a mergekit file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from alignkeep.checkpoint.files import write_text
from alignkeep.merge.mergekit_methods import write_mergekit
from alignkeep.merge.prepare import Prepared, rule_of

CARD, MERGEKIT = "README.md", "mergekit_config.yml"
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}

_TEXT = """\
---
{front}---

# A merge made with alignkeep

{sentence}

| | model | sha256 |
| --- | --- | --- |
{rows}

Every number was computed in float32 and rounded once. `alignkeep verify DIR` proves the folder against `manifest.json`;
what changed against the base stands there tensor by tensor.
"""


def describe(prepared: Prepared, weight: float | None, fingerprints: Mapping[str, str], work: Path) -> None:
    """Write `README.md` and, where mergekit has the method for whole models, `mergekit_config.yml`."""
    config = prepared.config
    write_text(work / CARD, _card(prepared, weight, fingerprints))
    if config.mergekit is not None:
        write_text(work / MERGEKIT, Path(config.mergekit).read_text(encoding="utf-8"))
        return
    if any(tuned.adapter is not None for tuned in prepared.models.tuned) or prepared.spectrum is not None:
        return
    kinds = {_DTYPES[entry.dtype] for entry in prepared.models.entries.values() if entry.dtype in _DTYPES}
    method = rule_of(config, config.weight if weight is None else weight)("")
    text = write_mergekit(method, base=config.base, tuned=config.tuned, dtype=kinds.pop() if len(kinds) == 1 else None)
    if text is not None:
        write_text(work / MERGEKIT, text)


def _card(prepared: Prepared, weight: float | None, fingerprints: Mapping[str, str]) -> str:
    config = prepared.config
    library = "peft" if config.form == "adapter" else "transformers"
    facts = {"base_model": [config.base, *config.tuned], "library_name": library, "tags": ["merge", "alignkeep"]}
    front = yaml.safe_dump(facts, sort_keys=False)
    how = f"the {config.method} method" + (f" of {Path(config.mergekit).name}" if config.mergekit else "")
    share = "" if weight is None else f", {weight:g} being the weight of the tuned model"
    given = zip(fingerprints.items(), (config.base, *config.tuned), strict=False)  # data and files come behind
    rows = [f"| {role} | {reference} | {digest} |" for (role, digest), reference in given]
    sentence = f"{' and '.join(config.tuned)}, merged with {config.base} by {how}{share}."
    return _TEXT.format(front=front, sentence=sentence, rows="\n".join(rows))
