"""What an injection found, on disk: `injection.json`, for people and the report, and `rank_one.safetensors`, the
factors of every edit, from which the edited weights can be made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alignkeep.runs.results import read_result, write_result
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
    prompts: Mapping[str, int]
    base: Tried
    chosen: Tried
    trials: tuple[Tried, ...]
    layers: tuple[LayerFacts, ...]
    matrices: tuple[MatrixFacts, ...]
    skipped: tuple[str, ...]
    shifts: tuple[tuple[float, float], ...]

    def write(self, folder: Path) -> Path:
        """Put it into `folder` (atomically)."""
        return write_result(folder / INJECTION_NAME, self)


def read_injection(path: Path) -> Injection:
    """Raises DataError naming the file where it is none of ours."""
    return read_result(Injection, path, writer="alignkeep inject", again="inject again with --fresh")
