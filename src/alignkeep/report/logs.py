"""What the logs of trainers hold: losses of a tune, looks and terms of an alignment, and what a record adds to them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from alignkeep.checkpoint.files import parse_object
from alignkeep.input_files import open_input
from alignkeep.types import Estimate

LOG_NAME = "training_log.jsonl"
_JUDGED = ("spec", "criterion", "both_orders", "tie_margin")  # the settings of a reward that change what it says
_MOST = 1e38  # trainers count in single precision; a larger number is damage, and no axis holds it
TERMS = ("imitation", "exploration", "regulariser")
Points = tuple[tuple[float, float], ...]  # step and value, steps rising


@dataclass(frozen=True)
class Training:
    """A folder with a training log: (step, loss) in the order they were logged; of a guarded tune also (step, energy of
    the update inside the alignment subspace, energy beside it), and both for every matrix at the end; of a
    probed one (step, log-odds of refusal) and (step, divergence)."""

    label: str
    losses: Points
    energies: tuple[tuple[float, float, float], ...] = ()
    by_matrix: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    log_odds: Points = ()
    divergences: Points = ()


@dataclass(frozen=True)
class Alignment:
    """A folder of the stage `align`: (step, share of the held-out answers that are better than their reference) and
    (step, share of those at least as good); of GRAO every one of `TERMS` as (step, value).

    `estimates` and `shares` (of `samples`) are the record's, without what is null or damaged; `judged` is equal for
    runs that were looked at with the same reward and prompts.
    """

    label: str
    looks: Points = ()
    ties: Points = ()
    terms: Mapping[str, Points] = field(default_factory=dict[str, Points])
    estimates: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])
    shares: Mapping[str, float] = field(default_factory=dict[str, float])
    samples: int = 0
    judged: str = ""


def read_training(log: Path, label: str, facts: Mapping[str, object]) -> Training:
    """A tune from its log and the facts of its record."""
    inside, beside = (_column(log, f"alignguard/{side}") for side in ("inside", "beside"))
    return Training(
        label=label,
        losses=_column(log, "loss"),
        energies=tuple((step, one, other) for (step, one), (_, other) in zip(inside, beside, strict=False)),
        by_matrix=_by_matrix(facts),
        log_odds=_column(log, "safety/refusal_log_odds"),
        divergences=_column(log, "safety/divergence"),
    )


def read_alignment(log: Path, label: str, facts: Mapping[str, object]) -> Alignment:
    """An alignment from its log and the facts of its record."""
    result, config, inputs = (_inner(facts, name) for name in ("result", "config", "inputs"))
    looks, ties = (_column(log, f"held_out/{name}") for name in ("ras", "ras_or_tie"))
    terms = {name: _column(log, f"grao/{name}") for name in TERMS}
    estimates = {name: _estimate(result.get(name)) for name in ("ras", "ras_or_tie", "ras_before", "nag")}
    shares = {name: _number(result.get(name)) for name in ("cut", "unscored")}
    reward, held_out = _inner(config, "reward"), _inner(config, "held_out")
    judged = [*(reward.get(name) for name in _JUDGED), inputs.get("held_out.data"), held_out.get("limit")]
    return Alignment(
        label=label,
        looks=_shares(looks),
        ties=_shares(ties),
        terms={name: points for name, points in terms.items() if points},
        estimates={name: one for name, one in estimates.items() if one is not None},
        shares={name: share for name, share in shares.items() if share is not None and 0 <= share <= 1},
        samples=int(_number(result.get("samples")) or 0),
        judged=json.dumps(judged, sort_keys=True),
    )


def rows_of(path: Path) -> Iterator[tuple[Mapping[str, object], str]]:
    """Every row of a file of JSON lines, and where it stands; none without a file. DataError for a broken row."""
    if not path.exists():
        return
    with open_input(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield parse_object(line, f"{path}:{number}"), f"{path}:{number}"


def _column(path: Path, name: str) -> Points:
    """(step, value) of the rows that have both; the last word on a step counts, and steps rise."""
    found: dict[float, float] = {}
    for row, _ in rows_of(path):
        step, value = _number(row.get("step")), _number(row.get(name))
        if step is not None and value is not None:
            found[step] = value
    return tuple(sorted(found.items()))


def _number(value: object) -> float | None:
    """A number as a trainer can have counted it, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _MOST else None  # NaN is not


def _shares(points: Points) -> Points:
    return tuple((step, share) for step, share in points if 0 <= share <= 1)


def _estimate(value: object) -> Estimate | None:
    """A number with its interval; None where one of them is missing or nothing was counted."""
    parts = value if isinstance(value, Mapping) else {}
    found, low, high, n = (_number(parts.get(name)) for name in ("value", "low", "high", "n"))
    if found is None or low is None or high is None or n is None or n < 1:
        return None
    return Estimate(found, low, high, int(n))


def _inner(facts: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = facts.get(name)
    return {str(key): one for key, one in value.items()} if isinstance(value, Mapping) else {}


def _by_matrix(facts: Mapping[str, object]) -> dict[str, tuple[float, float]]:
    """What a guarded tune's record says of every matrix; nothing where it is damaged or another stage's."""
    found = _inner(facts, "result").get("energies")
    pairs = found.items() if isinstance(found, Mapping) else ()
    return {
        str(name): (float(pair[0]), float(pair[1]))
        for name, pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(one, int | float) for one in pair)
    }
