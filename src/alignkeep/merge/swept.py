"""A sweep of merge weights on disk: `sweep.json` once it is finished, one line for every weight while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alignkeep.checkpoint.files import write_json
from alignkeep.checkpoint.parts import append_rows, recover_rows
from alignkeep.errors import DataError
from alignkeep.runs.results import as_plain, from_plain, read_result
from alignkeep.types import Estimate, Measurement, Trade

SWEEP_NAME = "sweep.json"
PARTIAL_NAME = "sweep.partial.jsonl"
_CHOICE = ("picked", "rule", "margin", "why", "front", "prompts")  # in this order, before the settings
_OWN = (*_CHOICE, "base", "tuned", "weights")
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
        """As in `sweep.json`: the settings stand beside the rest."""
        plain = as_plain(self)
        settings, weights = plain.pop("settings"), plain.pop("trades")
        return {**{name: plain[name] for name in _CHOICE}, **settings, **plain, "weights": weights}

    def write(self, folder: Path) -> Path:
        """Put it into `folder` (atomically)."""
        return write_json(folder / SWEEP_NAME, self.as_json())


def read_sweep(path: Path) -> SweepResult:
    """A finished sweep. Raises DataError naming the file where it is none of ours."""
    found = read_result(
        SweepResult, path, writer="alignkeep merge --sweep", again="sweep again with --fresh", folded=_folded
    )
    if not any(trade.weight == found.picked for trade in found.trades):
        raise DataError(
            str(path), seen=f"weight {found.picked:g} picked, which was not measured", expected="one of its weights",
            remedy="sweep again with --fresh, the file was changed or cut off",
        )  # fmt: skip
    return found


def _folded(data: Mapping[str, object]) -> dict[str, object]:
    own = {name: value for name, value in data.items() if name in _OWN}
    settings = {name: value for name, value in data.items() if name not in (*_OWN, "weights")}
    return {"why": "", **own, "trades": data["weights"], "settings": settings}


def add_measured(work: Path, point: Point, measured: Measurement) -> None:
    """Keep what was measured at a point, on the disk before this returns."""
    append_rows(work / PARTIAL_NAME, [{"point": point, **measured.as_json()}])


def read_measured(work: Path, count: int) -> dict[Point, Measurement]:
    """What an interrupted sweep over `count` prompts has measured."""
    found: dict[Point, Measurement] = {}
    for row in recover_rows(work / PARTIAL_NAME):
        measured, point = from_plain(Measurement, row), str(row["point"])
        if len(measured.verdicts) == count:
            found["base" if point == "base" else "tuned" if point == "tuned" else float(point)] = measured
    return found
