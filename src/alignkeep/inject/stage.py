"""The stage `inject`: look for the direction, choose layer and strength by trying, write the edit, prove it."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkeep.checkpoint.folders import OutputFolder, discard
from alignkeep.checkpoint.injections import INJECTION_NAME, Injection, read_injection
from alignkeep.checkpoint.manifest import Input, MadeAgain, Manifest, absolute
from alignkeep.checkpoint.records import Record, identity_of
from alignkeep.checkpoint.shards import JOURNAL
from alignkeep.errors import AlignkeepError, MachineError
from alignkeep.inject.config import InjectConfig
from alignkeep.inject.prepare import Prepared, fingerprints, plan_injection, prepare
from alignkeep.progress import Progress, Silent

_PATHS = ("model", "harmful", "harmless", "borderline", "general", "source", "system_prompt")

__all__ = ["InjectResult", "inject", "plan", "verify"]


@dataclass(frozen=True)
class InjectResult:
    """`folder` is usable as a model or adapter at once; `injection` says what was chosen and measured on held-out
    prompts; `changed`, `equal` and `copied` count tensors against the model's."""

    folder: Path
    form: str
    injection: Injection
    changed: int
    equal: int
    copied: int
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        found = self.injection
        held_out = {
            when: {name: rate.as_json() for name, rate in trial.rates.items()}
            for when, trial in (("before", found.base), ("after", found.chosen))
        }
        chosen = {"layer": found.layer, "strength": found.strength, "right": found.right, "sign": found.sign}
        counts = {"changed": self.changed, "equal": self.equal, "copied": self.copied}
        return {
            "folder": self.folder, "form": self.form, **chosen, "held_out": held_out, **counts,
            "notes": list(self.notes),
        }  # fmt: skip


def plan(config: InjectConfig) -> dict[str, object]:
    """What `inject(config)` would do, with estimates; raises its user errors, loads no model, writes nothing."""
    return plan_injection(prepare(config))


def inject(
    config: InjectConfig, *, out: Path, overwrite: bool = False, resume: bool = True, progress: Progress | None = None
) -> InjectResult:
    """Turn refusal up in `config.model` and write the edited model, or the edit as an adapter, to `out`.

    Called again after it finished it does nothing; killed, it looks for the edit again and goes on writing behind the
    last finished shard. Raises RecipeError, CheckpointError, ShapeError or DataError before anything is written,
    NoEffectError where nothing allowed raises refusal or nothing changes, MachineError (state kept) where memory or
    disk ran out.
    """
    started, progress = time.monotonic(), progress or Silent()
    prepared = prepare(config)
    inputs = fingerprints(config)
    settings = config.model_dump(mode="json")
    folder = OutputFolder.open(
        Path(out),
        stage="inject",
        identity=identity_of("inject", settings, inputs),
        overwrite=overwrite,
        resume=resume,
        inputs=[prepared.folder, prepared.base, *_files(config)],
    )
    with closing(folder):
        if not folder.finished:
            try:
                result = _inject(prepared, folder.work, inputs, progress)
            except AlignkeepError as error:
                if not isinstance(error, MachineError):  # a fault that would come again is not worth continuing
                    discard(folder.work)
                raise
            seconds = time.monotonic() - started
            record = Record("inject", folder.identity, settings, inputs, config.seed, seconds, result)
            folder.finish(record, leftovers=[JOURNAL])
    found: dict[str, Any] = dict(Record.read(folder.out).result)
    found.pop("manifest")
    injection = read_injection(folder.out / INJECTION_NAME)
    return InjectResult(folder.out, injection=injection, **{**found, "notes": tuple(found["notes"])})


def verify(folder: Path, manifest: Manifest) -> MadeAgain:
    """Make the edited weights again from the model and the stored factors, and compare bit for bit. Raises
    CheckpointError naming a tensor that is another, or the input that is not there."""
    from alignkeep.inject.again import made_again

    return made_again(folder, manifest)


def _inject(prepared: Prepared, work: Path, inputs: dict[str, str], progress: Progress) -> dict[str, object]:
    from alignkeep.inject.describe import describe
    from alignkeep.inject.edit import find_edit
    from alignkeep.inject.output import write_edit

    config = prepared.config
    edit = find_edit(prepared, progress)
    written, reasons = write_edit(prepared, edit, work, progress)
    edit.injection.write(work)
    describe(prepared, edit.injection, inputs, work)
    notes = [*edit.notes, *([f"{len(reasons)} tensors came out equal"] if reasons else [])]
    manifest = Manifest(
        operation="inject",
        settings=absolute(config.model_dump(mode="json", exclude_unset=True), _PATHS),
        inputs=tuple(Input(role, _reference(config, role), digest) for role, digest in inputs.items()),
        tensors=tuple(written),
        reasons=reasons,
        notes=tuple(notes),
    )
    counts = manifest.counts
    return {"form": config.form, **counts, "notes": notes, "manifest": manifest.write(work)}


def _files(config: InjectConfig) -> list[Path]:
    """What else is read, as far as it lies on this disk."""
    named = (config.harmful, config.harmless, config.borderline, config.general)
    named += (config.direction.source, config.direction.system_prompt)
    return [path for path in map(Path, filter(None, named)) if path.exists()]


def _reference(config: InjectConfig, role: str) -> str:
    value: Any = config
    for part in role.split("."):
        value = getattr(value, part)
    return str(value)
