"""The stage `merge`: find and compare the models, choose the weight, stream the merge, prove it, describe it."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alignkeep.checkpoint.folders import OutputFolder, discard
from alignkeep.checkpoint.manifest import Input, MadeAgain, Manifest
from alignkeep.checkpoint.records import Record, identity_of
from alignkeep.checkpoint.shards import JOURNAL
from alignkeep.errors import AlignkeepError, MachineError
from alignkeep.merge.again import settings_to_repeat
from alignkeep.merge.config import SPACED, MergeConfig
from alignkeep.merge.describe import describe
from alignkeep.merge.estimate import plan_merge
from alignkeep.merge.prepare import Prepared, fingerprints, prepare
from alignkeep.progress import Progress, Silent
from alignkeep.types import Measure

__all__ = ["MergeResult", "merge", "plan", "verify"]


@dataclass(frozen=True)
class MergeResult:
    """`folder` is usable as a model at once. `changed`, `equal` and `copied` count its tensors against the base's
    (an adapter's against the tuned adapter's); `weight` was given, or chosen by the sweep."""

    folder: Path
    method: str
    weight: float | None
    form: str
    changed: int
    equal: int
    copied: int
    notes: tuple[str, ...] = ()


def plan(config: MergeConfig) -> dict[str, object]:
    """What `merge(config)` would do, with estimates; raises its user errors, loads no model, writes nothing."""
    return plan_merge(prepare(config))


def merge(
    config: MergeConfig,
    *,
    out: Path,
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
    measure: Measure | None = None,
) -> MergeResult:
    """Merge `config.tuned` into `config.base` and write the model or adapter to `out`, with a manifest that proves it.

    Killed and called again it goes on behind the last finished shard or measured weight; called again after it finished
    it does nothing. `measure` asks the models of a sweep; None is the prompts that the config names. Raises
    RecipeError, CheckpointError, ShapeError or DataError before any work is spent, NoEffectError where the merge is the
    base (unless weight 0 was asked for), MachineError (state kept) where memory or disk ran out.
    """
    started, progress = time.monotonic(), progress or Silent()
    prepared = prepare(config)
    config = prepared.config
    inputs = fingerprints(config)
    settings = config.model_dump(mode="json")
    folder = OutputFolder.open(
        Path(out),
        stage="merge",
        identity=identity_of("merge", settings, inputs),
        overwrite=overwrite,
        resume=resume,
        inputs=[prepared.models.base, *(tuned.folder for tuned in prepared.models.tuned)],
    )
    with closing(folder):
        if not folder.finished:
            try:
                result = _merge(prepared, folder.work, inputs, progress, measure)
            except AlignkeepError as error:
                if not isinstance(error, MachineError):  # a fault that would come again is not worth continuing
                    discard(folder.work)
                raise
            seconds = time.monotonic() - started
            record = Record("merge", folder.identity, settings, inputs, config.seed, seconds, result)
            folder.finish(record, leftovers=[JOURNAL])
    return _result(folder.out)


def verify(folder: Path, manifest: Manifest) -> MadeAgain:
    """Make the merge again from its inputs and compare it bit for bit. Raises CheckpointError naming a tensor that
    comes out otherwise, or the input that is not there."""
    from alignkeep.merge.again import made_again

    return made_again(folder, manifest)


def _merge(
    prepared: Prepared, work: Path, inputs: dict[str, str], progress: Progress, measure: Measure | None
) -> dict[str, object]:
    from alignkeep.merge.adapter_form import write_adapter
    from alignkeep.merge.methods import identity_of as same_as
    from alignkeep.merge.writing import write_model

    config, notes = prepared.config, list(prepared.notes)
    spaces = {}
    if config.method in SPACED:
        from alignkeep.merge.alignment import alignment_spaces

        spaces = alignment_spaces(config, list(prepared.models.entries), work, progress)
    weight = config.weight
    if config.sweep is not None:
        from alignkeep.merge.sweep import sweep

        at = partial(prepared.rule, spaces=spaces)
        found = sweep(config, work=work, method_at=at, measure=measure, progress=progress)
        weight = found.picked
        notes.append(found.why)
    rule = prepared.rule(weight, spaces)
    if config.form == "adapter":
        written, reasons = write_adapter(prepared, weight, rule, work)
    else:
        written, reasons = write_model(prepared, rule, work, progress)
    given = weight if prepared.has_weight else None
    same = {same_as(rule(name)) for name in prepared.models.entries}
    if len(same) == 1 and None not in same:
        which = "the base" if same == {"base"} else "the tuned model"
        notes.append(f"{which} itself, as asked" if given is None else f"weight {given:g}: {which} itself, as asked")
    describe(prepared, given, inputs, work)
    manifest = Manifest(
        operation="merge",
        settings=settings_to_repeat(config, given),
        inputs=tuple(Input(role, _reference(config, role), digest) for role, digest in inputs.items()),
        tensors=tuple(written),
        reasons=reasons,
        notes=tuple(notes),
    )
    facts: dict[str, object] = {"method": config.method, "weight": given, "form": config.form}
    return {**facts, **manifest.counts, "notes": notes, "manifest": manifest.write(work)}


def _reference(config: MergeConfig, role: str) -> str:
    kind, _, number = role.partition(" ")
    match kind:
        case "base":
            return config.base
        case "tuned":
            return config.tuned[int(number or 1) - 1]
        case "alignment_data" | "tuning_data" | "mergekit":
            return str(getattr(config, kind))
        case _:
            return str(getattr(config.sweep, kind.partition(".")[2]))


def _result(folder: Path) -> MergeResult:
    found: dict[str, Any] = dict(Record.read(folder).result)
    found.pop("manifest")
    return MergeResult(folder=folder, **{**found, "notes": tuple(found["notes"])})
