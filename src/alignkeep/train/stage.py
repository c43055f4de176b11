"""The stage `train`: check, load, tune with TRL, save, open again, and only then put the folder under its name."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep import extras
from alignkeep.checkpoint.records import Record
from alignkeep.citations import Cited
from alignkeep.data import fingerprint_data
from alignkeep.errors import RecipeError
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.progress import Progress
from alignkeep.runs.perform import perform
from alignkeep.stage import Finished, Inputs, Job, Made, Misfit, Plan, Stage, Task
from alignkeep.train.config import TrainConfig
from alignkeep.train.defences import find_defence
from alignkeep.works import Citation

if TYPE_CHECKING:
    from alignkeep.charts.figures import Figure, Series
    from alignkeep.train.prepare import Prepared
    from alignkeep.train.tuning import Tuned

__all__ = ["TRAIN", "TrainResult", "plan", "train"]


@dataclass(frozen=True)
class TrainResult:
    """`folder` is usable as a model at once. `final_loss` is the last logged one, per answer token, in nats.

    `examples` counts those learned from; `truncated` of them lost a part of their answer to `max_length`, `too_long`
    examples had nothing of it within that length; `unchanged` names tensors that came out as they were.
    """

    folder: Path
    steps: int
    examples: int
    final_loss: float
    log: Path
    truncated: int = 0
    too_long: int = 0
    trainable_parameters: int = 0
    unchanged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def train(
    config: TrainConfig,
    *,
    out: Path,
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
) -> TrainResult:
    """Tune `config.model` on `config.data` and write the model or adapter to `out`.

    Killed and called again it continues from its last checkpoint and ends in the same bytes; called again after it
    finished it does nothing. Under torchrun every process calls it and the first one writes. Raises RecipeError,
    DataError, CheckpointError or ShapeError before any work is spent, NoEffectError where the tune changed nothing,
    MachineError (state kept) where memory or disk ran out.
    """
    return perform(TRAIN, config, out=out, overwrite=overwrite, resume=resume, progress=progress)


def plan(config: TrainConfig) -> dict[str, Any]:
    """What `train(config)` would do, with estimates; raises its user errors, loads no model, writes nothing."""
    return TRAIN.plan(config).as_json()


class TrainStage(Stage[TrainConfig, "Prepared", TrainResult]):
    name = "train"
    config = TrainConfig
    references = (
        *(("data",), ("weights",), ("alignguard", "data"), ("defence", "data")),
        *(("probe", "harmful"), ("probe", "harmless")),
    )
    makes_model = True
    together = True
    less_memory = "halve batch_size and double accumulate"
    extra = extras.TRAIN

    def misfit(self, config: TrainConfig, made: Made) -> Misfit | None:
        """The weights that are made are those that are used."""
        if not made.is_weighted:
            return None
        if config.weights is not None:
            return Misfit(
                ("train", "weights"), "weights beside a curate stage, which makes them",
                "one source of weights", "drop train.weights, or the curate stage",
            )  # fmt: skip
        if made.chosen_from != config.data:
            return Misfit(
                ("curate", "data"), f"{made.chosen_from}, of which nothing is learned",
                f"the tune's own data, {config.data}", "drop curate.data",
            )  # fmt: skip
        return None

    def revision_of(self, config: TrainConfig) -> str | None:
        return config.load.revision

    def announce(self, config: TrainConfig, made: Made) -> Made:
        return replace(made, data=config.data, columns=config.columns)

    def feed(self, config: TrainConfig, made: Made) -> TrainConfig:
        """On the weights of the recipe's curation where it has one."""
        return config if made.weights is None else config.model_copy(update={"weights": made.weights})

    def hand_on(self, config: TrainConfig, made: Made, folder: Path | None) -> Made:
        form = "adapter" if config.has_adapter else "model"
        return made.with_model(folder, form=form, formed_by=(("train", "method"), config.method))

    def prepare(self, config: TrainConfig) -> Prepared:
        from alignkeep.train.prepare import prepare

        return prepare(config)

    def inputs(self, task: Task[TrainConfig, Prepared]) -> Inputs:
        config = task.config
        return Inputs(_fingerprints(config), _local_inputs(config), config.model_dump(mode="json"), seed=config.seed)

    def plan(self, config: TrainConfig) -> Plan:
        from alignkeep.train.plan import plan_tune

        return Plan(plan_tune(config))

    def work(self, prepared: Prepared, job: Job) -> dict[str, object]:
        from alignkeep.train.tuning import tune
        from alignkeep.trainers.processes import by_first

        tuned = tune(prepared.config, prepared, job.folder, job.progress)
        made = job.folder / "trainer" / "made"
        tuned.trainer.save_model(str(made))
        return by_first(lambda: _write(prepared, tuned, made, job))

    def result(self, folder: Path) -> TrainResult:
        from alignkeep.trainers.log import LOG_NAME

        found: dict[str, Any] = Record.read(folder).result
        loss = found["final_loss"]
        return TrainResult(
            folder=folder,
            steps=found["steps"],
            examples=found["examples"],
            final_loss=float("nan") if loss is None else loss,
            log=folder / LOG_NAME,
            truncated=found["truncated"],
            too_long=found.get("too_long", 0),
            trainable_parameters=found["trainable_parameters"],
            unchanged=tuple(found["unchanged"]),
            notes=tuple(found["notes"]),
        )

    def methods(self, settings: Mapping[str, Any], metrics: Iterable[str] | None = None) -> tuple[Cited, ...]:
        """None of a stranger's defence whose module is not here any more."""
        method = str(settings.get("method", "lora"))
        name = (settings.get("defence") or {}).get("name") if method in ("full", "lora") else method
        trained = ("sft",) if method == "full" else ("sft", "lora")
        try:
            one = None if name is None else find_defence("train.method", str(name))
        except RecipeError:
            return trained
        if one is None or not (one.works or one.departures):
            return trained
        return (*trained, Citation(one.name, one.title, tuple(one.works), tuple(one.departures)))

    def figures(self, finished: Sequence[Finished], series: Series) -> tuple[Figure, ...]:
        from alignkeep.train.figures import figures_of

        return figures_of(finished, series)


TRAIN = TrainStage()


def _local_inputs(config: TrainConfig) -> list[Path]:
    defended = {} if config.chosen is None else config.chosen.files
    named = (config.model, config.data, config.weights, *defended.values(), *_probed(config).values())
    return [path for path in map(Path, filter(None, named)) if path.exists()]


def _fingerprints(config: TrainConfig) -> dict[str, str]:
    from alignkeep.train.weights import weights_file
    from alignkeep.trainers.base import full_model

    full_model(config.model, config.load.revision, "train")
    inputs = {
        "model": fingerprint_model(config.model, config.load.revision),
        "data": fingerprint_data(config.data),
    }
    if config.weights is not None:
        inputs["weights"] = fingerprint_data(weights_file(config.weights))
    chosen = config.chosen
    if chosen is not None and not chosen.is_off:
        inputs.update({name: fingerprint_data(file) for name, file in chosen.files.items()})
    inputs.update({name: fingerprint_data(file) for name, file in _probed(config).items()})
    return inputs


def _probed(config: TrainConfig) -> dict[str, str]:
    return (
        {} if config.probe is None else {"probe.harmful": config.probe.harmful, "probe.harmless": config.probe.harmless}
    )


def _write(prepared: Prepared, tuned: Tuned, made: Path, job: Job) -> dict[str, object]:
    from alignkeep.train.probe import PROBED
    from alignkeep.train.tuning import MEASURED_NAME
    from alignkeep.trainers.base import check_unwritten
    from alignkeep.trainers.log import LOG_NAME, write_log
    from alignkeep.trainers.saving import place_adapter, place_model

    config, trainer, work = prepared.config, tuned.trainer, job.folder
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if config.has_adapter:
        unchanged = place_adapter(
            made, work, prepared.base, model, reference=config.model, revision=config.load.revision
        )
    else:
        unchanged = place_model(made, work, prepared.base, model, trust_remote_code=config.load.trust_remote_code)
    check_unwritten(config.model, config.load.revision, job.fingerprints["model"])
    losses = write_log(trainer.state.log_history, work / LOG_NAME, {PROBED})
    shutil.rmtree(work / "trainer")
    (work / MEASURED_NAME).unlink(missing_ok=True)
    return {
        "steps": trainer.state.global_step,
        "examples": len(prepared.rows.weights),
        "dropped": prepared.rows.dropped,
        "truncated": prepared.rows.truncated,
        "too_long": prepared.rows.late,
        "final_loss": losses[-1] if losses else None,
        "log": LOG_NAME,
        "trainable_parameters": sum(part.numel() for part in model.parameters() if part.requires_grad),
        "unchanged": unchanged,
        "notes": [*prepared.notes, *tuned.outcome.notes, *_stopped(prepared, trainer.state)],
        **tuned.outcome.facts,
    }


def _stopped(prepared: Prepared, state: Any) -> list[str]:
    """What the probe ended the tune for."""
    if prepared.probe is None or not prepared.probe.stopped:
        return []
    first, last = prepared.probe.history[0], prepared.probe.history[-1]
    return [
        f"stopped at step {last.step} of {state.max_steps}: the log-odds of refusal fell from "
        f"{first.refusal_log_odds:.1f} to {last.refusal_log_odds:.1f}, probe.stop_below is "
        f"{prepared.probe.stop_below:g}; the weights are those of step {prepared.probe.last_safe}, the last look within"
    ]
