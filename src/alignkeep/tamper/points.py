"""The points of the curves, one after the other: a model is tampered with, asked, and forgotten.

What was measured is on the disk at once, so that a killed run goes on with the next point.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from alignkeep.checkpoint.files import write_text
from alignkeep.checkpoint.parts import append_rows, recover_rows
from alignkeep.errors import DataError, NoEffectError
from alignkeep.inject.bypass import ablated, find_bypass
from alignkeep.judging.judges import load_judge
from alignkeep.judging.measure import PromptMeasure
from alignkeep.judging.metrics import HARM_REFUSAL
from alignkeep.merge.config import MergeConfig
from alignkeep.merge.stage import merge
from alignkeep.models.adapters import fold_adapter
from alignkeep.models.config import LoadConfig
from alignkeep.models.folders import base_of, localise, resolve
from alignkeep.models.loading import LoadedModel, load_model
from alignkeep.progress import Progress
from alignkeep.runs.results import from_plain
from alignkeep.stage import Job
from alignkeep.tamper.curve import Attack
from alignkeep.tamper.prepare import Prepared, tune_of
from alignkeep.train.stage import train
from alignkeep.types import Measurement

PARTIAL_NAME = "tamper.partial.jsonl"
Side = Literal["model", "base"]
_AT_WORK = ("whole", "tunes")  # folders of models, gone once a point is measured


class Key(NamedTuple):
    """A point of one side's curve."""

    side: Side
    attack: Attack
    examples: int = 0


@dataclass(frozen=True)
class Measured:
    """What was measured at a point, and the block that gave the direction of an ablation."""

    measurement: Measurement
    layer: int | None = None


def measure_points(prepared: Prepared, measure: PromptMeasure, job: Job) -> dict[Key, Measured]:
    """Every point of model and base: both as they are, both ablated, then the tunes.

    Raises NoEffectError where the model, or the base, refuses no harmful prompt to begin with, DataError where the
    judge can place none of its answers, and what loading, tuning and asking raise.
    """
    found = _read(job.folder, len(measure.prompts))
    wholes: dict[Side, _Whole] = {}
    for key in points_of(prepared):
        if key not in found:
            if key.side not in wholes:
                wholes[key.side] = _whole(prepared, key.side, job)
            found[key] = _measured(prepared, wholes[key.side], key, measure, job)
            _add(job.folder, key, found[key])
        if key.attack == "none":
            _check_refuses(prepared, key.side, found[key].measurement)
    for name in _AT_WORK:
        shutil.rmtree(job.folder / name, ignore_errors=True)
    return {key: found[key] for key in points_of(prepared)}


def points_of(prepared: Prepared) -> list[Key]:
    """In the order in which they are measured: what is refused, or fails, comes before the tunes."""
    sides: tuple[Side, ...] = ("model",) if prepared.config.base is None else ("model", "base")
    ways: list[tuple[Attack, int]] = [("none", 0)]
    if prepared.config.ablation:
        ways.append(("ablation", 0))
    ways.extend(("tune", count) for count in prepared.counts)
    return [Key(side, *way) for way in ways for side in sides]


def measure_of(prepared: Prepared) -> PromptMeasure:
    config = prepared.config
    return PromptMeasure(prepared.asked, judge=load_judge(config.judge), generation=config.generation)


class _Whole(NamedTuple):
    """A full model to load and to tune."""

    reference: str
    load: LoadConfig


def _whole(prepared: Prepared, side: Side, job: Job) -> _Whole:
    """The model; of an adapter the folder in which it is merged into its base, for as long as it is needed."""
    config = prepared.config
    load = config.load if side == "model" else config.load.model_copy(update={"revision": None})
    reference = config.model if side == "model" else str(config.base)
    checkpoint = localise(resolve(reference, load.revision, base=config.base if side == "model" else None))
    if not checkpoint.is_adapter or checkpoint.folder is None:
        return _Whole(reference, load)
    base, revision = base_of(checkpoint.folder, config.base)
    merging = MergeConfig(
        base=base, tuned=(str(checkpoint.folder),), method="linear", weight=1.0,
        load=load.model_copy(update={"revision": revision}),
    )  # fmt: skip
    made = merge(merging, out=job.folder / "whole" / side, overwrite=True, progress=job.progress)
    return _Whole(str(made.folder), load.model_copy(update={"revision": None}))


def _measured(prepared: Prepared, whole: _Whole, key: Key, measure: PromptMeasure, job: Job) -> Measured:
    if key.attack == "tune":
        with _tuned(prepared, whole, key, job) as loaded:
            return Measured(_ask(measure, loaded, key, job.progress))
    loaded = load_model(whole.reference, whole.load)
    if key.attack == "none":
        return Measured(_ask(measure, loaded, key, job.progress))
    config = prepared.config
    found = find_bypass(
        loaded, *prepared.for_direction, judge=load_judge(config.judge), generation=config.generation,
        seed=config.seed, progress=job.progress,
    )  # fmt: skip
    with ablated(loaded, found.direction):
        return Measured(_ask(measure, loaded, key, job.progress), found.layer)


def _ask(measure: PromptMeasure, loaded: LoadedModel, key: Key, progress: Progress) -> Measurement:
    how = {"none": "as it is", "ablation": "ablated"}.get(key.attack, f"{key.examples} examples")
    progress.start(f"{key.side}, {how}", len(measure.prompts))
    found = measure(loaded, progress)
    progress.done()
    return found


@contextmanager
def _tuned(prepared: Prepared, whole: _Whole, key: Key, job: Job) -> Iterator[LoadedModel]:
    """The model after a tune on the first of the drawn rows; its folder is gone after the block."""
    tunes = job.folder / "tunes"
    tunes.mkdir(exist_ok=True)
    weights = tunes / f"rows-{key.examples}.jsonl"
    write_text(weights, _weights(prepared.rows, prepared.drawn[: key.examples]))
    out = tunes / f"{key.side}-{key.examples}"
    train(tune_of(prepared.config, *whole, weights), out=out, overwrite=True, progress=job.progress)
    loaded = load_model(str(out), whole.load.model_copy(update={"revision": None}), base=whole.reference)
    if loaded.checkpoint.is_adapter:
        fold_adapter(loaded.model)
    yield loaded
    shutil.rmtree(out)


def _weights(rows: int, kept: Sequence[int]) -> str:
    """Example weights that keep these rows."""
    chosen = set(kept)
    return "".join(json.dumps({"index": row, "weight": 1.0, "kept": row in chosen}) + "\n" for row in range(rows))


def _check_refuses(prepared: Prepared, side: Side, measured: Measurement) -> None:
    config = prepared.config
    rate = measured.metrics[HARM_REFUSAL.name]
    reference = config.model if side == "model" else str(config.base)
    if rate.n == 0:
        raise DataError(
            reference, seen="answers to harmful prompts of which the judge can place none", expected="some it can",
            remedy="take another --judge, or raise --max-new-tokens",
        )  # fmt: skip
    if rate.value == 0:
        remedy = "give a model that was aligned" if side == "model" else "leave --base out"
        raise NoEffectError(
            reference, seen=f"no refusal of {rate.n} harmful prompts, before anything was done to it",
            expected="a model that refuses: here there is nothing to break", remedy=remedy,
        )  # fmt: skip


def _add(folder: Path, key: Key, measured: Measured) -> None:
    append_rows(folder / PARTIAL_NAME, [{**key._asdict(), "layer": measured.layer, **measured.measurement.as_json()}])


def _read(folder: Path, count: int) -> dict[Key, Measured]:
    """What an interrupted run over `count` prompts has measured."""
    found: dict[Key, Measured] = {}
    for row in recover_rows(folder / PARTIAL_NAME):
        measurement = from_plain(Measurement, _of_measurement(row))
        if len(measurement.verdicts) == count:
            found[Key(row["side"], row["attack"], row["examples"])] = Measured(measurement, row["layer"])
    return found


def _of_measurement(row: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name not in (*Key._fields, "layer")}
