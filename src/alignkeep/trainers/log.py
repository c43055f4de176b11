"""A trainer's history as a log of lines that a kill and a new start do not change."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkeep.charts.figures import Points
from alignkeep.checkpoint.files import append_jsonl, rows_of

LOG_NAME = "training_log.jsonl"
_MOST = 1e38  # trainers count in single precision; a larger number is damage, and no axis holds it
_FIRST = ("step", "epoch", "loss", "learning_rate", "grad_norm")
# TRL counts `num_tokens` from the last start only; the rest are times.
_LEFT_OUT = ("num_tokens", "step_time")


def write_log(history: Sequence[Mapping[str, Any]], log: Path, looks: Collection[str]) -> list[float]:
    """Put the steps, and the rows that hold one of `looks`, into the log; returns the losses of the steps."""
    rows = [_row(row) for row in history if {"loss", *looks} & row.keys()]
    log.unlink(missing_ok=True)
    append_jsonl(log, rows)
    return [row["loss"] for row in rows if "loss" in row]


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """In one order: a checkpoint sorts the keys of the rows before it."""
    rest = sorted(key for key in row if key not in (*_FIRST, *_LEFT_OUT) and not key.startswith("profiling/"))
    return {key: row[key] for key in (*_FIRST, *rest) if key in row}


def column(path: Path, name: str) -> Points:
    """(step, value) of the rows that have both; the last word on a step counts, and steps rise."""
    found: dict[float, float] = {}
    for row, _ in rows_of(path):
        step, value = number(row.get("step")), number(row.get(name))
        if step is not None and value is not None:
            found[step] = value
    return tuple(sorted(found.items()))


def number(value: object) -> float | None:
    """A number as a trainer can have counted it, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _MOST else None  # NaN is not


def inner(facts: Mapping[str, object], name: str) -> Mapping[str, object]:
    """A group of a record; nothing where it is damaged."""
    value = facts.get(name)
    return {str(key): one for key, one in value.items()} if isinstance(value, Mapping) else {}
