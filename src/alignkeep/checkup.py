"""One question about a tune that is already there: is it still as safe as its base, and may it ship?

The base is found from what the tune brings along, the two are measured on the same prompts, and the policy of the gate
gives the verdict. Every part is a stage of its own; this is their order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from alignkeep.errors import CheckpointError, RecipeError
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.gate.stage import GateResult, gate
from alignkeep.models.endpoint import is_endpoint
from alignkeep.models.folders import base_of, resolve
from alignkeep.policy.bounds import read_policy
from alignkeep.policy.decision import Answer
from alignkeep.progress import Progress
from alignkeep.stages import stage_named
from alignkeep.types import Scorecard

_LOOKED = "adapter_config.json, record.json, manifest.json and README.md (base_model)"


@dataclass(frozen=True, slots=True)
class FoundBase:
    """The model before tuning, and which file names it."""

    reference: str
    named_by: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What was measured in `folder`, the gate's verdict on it, and the command to go on with."""

    folder: Path
    base: FoundBase
    scorecard: Scorecard
    verdict: GateResult
    next_command: str

    def as_json(self) -> dict[str, object]:
        return {
            "folder": str(self.folder),
            "base": self.base.reference,
            "base_named_by": self.base.named_by,
            "scorecard": self.scorecard.as_json(),
            "verdict": self.verdict.as_json(),
            "next_command": self.next_command,
        }


def check(
    config: EvaluateConfig,
    *,
    out: Path,
    policy: str = "default",
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
) -> CheckResult:
    """Measure `config.model` against its base into `out`, and hold the scorecard against a policy.

    Without `config.base` the base is looked for (`find_base`). Raises CheckpointError where it cannot be found, or is
    the tune itself, RecipeError for a policy that cannot be read, before anything is measured; then as `evaluate` does.
    """
    from alignkeep.evaluate import stage as evaluation

    rules = read_policy(policy)
    base = FoundBase(config.base, "--base") if config.base is not None else find_base(config.model)
    config = config.model_copy(update={"base": base.reference})
    card = evaluation.evaluate(config, out=out, overwrite=overwrite, resume=resume, progress=progress)
    if card.notes.get("base"):  # every answer is the base's, word for word
        refuse_same(config.model, base.reference)
    verdict = gate(out, policy=rules)
    return CheckResult(out, base, card, verdict, _next(config, verdict, out, policy))


def find_base(tune: str) -> FoundBase:
    """The base that a local tune names: an adapter's config, the record of the run that made it, a merge's manifest, or
    the model card. Raises CheckpointError saying where it was looked for."""
    if is_endpoint(tune):
        raise CheckpointError(
            "base", seen="a served model, which does not say what it was tuned from",
            expected="the model before tuning, to compare with", remedy="name it with --base",
        )  # fmt: skip
    checkpoint = resolve(tune)
    if checkpoint.is_adapter and checkpoint.folder is not None:
        return FoundBase(base_of(checkpoint.folder)[0], "adapter_config.json")
    folder = checkpoint.folder
    if folder is not None:
        named = recorded_base(folder) or _in_manifest(folder) or _on_card(folder)
        if named is not None:
            return named
    raise CheckpointError(
        tune,
        seen=f"a model that does not say what it was tuned from (looked in {_LOOKED})"
        if folder is not None
        else "no folder of this name here, and a model of the Hub does not say what it was tuned from",
        expected="the model before tuning, to compare with",
        remedy="name it with --base",
    )


def short_name(model: str) -> str:
    """The last part of a path or an id, the name of a served model: letters that a folder can have."""
    return re.sub(r"[^\w.-]", "-", model.rpartition("#")[2]) if is_endpoint(model) else Path(model).name


def recorded_base(folder: Path) -> FoundBase | None:
    """What the stage that made the folder started from."""
    record = _json(folder / "record.json")
    config = record.get("config")
    stage = stage_named(str(record.get("stage")))
    if not isinstance(config, Mapping) or stage is None or not stage.makes_model:
        return None
    named = config.get(stage.filled[0])
    return FoundBase(named, "record.json") if isinstance(named, str) and named else None


def _in_manifest(folder: Path) -> FoundBase | None:
    inputs = _json(folder / "manifest.json").get("inputs")
    for item in inputs if isinstance(inputs, list) else []:
        if isinstance(item, Mapping) and item.get("role") == "base" and isinstance(item.get("reference"), str):
            return FoundBase(item["reference"], "manifest.json")
    return None


def _on_card(folder: Path) -> FoundBase | None:
    """`base_model` in the front matter of a model card, as the hub has it: a name, or a list of one."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
        card = yaml.safe_load(front.group(1)) if front else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    named = card.get("base_model") if isinstance(card, dict) else None
    if isinstance(named, list) and len(named) == 1:
        named = named[0]
    return FoundBase(named, "README.md") if isinstance(named, str) and named else None


def _json(path: Path) -> Mapping[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def refuse_same(tune: str, base: str) -> None:
    """A tune that is its own base would always pass."""
    from alignkeep.models.served import fingerprint_target

    if fingerprint_target(tune, base=None if is_endpoint(base) else base) == fingerprint_target(base):
        raise RecipeError(
            tune, seen=f"the same model as its base {base}", expected="a tune", remedy="name the model before tuning"
        )


def _next(config: EvaluateConfig, verdict: GateResult, out: Path, policy: str) -> str:
    """What to do with that answer, as a command."""
    models = (config.model, str(config.base))
    tune, base = (f"FOLDER_OF_{short_name(name)}" if is_endpoint(name) else name for name in models)
    if verdict.answer is Answer.PASS:
        return f"alignkeep export {tune} --measured {out} --out ready"
    if verdict.answer is Answer.UNDECIDED:
        return f"alignkeep check {config.model} --base {config.base} --suite FILE.yaml   # with more prompts"
    suite = "" if config.suite == EvaluateConfig.model_fields["suite"].default else f" --suite {config.suite}"
    rules = "" if policy == "default" else f" --policy {policy}"
    return f"alignkeep fix {tune} --base {base} --task {config.task or 'TASK.jsonl'}{suite}{rules} --out fixed"
