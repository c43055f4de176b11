"""The stage `align`: check, load, train with TRL, measure, save, open again, and only then put the folder in place."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from alignkeep.align.aligning import JUDGEMENTS, Aligned, align_model
from alignkeep.align.config import AlignConfig
from alignkeep.align.plan import plan
from alignkeep.align.prepare import Prepared, base_of, prepare
from alignkeep.align.reward import fingerprint_reward
from alignkeep.checkpoint.files import append_jsonl, read_jsonl
from alignkeep.checkpoint.folders import OutputFolder, leads
from alignkeep.checkpoint.records import Record, identity_of
from alignkeep.data import fingerprint_data
from alignkeep.errors import AlignkeepError, DataError, MachineError, NoEffectError
from alignkeep.models.loading import fingerprint_model
from alignkeep.progress import Progress, Silent
from alignkeep.trainers.base import check_unwritten
from alignkeep.trainers.failures import done_in
from alignkeep.trainers.log import write_log
from alignkeep.trainers.processes import by_first
from alignkeep.trainers.saving import place_adapter, place_model
from alignkeep.trainers.watch import last_checkpoint
from alignkeep.types import Estimate

__all__ = ["AlignResult", "align", "plan"]

_LOG, _HELD_OUT = "training_log.jsonl", "held_out.jsonl"
_STATISTICS = "alignkeep.evaluate.statistics"  # math of a room that this one does not import


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
    started, out = time.monotonic(), Path(out)
    inputs = _fingerprints(config)
    identity = identity_of("align", config.model_dump(mode="json"), inputs)
    finished = _finished(out, identity) if resume else None
    if finished is not None:
        return finished
    prepared = prepare(config)
    folder = OutputFolder.open(
        out, stage="align", identity=identity, overwrite=overwrite, resume=resume, inputs=_local_inputs(config)
    )

    def work() -> None:
        aligned = align_model(config, prepared, folder.work, (progress or Silent()) if leads() else Silent())
        made = folder.work / "trainer" / "made"
        aligned.trainer.save_model(str(made))
        by_first(lambda: _write(config, prepared, aligned, made, folder, inputs, started))

    def is_worth_keeping(error: AlignkeepError) -> bool:
        """Nothing that was paid for is thrown away; what changed nothing, or never began, is not worth continuing."""
        begun = last_checkpoint(folder.work / "trainer") is not None
        return isinstance(error, MachineError) or (begun and not isinstance(error, NoEffectError))

    return done_in(
        folder, "align", work, lambda: _finished(folder.out, identity), is_worth_keeping,
        less_memory="double accumulate; if it is sampling that does not fit, lower batch_size (prompts of a step)",
    )  # fmt: skip


def _local_inputs(config: AlignConfig) -> list[Path]:
    """What is read from this disk, a judge or reward model too."""
    held_out = None if config.held_out is None else config.held_out.data
    kind, _, name = config.reward.spec.partition(":")
    judge = name if kind in ("judge", "scorer") else None
    return [path for path in map(Path, filter(None, (config.model, config.data, held_out, judge))) if path.exists()]


def _fingerprints(config: AlignConfig) -> dict[str, str]:
    base_of(config)
    inputs = {
        "model": fingerprint_model(config.model, config.load.revision),
        "data": fingerprint_data(config.data),
    }
    if config.held_out is not None:
        inputs["held_out.data"] = fingerprint_data(config.held_out.data)
    inputs["reward.spec"] = fingerprint_reward(config.reward)
    return inputs


def _finished(out: Path, identity: str) -> AlignResult | None:
    """The result that `out` already holds of this very run."""
    try:
        record = Record.read(out)
    except DataError:
        return None
    if record.stage != "align" or record.identity != identity:
        return None
    found: dict[str, Any] = dict(record.result)
    for name in ("ras", "ras_or_tie", "ras_before", "nag"):
        found[name] = None if found[name] is None else Estimate(**found[name])
    return AlignResult(folder=out, **{**found, "unchanged": tuple(found["unchanged"]), "notes": tuple(found["notes"])})


def _write(
    config: AlignConfig,
    prepared: Prepared,
    aligned: Aligned,
    made: Path,
    folder: OutputFolder,
    inputs: dict[str, str],
    started: float,
) -> None:
    trainer, work = aligned.trainer, folder.work
    _refuse_equal_rewards(trainer.state.log_history, config)
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if config.lora is None:
        trusted = config.load.trust_remote_code
        unchanged = place_model(made, work, prepared.base, model, trust_remote_code=trusted)
    else:
        unchanged = place_adapter(
            made, work, prepared.base, model, reference=config.model, revision=config.load.revision
        )
    check_unwritten(config.model, config.load.revision, inputs["model"])
    history = trainer.state.log_history
    write_log(history, work / _LOG, {"held_out/ras"})
    if aligned.held_out is not None:
        aligned.held_out.write(work / _HELD_OUT)
    shutil.rmtree(work / "trainer")
    _gather_judgements(work)
    steps = trainer.state.global_step
    result = {
        "steps": steps,
        "prompts": len(prepared.data),
        "samples": steps * config.batch_size * config.sampling.group,
        "cut": _mean(history, "completions/clipped_ratio"),
        "unscored": _mean(history, "grao/unscored"),
        **_measured(aligned, config.seed),
        "trainable_parameters": sum(part.numel() for part in model.parameters() if part.requires_grad),
        "unchanged": unchanged,
        "notes": [*prepared.notes, *_fallen(aligned, config)],
    }
    folder.finish(
        Record(
            stage="align",
            identity=folder.identity,
            config=config.model_dump(mode="json"),
            inputs=inputs,
            seed=config.seed,
            seconds=time.monotonic() - started,
            result=result,
        )
    )


def _gather_judgements(work: Path) -> None:
    """What was said to the other processes, behind what was said to the first."""
    for more in sorted(work.glob(f"{JUDGEMENTS}.*")):
        append_jsonl(work / JUDGEMENTS, read_jsonl(more))
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


def _measured(aligned: Aligned, seed: int) -> dict[str, Any]:
    """RAS and NAG with their intervals."""
    if aligned.held_out is None:
        return {"ras": None, "ras_or_tie": None, "ras_before": None, "nag": None, "held_out_cut": None}
    statistics = import_module(_STATISTICS)
    before, (better, equal, scored) = aligned.held_out.looks[0].wins, aligned.held_out.looks[-1].wins
    gains = aligned.held_out.gains()
    nag = statistics.paired_bootstrap(gains, np.zeros_like(gains), seed=seed)
    found = {
        "ras": statistics.wilson(better, scored),
        "ras_or_tie": statistics.wilson(better + equal, scored),
        "ras_before": statistics.wilson(before[0], before[2]),
        "nag": nag,
    }
    cut = sum(aligned.held_out.looks[-1].cut)
    return {name: estimate.as_json() for name, estimate in found.items()} | {"held_out_cut": cut}


def _fallen(aligned: Aligned, config: AlignConfig) -> list[str]:
    """A word where the model was better before the end, by more than the best of so many looks is by luck."""
    held_out = aligned.held_out
    if held_out is None:
        return []
    step, then, end = held_out.best()
    alpha = 0.05 / len(held_out.looks)
    fall = import_module(_STATISTICS).paired_bootstrap(end, then, seed=config.seed, confidence=1 - alpha)
    if not fall.high < 0:
        return []
    remedy = f"end at trainer.max_steps={step}" if step else "lower the learning rate"
    if config.method == "grao" and config.objective.min_reference_advantage is None:
        remedy += ", or set objective.min_reference_advantage=0 (a beaten reference is unlearned without bound)"
    return [f"it was better before: {then.mean():.1%} at step {step}, {end.mean():.1%} at the end; {remedy}"]


def _mean(history: list[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in history if row.get(name) is not None]
    return sum(values) / len(values) if values else None
