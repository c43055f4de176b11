"""Why a curation chose as it did, on disk: `explanation.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from alignkeep.runs.results import read_result, write_result

EXPLANATION_NAME = "explanation.json"
Point = tuple[float, float]


@dataclass(frozen=True)
class Neighbour:
    """The nearest of the references: its text, the cosine to it, and the share of the example's mass that the plan
    brings to it (None where there is no plan)."""

    index: int
    text: str
    cosine: float
    share: float | None


@dataclass(frozen=True)
class Shown:
    """One example, its mass against the mean, and what it is near to."""

    index: int
    asked: str
    answered: str
    mass: float
    kept: bool
    safe: Neighbour | None = None
    harmful: Neighbour | None = None


@dataclass(frozen=True)
class Explanation:
    """`dropped` are the examples of least mass, the least first; `edges` bound the bins in which `kept_counts` and
    `dropped_counts` count examples by their mass against the mean; `points` is a plane through the sets. `title` says
    what the method does, and `weighed` whether it gives every example a mass."""

    method: str
    n: int
    kept: int
    dropped: tuple[Shown, ...]
    edges: tuple[float, ...]
    kept_counts: tuple[int, ...]
    dropped_counts: tuple[int, ...]
    points: Mapping[str, tuple[Point, ...]] = field(default_factory=dict[str, tuple[Point, ...]])
    title: str = ""
    weighed: bool = True

    def write(self, folder: Path) -> Path:
        """Put it into `folder` (atomically)."""
        return write_result(folder / EXPLANATION_NAME, self)


def read_explanation(path: Path) -> Explanation:
    """Raises DataError naming the file where it is none of ours."""
    return read_result(Explanation, path, writer="alignkeep curate", again="curate again with --fresh")
