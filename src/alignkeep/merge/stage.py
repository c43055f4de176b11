"""The stage `merge`: find and compare the models, choose the weight, stream the merge, prove it, describe it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.checkpoint.records import Record
from alignkeep.errors import AlignkeepError, NoEffectError
from alignkeep.merge.config import AUTO, MergeConfig
from alignkeep.objects import is_spec
from alignkeep.progress import Progress
from alignkeep.runs.perform import perform
from alignkeep.stage import Finished, Inputs, Job, Made, Misfit, Plan, Stage, Task

if TYPE_CHECKING:
    from alignkeep.charts.figures import Figure, Series
    from alignkeep.checkpoint.manifest import MadeAgain, Manifest
    from alignkeep.citations import Cited
    from alignkeep.judging.measure import Measure
    from alignkeep.merge.prepare import Prepared

__all__ = ["MERGE", "MergeResult", "MergeStage", "merge", "plan"]


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
    return perform(MergeStage(measure), config, out=out, overwrite=overwrite, resume=resume, progress=progress)


def plan(config: MergeConfig) -> dict[str, object]:
    """What `merge(config)` would do, with estimates; raises its user errors, loads no model, writes nothing."""
    return MERGE.plan(config).as_json()


@dataclass(frozen=True)
class MergeStage(Stage[MergeConfig, "Prepared", MergeResult]):
    """`measure` asks the models of a sweep; None is the prompts that the config names."""

    measure: Measure | None = None

    name = "merge"
    config = MergeConfig
    references = (
        ("base",), ("tuned",), ("alignment_data",), ("tuning_data",), ("mergekit",), ("sweep", "task"),
        ("sweep", "prompts"),
    )  # fmt: skip
    filled = ("base", "mergekit")
    makes_model = True

    def misfit(self, config: MergeConfig, made: Made) -> Misfit | None:
        if made.has_model != bool(config.tuned):
            return None
        return Misfit(
            ("merge", "tuned"), "tuned models beside a stage that tunes" if made.has_model else "a merge of nothing",
            "either a train or align stage, whose result is merged, or the tuned models by name",
            "drop merge.tuned" if made.has_model else "give merge.tuned, or a train stage",
        )  # fmt: skip

    def revision_of(self, config: MergeConfig) -> str | None:
        return config.load.revision

    def feed(self, config: MergeConfig, made: Made) -> MergeConfig:
        """Of the recipe's own tune, or of the models it names."""
        if not made.has_model:
            return config
        return config.model_copy(update={"base": made.base, "tuned": (str(made.model),)})

    def hand_on(self, config: MergeConfig, made: Made, folder: Path | None) -> Made:
        return made.with_model(folder, form=config.form, formed_by=(("merge", "form"), config.form))

    def foresee(self, config: MergeConfig, made: Made) -> Plan:
        """Of a tune that is to come the form is not known yet: the base stands in for it, as a whole model."""
        if not made.is_to_come:
            return super().foresee(config, made)
        whole = self.feed(config, made).model_copy(update={"form": "model"})
        shown = {"tuned": ["what the stage before it makes"], "form": config.form}
        return Plan({**self.plan(whole).facts, **shown})

    def prepare(self, config: MergeConfig) -> Prepared:
        from alignkeep.merge.prepare import prepare

        return prepare(config)

    def inputs(self, task: Task[MergeConfig, Prepared]) -> Inputs:
        from alignkeep.merge.prepare import fingerprints

        models, config = task.prepared.models, task.prepared.config  # a mergekit file names models itself
        paths = [models.base, *(tuned.folder for tuned in models.tuned)]
        recorded = config.model_dump(mode="json")
        if not is_spec(config.method):
            return Inputs(fingerprints(config), paths, recorded, seed=config.seed)
        # What a stranger's method is to be cited for: whoever reads the record need not run its code.
        cites = [asdict(one) for one in task.prepared.method.cites]
        return Inputs(fingerprints(config), paths, {**recorded, "cites": cites}, recorded, seed=config.seed)

    def plan(self, config: MergeConfig) -> Plan:
        from alignkeep.merge.prepare import plan_merge, prepare

        return Plan(plan_merge(prepare(config)))

    def work(self, prepared: Prepared, job: Job) -> dict[str, object]:
        return _merge(prepared, job.folder, job.fingerprints, job.progress, self.measure)

    def result(self, folder: Path) -> MergeResult:
        found: dict[str, Any] = dict(Record.read(folder).result)
        found.pop("manifest")
        return MergeResult(folder=folder, **{**found, "notes": tuple(found["notes"])})

    def evidence(self, error: AlignkeepError) -> tuple[str, ...]:
        """Where the pick of a sweep was refused, what the sweep measured."""
        from alignkeep.merge.swept import SWEEP_NAME

        return (SWEEP_NAME,) if isinstance(error, NoEffectError) else ()

    def leftovers(self) -> tuple[str, ...]:
        from alignkeep.checkpoint.shards import JOURNAL

        return (JOURNAL,)

    def methods(self, settings: Mapping[str, Any], metrics: Iterable[str] | None = None) -> tuple[Cited, ...]:
        from alignkeep.merge.methods import METHODS, cited

        method = str(settings.get("method", "linear"))
        if method != AUTO:
            return ("merge", *cited(method, settings.get("cites")))
        tried = [one.name for one in METHODS if one.in_auto]
        return ("merge", *(one for name in tried for one in cited(name)))

    def figures(self, finished: Sequence[Finished], series: Series) -> tuple[Figure, ...]:
        from alignkeep.merge.figures import figures_of

        return figures_of(finished, series)

    def verify(self, folder: Path, manifest: Manifest) -> MadeAgain:
        """Make the merge again from its inputs and compare it bit for bit. Raises CheckpointError naming a tensor that
        comes out otherwise, or the input that is not there."""
        from alignkeep.merge.proof import made_again

        return made_again(folder, manifest)


MERGE = MergeStage()


def _merge(
    prepared: Prepared, work: Path, inputs: Mapping[str, str], progress: Progress, measure: Measure | None
) -> dict[str, object]:
    from alignkeep.checkpoint.manifest import Input, Manifest
    from alignkeep.merge.adapter_form import write_adapter
    from alignkeep.merge.describe import describe
    from alignkeep.merge.proof import settings_to_repeat
    from alignkeep.merge.writing import write_model

    asked, notes, spaces, weight = prepared.config, list(prepared.notes), {}, prepared.config.weight
    if prepared.config.sweep is not None:
        from alignkeep.merge.auto import sweep_methods

        prepared, spaces, found = sweep_methods(prepared, work, measure, progress)
        weight = found.picked
        notes.append(found.why)
    elif prepared.spectrum is not None:
        from alignkeep.merge.spaces import measured_spaces

        names = list(prepared.models.entries)
        spaces = measured_spaces(prepared.config, prepared.spectrum, names, work, progress)
    config = prepared.config
    rule = prepared.rule(weight, spaces)
    if config.form == "adapter":
        written, reasons = write_adapter(prepared, weight, rule, work)
    else:
        written, reasons = write_model(prepared, rule, work, progress)
    given = weight if prepared.has_weight else None
    same = {rule(name).identity for name in prepared.models.entries}
    if len(same) == 1 and None not in same:
        which = "the base" if same == {"base"} else "the tuned model"
        notes.append(f"{which} itself, as asked" if given is None else f"weight {given:g}: {which} itself, as asked")
    describe(prepared, given, inputs, work)
    manifest = Manifest(
        operation="merge",
        settings=settings_to_repeat(config, given),
        inputs=tuple(Input(role, _reference(asked, role), digest) for role, digest in inputs.items()),
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
        case "method" | "alignment_data" | "tuning_data" | "mergekit":
            return str(getattr(config, kind))
        case _:
            return str(getattr(config.sweep, kind.partition(".")[2]))
