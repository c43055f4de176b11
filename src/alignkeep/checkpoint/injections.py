"""What an injection found, on disk: `injection.json`, for people and the report, and `rank_one.safetensors`, the
factors of every edit, from which the edited weights can be made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignkeep.checkpoint.files import read_object, write_json
from alignkeep.checkpoint.scorecards import mapping_of, metrics_of
from alignkeep.errors import DataError
from alignkeep.types import Estimate

INJECTION_NAME = "injection.json"
FACTORS_NAME = "rank_one.safetensors"


@dataclass(frozen=True, slots=True)
class Tried:
    """One strength on the held-out prompts. `refused` says why it may not be chosen, None where it may."""

    strength: float
    rates: Mapping[str, Estimate]
    log_odds: float
    divergence: float
    refused: str | None = None

    def as_json(self) -> dict[str, object]:
        return {
            "strength": self.strength,
            "rates": {name: rate.as_json() for name, rate in self.rates.items()},
            "log_odds": self.log_odds,
            "divergence": self.divergence,
            "refused": self.refused,
        }


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """Before one block: the distance of harmful and harmless prompts (d'), the length of their difference, and what an
    edit along it does at the strength at which layers are compared (None: not tried)."""

    layer: int
    d_prime: float
    length: float
    log_odds: float | None
    divergence: float | None


@dataclass(frozen=True, slots=True)
class MatrixFacts:
    """One edited matrix: its alpha, and by how much it moves harmful and harmless prompts along the direction, in units
    of the direction's length (None: an expert that saw none)."""

    name: str
    alpha: float
    harmful: float | None
    harmless: float | None


@dataclass(frozen=True)
class Injection:
    """`strength` is what was asked for or found, as `push:0.8`; `shifts` are the shifts before every block that were
    measured on held-out harmful and harmless prompts, in units of the direction's length."""

    layer: int
    length: float
    strength: str
    right: str
    sign: str
    source: str
    base: Tried
    chosen: Tried
    trials: tuple[Tried, ...]
    layers: tuple[LayerFacts, ...]
    matrices: tuple[MatrixFacts, ...]
    skipped: tuple[str, ...]
    shifts: tuple[tuple[float, float], ...]
    prompts: Mapping[str, int]

    def as_json(self) -> dict[str, object]:
        plain = {key: getattr(self, key) for key in ("layer", "length", "strength", "right", "sign", "source")}
        return {
            **plain,
            "prompts": dict(self.prompts),
            "base": self.base.as_json(),
            "chosen": self.chosen.as_json(),
            "trials": [trial.as_json() for trial in self.trials],
            "layers": [asdict(layer) for layer in self.layers],
            "matrices": [asdict(matrix) for matrix in self.matrices],
            "skipped": list(self.skipped),
            "shifts": [list(pair) for pair in self.shifts],
        }

    def write(self, folder: Path) -> Path:
        """Put it into `folder` (atomically)."""
        return write_json(folder / INJECTION_NAME, self.as_json())


def read_injection(path: Path) -> Injection:
    """Raises DataError naming the file where it is none of ours."""
    try:
        data: Any = read_object(path)
        return Injection(
            layer=int(data["layer"]),
            length=float(data["length"]),
            strength=str(data["strength"]),
            right=str(data["right"]),
            sign=str(data["sign"]),
            source=str(data["source"]),
            base=_tried(data["base"]),
            chosen=_tried(data["chosen"]),
            trials=tuple(map(_tried, data["trials"])),
            layers=tuple(LayerFacts(**facts) for facts in data["layers"]),
            matrices=tuple(MatrixFacts(**facts) for facts in data["matrices"]),
            skipped=tuple(map(str, data["skipped"])),
            shifts=tuple((float(one), float(other)) for one, other in data["shifts"]),
            prompts={name: int(count) for name, count in data["prompts"].items()},
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            str(path),
            seen=f"{type(error).__name__}: {error}",
            expected="the injection.json that `alignkeep inject` writes",
            remedy="inject again with --fresh, the file was changed or cut off",
        ) from error


def _tried(value: object) -> Tried:
    data: Any = mapping_of(value)
    refused: Any = data.get("refused")
    return Tried(
        float(data["strength"]),
        metrics_of(data["rates"]),
        float(data["log_odds"]),
        float(data["divergence"]),
        None if refused is None else str(refused),
    )
