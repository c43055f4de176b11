"""A trainer's history as a log of lines that a kill and a new start do not change."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkeep.checkpoint.folders import append_jsonl

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
