"""The merge on disk as whole weights, streamed from the inputs, and the files that stand beside them."""

from __future__ import annotations

from pathlib import Path

from alignkeep.checkpoint.companions import CONFIG, INDEX, TOKENIZER, copy_companions
from alignkeep.checkpoint.rewrite import rewrite
from alignkeep.checkpoint.shards import Written
from alignkeep.checkpoint.verify import check_same_files
from alignkeep.errors import NoEffectError
from alignkeep.merge.chat import take_template
from alignkeep.merge.edits import edits_of, reason_for_equal
from alignkeep.merge.method import Rule
from alignkeep.merge.prepare import Prepared
from alignkeep.progress import Progress


def write_model(prepared: Prepared, rule: Rule, work: Path, progress: Progress) -> tuple[list[Written], dict[str, str]]:
    """The merged checkpoint in `work`, with the base's shards, names and types; returns its tensors and, for those that
    came out equal, the reason. Raises NoEffectError where nothing changed although it was meant to."""
    models = prepared.models
    edits = edits_of(models, rule)
    written = rewrite(models.entries, edits, work, progress=progress)
    reasons = {one.name: reason_for_equal(models, one) for one in written if one.change == "equal"}
    asked = all(rule(name).identity == "base" for name in models.entries)
    if len(reasons) == len(edits) and not asked:
        refuse_no_effect(next(iter(reasons.values()), "none has another tensor"), len(edits))
    write_beside(prepared, work)
    return written, reasons


def write_beside(prepared: Prepared, work: Path) -> None:
    """The files beside the weights: the base's, and the chosen chat template."""
    models = prepared.models
    wanted = [*TOKENIZER, *CONFIG]
    if all(entry.file.name != "model.safetensors" for entry in models.entries.values()):
        wanted.append(INDEX)
    check_same_files(work, models.base, copy_companions(models.base, work, wanted))
    if prepared.config.chat_template == "tuned":
        take_template(models.tuned[0].folder, work)


def refuse_no_effect(reason: str, count: int) -> None:
    raise NoEffectError(
        "merge",
        seen=f"{count} merged tensors, all equal to the base's: {reason}",
        expected="a merge that differs from the base",
        remedy="check that the tuned model is the tuned one, or raise the weight",
    )
