"""Why a curation chose as it did, on disk: `explanation.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alignkeep.checkpoint.files import read_object, write_json
from alignkeep.errors import DataError

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
    dropped: Sequence[Shown]
    edges: Sequence[float]
    kept_counts: Sequence[int]
    dropped_counts: Sequence[int]
    points: Mapping[str, Sequence[Point]] = field(default_factory=dict[str, Sequence[Point]])
    title: str = ""
    weighed: bool = True

    def write(self, folder: Path) -> Path:
        """Put it into `folder` (atomically)."""
        return write_json(folder / EXPLANATION_NAME, asdict(self))


def read_explanation(path: Path) -> Explanation:
    """Raises DataError naming the file where it is none of ours."""
    try:
        data: Any = read_object(path)
        return Explanation(
            method=str(data["method"]),
            n=int(data["n"]),
            kept=int(data["kept"]),
            dropped=tuple(_shown(one) for one in data["dropped"]),
            edges=tuple(map(float, data["edges"])),
            kept_counts=tuple(map(int, data["kept_counts"])),
            dropped_counts=tuple(map(int, data["dropped_counts"])),
            points={
                str(name): tuple((float(x), float(y)) for x, y in points) for name, points in data["points"].items()
            },
            title=str(data.get("title", data["method"])),
            weighed=bool(data.get("weighed", data["method"] == "sot")),
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            str(path), seen=f"{type(error).__name__}: {error}", expected="what `alignkeep curate` wrote",
            remedy="curate again, the file was changed or cut off",
        ) from error  # fmt: skip


def _shown(one: Any) -> Shown:
    near = {name: None if one[name] is None else Neighbour(**one[name]) for name in ("safe", "harmful")}
    return Shown(**{**one, **near})
