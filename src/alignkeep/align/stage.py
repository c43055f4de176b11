"""The stage `align`: check, load, train with TRL, measure, save, open again, and only then put the folder in place."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep import extras
from alignkeep.align.config import AlignConfig
from alignkeep.checkpoint.parts import append_rows, recover_rows
from alignkeep.checkpoint.records import Record
from alignkeep.data import fingerprint_data
from alignkeep.errors import AlignkeepError, MachineError, NoEffectError
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.progress import Progress
from alignkeep.runs.perform import perform
from alignkeep.stage import Finished, Inputs, Job, Made, Misfit, Plan, Stage, Task
from alignkeep.types import Estimate

if TYPE_CHECKING:
    from alignkeep.align.aligning import Aligned
    from alignkeep.align.prepare import Prepared
    from alignkeep.charts.figures import Figure, Series

__all__ = ["ALIGN", "AlignResult", "align", "plan"]

_UNSCORED = "grao/references_unscored"
_HELD_OUT = "held_out.jsonl"


@dataclass(frozen=True)
class AlignResult:
    """`folder` is usable as a model at once.

    `samples` were generated, of which the share `cut` did not end within the limit and `unscored` could not be compared
    (None where nothing is: with grpo).
    Of the held-out answers at the end `held_out_cut` did not end either.
    `ras` and `ras_or_tie` are the shares of held-out answers that are better than (at least as good as) their
    reference, `ras_before` that of the base, `nag` the share that became better minus the share that became worse: None
    without held-out prompts. `unchanged` names tensors that came out as they were.
    """

    folder: Path
    steps: int
    prompts: int
    samples: int
    cut: float | None
    unscored: float | None
    ras: Estimate | None
    ras_or_tie: Estimate | None
    ras_before: Estimate | None
    nag: Estimate | None
    held_out_cut: int | None = None
    trainable_parameters: int = 0
    unchanged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def align(
    config: AlignConfig,
    *,
    out: Path,
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
) -> AlignResult:
    """Align `config.model` on `config.data` and write the model or adapter to `out`.

    Killed and called again it continues from its last checkpoint; called again after it finished it does nothing. Under
    torchrun every process calls it and the first one writes. Raises RecipeError, DataError, CheckpointError or
    ShapeError before any work is spent, NoEffectError where nothing changed, MachineError (state kept) where memory,
    disk or the judge failed.
    """
    return perform(ALIGN, config, out=out, overwrite=overwrite, resume=resume, progress=progress)


def plan(config: AlignConfig) -> dict[str, Any]:
    """What `align(config)` would do, with estimates; raises its user errors, loads no model, writes nothing."""
    return ALIGN.plan(config).as_json()


class AlignStage(Stage[AlignConfig, "Prepared", AlignResult]):
    name = "align"
    config = AlignConfig
    references = (("data",), ("held_out", "data"))
    makes_model = True
    together = True
    less_memory = "double accumulate; if it is sampling that does not fit, lower batch_size (prompts of a step)"
    extra = extras.TRAIN

    def misfit(self, config: AlignConfig, made: Made) -> Misfit | None:
        """What comes out of an alignment behind a tune is of one piece: it can be merged with the recipe's model."""
        if not made.has_model:
            return None if not made.is_weighted else Misfit(
                ("curate",), "weights of examples, for which an alignment has no use",
                "a train stage that learns the kept ones", "add train, or drop curate",
            )  # fmt: skip
        if made.form == "adapter":
            setting, value = made.formed_by
            return Misfit(
                setting, f"{value}, an adapter, before an alignment", "a whole model to align",
                f"set {'.'.join(setting)}: full, or align in place of the tune",
            )  # fmt: skip
        return None if config.lora is None else Misfit(
            ("align", "lora"), "an adapter over a model that a tune made", "an alignment of the whole model",
            "set align.lora: null",
        )  # fmt: skip

    def revision_of(self, config: AlignConfig) -> str | None:
        return config.load.revision

    def feed(self, config: AlignConfig, made: Made) -> AlignConfig:
        """Of the recipe's own tune where it has one; its plan is that of the base."""
        if made.folder is None:
            return config
        load = config.load.model_copy(update={"revision": None})  # a revision is the base's, not the tune's
        return config.model_copy(update={"model": made.folder, "load": load})

    def hand_on(self, config: AlignConfig, made: Made, folder: Path | None) -> Made:
        form = "model" if config.lora is None else "adapter"
        return made.with_model(folder, form=form, formed_by=(("align", "lora"), "lora"))

    def prepare(self, config: AlignConfig) -> Prepared:
        from alignkeep.align.prepare import prepare

        return prepare(config)

    def inputs(self, task: Task[AlignConfig, Prepared]) -> Inputs:
        config = task.config
        return Inputs(_fingerprints(config), _local_inputs(config), config.model_dump(mode="json"), seed=config.seed)

    def plan(self, config: AlignConfig) -> Plan:
        from alignkeep.align.plan import plan_alignment

        return Plan(plan_alignment(config))

    def work(self, prepared: Prepared, job: Job) -> dict[str, object]:
        from alignkeep.align.aligning import align_model
        from alignkeep.trainers.processes import by_first

        aligned = align_model(prepared.config, prepared, job.folder, job.progress)
        made = job.folder / "trainer" / "made"
        aligned.trainer.save_model(str(made))
        return by_first(lambda: _write(prepared, aligned, made, job))

    def result(self, folder: Path) -> AlignResult:
        found: dict[str, Any] = dict(Record.read(folder).result)
        for name in ("ras", "ras_or_tie", "ras_before", "nag"):
            found[name] = None if found[name] is None else Estimate(**found[name])
        several = {name: tuple(found[name]) for name in ("unchanged", "notes")}
        return AlignResult(folder=folder, **{**found, **several})

    def is_worth_keeping(self, error: AlignkeepError, folder: Path) -> bool:
        """Nothing that was paid for is thrown away; what changed nothing, or never began, is not worth continuing."""
        from alignkeep.trainers.watch import has_checkpoint

        begun = has_checkpoint(folder / "trainer")
        return isinstance(error, MachineError) or (begun and not isinstance(error, NoEffectError))

    def methods(self, settings: Mapping[str, Any], metrics: Iterable[str] | None = None) -> tuple[str, ...]:
        adapted = ("lora",) if settings.get("lora", True) is not None else ()
        return (str(settings.get("method", "grao")), *adapted)

    def figures(self, finished: Sequence[Finished], series: Series) -> tuple[Figure, ...]:
        from alignkeep.align.figures import figures_of

        return figures_of(finished, series)


ALIGN = AlignStage()


def _local_inputs(config: AlignConfig) -> list[Path]:
    """What is read from this disk, a judge or reward model too."""
    held_out = None if config.held_out is None else config.held_out.data
    kind, _, name = config.reward.spec.partition(":")
    judge = name if kind in ("judge", "scorer") else None
    return [path for path in map(Path, filter(None, (config.model, config.data, held_out, judge))) if path.exists()]


def _fingerprints(config: AlignConfig) -> dict[str, str]:
    from alignkeep.align.prepare import base_of
    from alignkeep.align.reward import fingerprint_reward

    base_of(config)
    inputs = {
        "model": fingerprint_model(config.model, config.load.revision),
        "data": fingerprint_data(config.data),
    }
    if config.held_out is not None:
        inputs["held_out.data"] = fingerprint_data(config.held_out.data)
    inputs["reward.spec"] = fingerprint_reward(config.reward)
    return inputs


def _write(prepared: Prepared, aligned: Aligned, made: Path, job: Job) -> dict[str, object]:
    from alignkeep.trainers.base import check_unwritten
    from alignkeep.trainers.log import LOG_NAME, write_log
    from alignkeep.trainers.saving import place_adapter, place_model

    config, trainer, work = prepared.config, aligned.trainer, job.folder
    _refuse_equal_rewards(trainer.state.log_history, config)
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if config.lora is None:
        trusted = config.load.trust_remote_code
        unchanged = place_model(made, work, prepared.base, model, trust_remote_code=trusted)
    else:
        unchanged = place_adapter(
            made, work, prepared.base, model, reference=config.model, revision=config.load.revision
        )
    check_unwritten(config.model, config.load.revision, job.fingerprints["model"])
    history = trainer.state.log_history
    write_log(history, work / LOG_NAME, {"held_out/ras"})
    if aligned.held_out is not None:
        aligned.held_out.write(work / _HELD_OUT)
    shutil.rmtree(work / "trainer")
    _gather_judgements(work)
    steps = trainer.state.global_step
    return {
        "steps": steps,
        "prompts": len(prepared.data),
        "samples": steps * config.batch_size * config.sampling.group,
        "cut": _mean(history, "completions/clipped_ratio"),
        "unscored": _mean(history, "grao/unscored"),
        **_measured(aligned, config.seed),
        "trainable_parameters": sum(part.numel() for part in model.parameters() if part.requires_grad),
        "unchanged": unchanged,
        "notes": [*prepared.notes, *_without_reference(history), *_fallen(aligned, config)],
    }


def _gather_judgements(work: Path) -> None:
    """What was said to the other processes, behind what was said to the first."""
    from alignkeep.align.aligning import JUDGEMENTS

    for more in sorted(work.glob(f"{JUDGEMENTS}.*")):
        append_rows(work / JUDGEMENTS, recover_rows(more))
        more.unlink()


def _refuse_equal_rewards(history: list[dict[str, Any]], config: AlignConfig) -> None:
    """A run whose groups all had equal rewards learned nothing from them."""
    name = "grao/flat" if config.method == "grao" else "frac_reward_zero_std"
    flat = [row[name] for row in history if row.get(name) is not None]
    if flat and min(flat) == 1:
        raise NoEffectError(
            "align.reward",
            seen="rewards that were equal within every group",
            expected="a reward that tells some answers apart",
            remedy="try the reward on a few answers; sample at a higher temperature or in larger groups",
        )
    if _mean(history, _UNSCORED) == 1:
        raise NoEffectError(
            "align.reward", seen="not one reference that could be scored",
            expected="some that answers are compared with",
            remedy="mend the reward, or use --method grpo, which needs no references",
        )  # fmt: skip


def _without_reference(history: list[dict[str, Any]]) -> list[str]:
    """Groups whose reference could not be scored."""
    share = _mean(history, _UNSCORED) or 0.0
    return [f"{share:.1%} of the references could not be scored: their groups learned from the samples alone"] * bool(
        share
    )


def _measured(aligned: Aligned, seed: int) -> dict[str, Any]:
    """RAS and NAG with their intervals."""
    if aligned.held_out is None:
        return {"ras": None, "ras_or_tie": None, "ras_before": None, "nag": None, "held_out_cut": None}
    import numpy as np

    from alignkeep.judging.statistics import paired_bootstrap, wilson

    before, (better, equal, scored) = aligned.held_out.looks[0].wins, aligned.held_out.looks[-1].wins
    gains = aligned.held_out.gains()
    nag = paired_bootstrap(gains, np.zeros_like(gains), seed=seed)
    found = {
        "ras": wilson(better, scored),
        "ras_or_tie": wilson(better + equal, scored),
        "ras_before": wilson(before[0], before[2]),
        "nag": nag,
    }
    cut = sum(aligned.held_out.looks[-1].cut)
    return {name: estimate.as_json() for name, estimate in found.items()} | {"held_out_cut": cut}


def _fallen(aligned: Aligned, config: AlignConfig) -> list[str]:
    """A word where the model was better before the end, by more than the best of so many looks is by luck."""
    held_out = aligned.held_out
    if held_out is None:
        return []
    from alignkeep.judging.statistics import paired_bootstrap

    step, then, end = held_out.best()
    alpha = 0.05 / len(held_out.looks)
    fall = paired_bootstrap(end, then, seed=config.seed, confidence=1 - alpha)
    if not fall.high < 0:
        return []
    remedy = f"end at trainer.max_steps={step}" if step else "lower the learning rate"
    if config.method == "grao" and not config.objective.bounded:
        remedy += ", or set objective.bounded=true (a beaten reference is unlearned without bound)"
    return [f"it was better before: {then.mean():.1%} at step {step}, {end.mean():.1%} at the end; {remedy}"]


def _mean(history: list[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in history if row.get(name) is not None]
    return sum(values) / len(values) if values else None
