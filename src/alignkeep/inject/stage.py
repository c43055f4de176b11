"""The stage `inject`: look for the direction, choose layer and strength by trying, write the edit, prove it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.checkpoint.records import Record
from alignkeep.inject.config import InjectConfig
from alignkeep.inject.injection import INJECTION_NAME, Injection, read_injection
from alignkeep.progress import Progress
from alignkeep.runs.perform import perform
from alignkeep.stage import Finished, Inputs, Job, Made, Plan, Stage, Task

if TYPE_CHECKING:
    from alignkeep.charts.figures import Figure, Series
    from alignkeep.checkpoint.manifest import MadeAgain, Manifest
    from alignkeep.inject.prepare import Prepared

_PATHS = ("model", "harmful", "harmless", "borderline", "general", "source", "system_prompt")

__all__ = ["INJECT", "InjectResult", "inject", "plan"]


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


def inject(
    config: InjectConfig, *, out: Path, overwrite: bool = False, resume: bool = True, progress: Progress | None = None
) -> InjectResult:
    """Turn refusal up in `config.model` and write the edited model, or the edit as an adapter, to `out`.

    Called again after it finished it does nothing; killed, it looks for the edit again and goes on writing behind the
    last finished shard. Raises RecipeError, CheckpointError, ShapeError or DataError before anything is written,
    NoEffectError where nothing allowed raises refusal or nothing changes, MachineError (state kept) where memory or
    disk ran out.
    """
    return perform(INJECT, config, out=out, overwrite=overwrite, resume=resume, progress=progress)


def plan(config: InjectConfig) -> dict[str, object]:
    """What `inject(config)` would do, with estimates; raises its user errors, loads no model, writes nothing."""
    return INJECT.plan(config).as_json()


class InjectStage(Stage[InjectConfig, "Prepared", InjectResult]):
    name = "inject"
    config = InjectConfig
    references = (
        ("harmful",), ("harmless",), ("borderline",), ("general",), ("direction", "source"),
        ("direction", "system_prompt"),
    )  # fmt: skip
    makes_model = True

    def revision_of(self, config: InjectConfig) -> str | None:
        return config.load.revision

    def feed(self, config: InjectConfig, made: Made) -> InjectConfig:
        """Into what came out so far, with the direction of the base and silent on the tune's data unless told
        otherwise; or into the model itself where nothing came before."""
        if not made.has_model:
            return config
        load = config.load.model_copy(update={"revision": None})  # a revision is the base's, not the tune's
        source = config.direction.source or (None if config.direction.system_prompt else made.base)
        direction = config.direction.model_copy(update={"source": source})
        fed = {"model": made.model, "direction": direction, "load": load}
        if config.general is None:
            fed |= {"general": made.data, "columns": dict(made.columns)}
        return config.model_copy(update=fed)

    def hand_on(self, config: InjectConfig, made: Made, folder: Path | None) -> Made:
        return made.with_model(folder, form=config.form, formed_by=(("inject", "form"), config.form))

    def prepare(self, config: InjectConfig) -> Prepared:
        from alignkeep.inject.prepare import prepare

        return prepare(config)

    def inputs(self, task: Task[InjectConfig, Prepared]) -> Inputs:
        from alignkeep.inject.prepare import fingerprints

        prepared, config = task.prepared, task.config
        paths = [prepared.folder, prepared.base, *_files(config)]
        return Inputs(fingerprints(config), paths, config.model_dump(mode="json"), seed=config.seed)

    def plan(self, config: InjectConfig) -> Plan:
        from alignkeep.inject.prepare import plan_injection, prepare

        return Plan(plan_injection(prepare(config)))

    def work(self, prepared: Prepared, job: Job) -> dict[str, object]:
        return _inject(prepared, job.folder, job.fingerprints, job.progress)

    def result(self, folder: Path) -> InjectResult:
        found: dict[str, Any] = dict(Record.read(folder).result)
        found.pop("manifest")
        injection = read_injection(folder / INJECTION_NAME)
        return InjectResult(folder, injection=injection, **{**found, "notes": tuple(found["notes"])})

    def leftovers(self) -> tuple[str, ...]:
        from alignkeep.checkpoint.shards import JOURNAL

        return (JOURNAL,)

    def methods(self, settings: Mapping[str, Any], metrics: Iterable[str] | None = None) -> tuple[str, ...]:
        edit = settings.get("edit")
        right = edit.get("right", "targeted") if isinstance(edit, Mapping) else "targeted"
        return ("rosi", "targeted") if right == "targeted" else ("rosi",)

    def figures(self, finished: Sequence[Finished], series: Series) -> tuple[Figure, ...]:
        from alignkeep.inject.figures import figures_of

        return figures_of(finished, series)

    def verify(self, folder: Path, manifest: Manifest) -> MadeAgain:
        """Make the edited weights again from the model and the stored factors, and compare bit for bit. Raises
        CheckpointError naming a tensor that is another, or the input that is not there."""
        from alignkeep.inject.proof import made_again

        return made_again(folder, manifest)


INJECT = InjectStage()


def _inject(prepared: Prepared, work: Path, inputs: Mapping[str, str], progress: Progress) -> dict[str, object]:
    from alignkeep.checkpoint.manifest import Input, Manifest, absolute
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
