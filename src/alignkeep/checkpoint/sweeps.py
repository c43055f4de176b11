"""A sweep of merge weights on disk: `sweep.json` once it is finished, one line for every weight while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alignkeep.checkpoint.files import read_object, write_json
from alignkeep.checkpoint.parts import append_rows, recover_rows
from alignkeep.checkpoint.scorecards import mapping_of, metrics_of, test_of
from alignkeep.errors import DataError
from alignkeep.types import Estimate, Measurement, Trade, Verdict

SWEEP_NAME = "sweep.json"
PARTIAL_NAME = "sweep.partial.jsonl"
_OWN = ("picked", "rule", "margin", "why", "front", "prompts", "base", "tuned", "weights")
Point = float | Literal["base", "tuned"]


@dataclass(frozen=True)
class SweepResult:
    """Every weight that was measured, rising, and the one that was picked.

    `base` and `tuned` are the metrics of the two models themselves (none of `tuned` where there are several). `why`
    says in a sentence what made the picked weight the one; `front` are the weights that no other beats in both task and
    harm refusal; `prompts` counts what was asked by kind; `settings` say what was merged and how it was measured.
    """

    trades: tuple[Trade, ...]
    base: Mapping[str, Estimate]
    tuned: Mapping[str, Estimate]
    picked: float
    rule: str
    margin: float
    why: str
    front: tuple[float, ...]
    prompts: Mapping[str, int]
    settings: Mapping[str, object] = field(default_factory=dict)

    def at(self, weight: float) -> Trade:
        """What was measured at this weight. KeyError where it was not."""
        found = {trade.weight: trade for trade in self.trades}
        return found[weight]

    def as_json(self) -> dict[str, object]:
        return {
            "picked": self.picked,
            "rule": self.rule,
            "margin": self.margin,
            "why": self.why,
            "front": list(self.front),
            "prompts": dict(self.prompts),
            **self.settings,
            "base": {name: estimate.as_json() for name, estimate in self.base.items()},
            "tuned": {name: estimate.as_json() for name, estimate in self.tuned.items()},
            "weights": [trade.as_json() for trade in self.trades],
        }

    def write(self, folder: Path) -> Path:
        """Put it into `folder` (atomically)."""
        return write_json(folder / SWEEP_NAME, self.as_json())


def read_sweep(path: Path) -> SweepResult:
    """A finished sweep. Raises DataError naming the file where it is none of ours."""
    try:
        data = read_object(path)
        weights, front = data["weights"], data["front"]
        if not isinstance(weights, list) or not isinstance(front, list):
            raise TypeError("no list where one belongs")
        found = SweepResult(
            trades=tuple(_trade(value) for value in weights),
            base=metrics_of(data["base"]),
            tuned=metrics_of(data["tuned"]),
            picked=float(str(data["picked"])),
            rule=str(data["rule"]),
            margin=float(str(data["margin"])),
            why=str(data.get("why", "")),
            front=tuple(float(str(weight)) for weight in front),
            prompts={name: int(str(count)) for name, count in mapping_of(data["prompts"]).items()},
            settings={name: value for name, value in data.items() if name not in _OWN},
        )
        found.at(found.picked)
        return found
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            str(path),
            seen=f"{type(error).__name__}: {error}",
            expected='{"picked", "weights": [{"weight", "metrics", "tests"}], ...} as `alignkeep merge --sweep` writes',
            remedy="sweep again with --fresh, the file was changed or cut off",
        ) from error


def add_measured(work: Path, point: Point, measured: Measurement) -> None:
    """Keep what was measured at a point, on the disk before this returns."""
    append_rows(work / PARTIAL_NAME, [{"point": point, **measured.as_json()}])


def read_measured(work: Path, count: int) -> dict[Point, Measurement]:
    """What an interrupted sweep over `count` prompts has measured."""
    found: dict[Point, Measurement] = {}
    for row in recover_rows(work / PARTIAL_NAME):
        measured, point = _measurement(row), str(row["point"])
        if len(measured.verdicts) == count:
            found["base" if point == "base" else "tuned" if point == "tuned" else float(point)] = measured
    return found


def _trade(value: object) -> Trade:
    data = mapping_of(value)
    tests = mapping_of(data.get("tests") or {})
    return Trade(
        weight=float(str(data["weight"])),
        metrics=metrics_of(data["metrics"]),
        tests={name: test_of(name, test) for name, test in tests.items()},
    )


def _measurement(row: Mapping[str, Any]) -> Measurement:
    return Measurement(
        metrics=metrics_of(row["metrics"]),
        verdicts=tuple(Verdict(word) for word in row["verdicts"]),
        correct=tuple(row["correct"]),
    )
