"""The stage `train`: check, load, tune with TRL, save, open again, and only then put the folder under its name."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkeep.checkpoint.folders import OutputFolder, leads
from alignkeep.checkpoint.records import Record, identity_of
from alignkeep.data import fingerprint_data
from alignkeep.errors import DataError, MachineError
from alignkeep.models.loading import fingerprint_model
from alignkeep.progress import Progress, Silent
from alignkeep.train.config import TrainConfig
from alignkeep.train.plan import plan
from alignkeep.train.prepare import Prepared, base_of, prepare
from alignkeep.train.probe import PROBED
from alignkeep.train.tuning import SUBSPACES_NAME, Tuned, tune
from alignkeep.train.weights import weights_file
from alignkeep.trainers.base import check_unwritten
from alignkeep.trainers.failures import done_in
from alignkeep.trainers.log import write_log
from alignkeep.trainers.processes import by_first
from alignkeep.trainers.saving import place_adapter, place_model

__all__ = ["TrainResult", "plan", "train"]

_LOG_NAME = "training_log.jsonl"


@dataclass(frozen=True)
class TrainResult:
    """`folder` is usable as a model at once. `final_loss` is the last logged one, per answer token, in nats.

    `examples` counts those learned from; `truncated` of them lost a part of their answer to `max_length`; `unchanged`
    names tensors that came out as they were.
    """

    folder: Path
    steps: int
    examples: int
    final_loss: float
    log: Path
    truncated: int = 0
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
    started, out = time.monotonic(), Path(out)
    inputs = _fingerprints(config)
    identity = identity_of("train", config.model_dump(mode="json"), inputs)
    finished = _finished(out, identity) if resume else None
    if finished is not None:
        return finished
    prepared = prepare(config)
    folder = OutputFolder.open(
        out, stage="train", identity=identity, overwrite=overwrite, resume=resume, inputs=_local_inputs(config)
    )

    def work() -> None:
        tuned = tune(config, prepared, folder.work, (progress or Silent()) if leads() else Silent())
        made = folder.work / "trainer" / "made"
        tuned.trainer.save_model(str(made))
        by_first(lambda: _write(config, prepared, tuned, made, folder, inputs, started))

    # A fault that would come again is not worth continuing; a full disk is.
    return done_in(
        folder, "train", work, lambda: _finished(folder.out, identity), lambda error: isinstance(error, MachineError),
        less_memory="halve batch_size and double accumulate",
    )  # fmt: skip


def _local_inputs(config: TrainConfig) -> list[Path]:
    named = (config.model, config.data, config.weights, config.alignguard.data, *_probed(config).values())
    return [path for path in map(Path, filter(None, named)) if path.exists()]


def _fingerprints(config: TrainConfig) -> dict[str, str]:
    base_of(config)
    inputs = {
        "model": fingerprint_model(config.model, config.load.revision),
        "data": fingerprint_data(config.data),
    }
    if config.weights is not None:
        inputs["weights"] = fingerprint_data(weights_file(config.weights))
    if config.is_guarded and config.alignguard.data is not None:
        inputs["alignguard.data"] = fingerprint_data(config.alignguard.data)
    inputs.update({name: fingerprint_data(file) for name, file in _probed(config).items()})
    return inputs


def _probed(config: TrainConfig) -> dict[str, str]:
    return (
        {} if config.probe is None else {"probe.harmful": config.probe.harmful, "probe.harmless": config.probe.harmless}
    )


def _finished(out: Path, identity: str) -> TrainResult | None:
    """The result that `out` already holds of this very run."""
    try:
        record = Record.read(out)
    except DataError:
        return None
    if record.stage != "train" or record.identity != identity:
        return None
    found: dict[str, Any] = record.result
    loss = found["final_loss"]
    return TrainResult(
        folder=out,
        steps=found["steps"],
        examples=found["examples"],
        final_loss=float("nan") if loss is None else loss,
        log=out / _LOG_NAME,
        truncated=found["truncated"],
        trainable_parameters=found["trainable_parameters"],
        unchanged=tuple(found["unchanged"]),
        notes=tuple(found["notes"]),
    )


def _write(
    config: TrainConfig,
    prepared: Prepared,
    tuned: Tuned,
    made: Path,
    folder: OutputFolder,
    inputs: dict[str, str],
    started: float,
) -> None:
    trainer = tuned.trainer
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if config.has_adapter:
        unchanged = place_adapter(
            made, folder.work, prepared.base, model, reference=config.model, revision=config.load.revision
        )
    else:
        trusted = config.load.trust_remote_code
        unchanged = place_model(made, folder.work, prepared.base, model, trust_remote_code=trusted)
    check_unwritten(config.model, config.load.revision, inputs["model"])
    losses = write_log(trainer.state.log_history, folder.work / _LOG_NAME, {PROBED})
    shutil.rmtree(folder.work / "trainer")
    (folder.work / SUBSPACES_NAME).unlink(missing_ok=True)
    result = {
        "steps": trainer.state.global_step,
        "examples": len(prepared.rows.weights),
        "dropped": prepared.rows.dropped,
        "truncated": prepared.rows.truncated,
        "final_loss": losses[-1] if losses else None,
        "log": _LOG_NAME,
        "trainable_parameters": sum(part.numel() for part in model.parameters() if part.requires_grad),
        "unchanged": unchanged,
        "notes": [*prepared.notes, *_stopped(prepared, trainer.state)],
        **({"energies": tuned.energies} if tuned.energies else {}),
    }
    folder.finish(
        Record(
            stage="train",
            identity=folder.identity,
            config=config.model_dump(mode="json"),
            inputs=inputs,
            seed=config.seed,
            seconds=time.monotonic() - started,
            result=result,
        )
    )


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
