"""Methods that add scaled task vectors: whole, or with most of their entries dropped, or put to the vote.

The mathematics is that of `task_vectors.py` (the sum, the vote) and `sparsify.py` (what is dropped), where papers and
departures stand. Where entries are drawn by chance the mean of the models is taken, else their sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from alignkeep.errors import NoEffectError, RecipeError
from alignkeep.merge.method import Asked, MergeMethod, NoOptions
from alignkeep.merge.sparsify import Magnitude, Outliers, Random, RankedRandom, Sparsifier
from alignkeep.merge.task_vectors import Election, TaskVectors
from alignkeep.settings import Checked
from alignkeep.works import Citation

_DENSITY = "share of a task vector that is kept"
_RESCALE = "what makes up for what is dropped: division by the share kept, or the old sum of magnitudes (l1)"


class Ties(Checked):
    density: float = Field(default=0.2, ge=0, le=1, description=_DENSITY)  # the paper's, section 4: the largest 20 %


class Dare(Checked):
    density: float = Field(default=0.5, ge=0, le=1, description=_DENSITY)
    rescale: Literal["none", "probability", "l1"] = Field(default="probability", description=_RESCALE)


class Della(Dare):
    epsilon: float = Field(default=0.15, ge=0, le=1, description="half-width of the range of probabilities")


class Breadcrumbs(Checked):
    density: float = Field(default=0.9, ge=0, le=1, description=_DENSITY)
    gamma: float = Field(default=0.01, ge=0, le=1, description="share of the largest entries that is dropped")


@dataclass(frozen=True)
class TaskVectorMethod(MergeMethod[Any]):
    """`sparsifier` makes of the options and the seed what drops entries; `consensus` and `normalize` are those of
    `TaskVectors`."""

    name: str
    title: str
    cites: tuple[Citation, ...]
    options: type[Checked] = NoOptions
    sparsifier: Callable[[Any, int], Sparsifier] | None = None
    is_mean: bool = False
    consensus: Election | None = None
    normalize: bool = False
    bytes_per_second: float = 600e6

    def check(self, options: Any) -> None:
        if getattr(options, "density", 1) == 0:
            raise NoEffectError(
                "options.density",
                seen="0, which keeps nothing of the tune",
                expected="a share above 0",
                remedy="raise it, or ask for the base with weight 0",
            )
        if isinstance(options, Della) and 0 < options.density < 1:
            density, epsilon = options.density, options.epsilon
            if not epsilon <= density <= 1 - epsilon:
                raise RecipeError(
                    "options.epsilon",
                    seen=f"{epsilon:g} around a density of {density:g}",
                    expected="density - epsilon and density + epsilon within [0, 1]",
                    remedy="choose a smaller epsilon",
                )

    def tensor(self, asked: Asked[Any]) -> TaskVectors:
        one = None if self.sparsifier is None else self.sparsifier(asked.options, asked.seed)
        weights = ((1 / asked.models) if self.is_mean else 1.0,) * asked.models
        return TaskVectors(weights, (one,) * asked.models, self.consensus, self.normalize, asked.weight)


def _largest(options: Ties, seed: int) -> Sparsifier:
    return Magnitude(options.density)


def _by_chance(options: Dare, seed: int) -> Sparsifier:
    return Random(options.density, None if options.rescale == "none" else options.rescale, seed)


def _by_rank_and_chance(options: Della, seed: int) -> Sparsifier:
    rescale = None if options.rescale == "none" else options.rescale
    return RankedRandom(options.density, options.epsilon, rescale, seed)


def _without_outliers(options: Breadcrumbs, seed: int) -> Sparsifier:
    return Outliers(options.density, options.gamma)


ARITHMETIC = Citation("task_arithmetic", "Adding scaled task vectors", ("ilharco2023editing",))
TIES = Citation("ties", "Trimmed task vectors with one sign per entry", ("yadav2023ties",),
                ("Magnitudes are ranked within a tensor, not over the whole model.",))  # fmt: skip
DARE = Citation("dare", "Task vectors with entries dropped by chance and rescaled", ("yu2024language",),
                ("Draws depend on seed and tensor name, not on the order of the tensors.",))  # fmt: skip
DELLA = Citation("della", "Task vectors with entries dropped by rank and chance", ("deep2024della",),
                 ("Ranks are taken within a row of a matrix.",))  # fmt: skip
BREADCRUMBS = Citation("breadcrumbs", "Task vectors without their largest and smallest entries", ("davari2024model",),
                       ("Magnitudes are ranked within a tensor.",))  # fmt: skip
_RANKING = 150e6  # bytes a second; chosen: measured in benchmarks/bench_merge.py on two cores

METHODS = (
    TaskVectorMethod("task_arithmetic", "the base plus the task vectors times the weight", (ARITHMETIC,)),
    TaskVectorMethod("ties", "the largest entries of each task vector, one sign per entry", (TIES,), Ties, _largest,
                     consensus="sum", normalize=True, bytes_per_second=_RANKING),
    TaskVectorMethod("dare", "task vectors with entries dropped by chance", (DARE,), Dare, _by_chance, is_mean=True),
    TaskVectorMethod("dare_ties", "dare, with one sign per entry", (DARE, TIES), Dare, _by_chance, is_mean=True,
                     consensus="sum"),
    TaskVectorMethod("della", "task vectors with entries dropped by rank and chance, one sign per entry", (DELLA,),
                     Della, _by_rank_and_chance, is_mean=True, consensus="sum", normalize=True,
                     bytes_per_second=_RANKING),
    TaskVectorMethod("della_linear", "della, without a vote on signs", (DELLA,), Della, _by_rank_and_chance,
                     is_mean=True, bytes_per_second=_RANKING),
    TaskVectorMethod("breadcrumbs", "task vectors without their largest and smallest entries", (BREADCRUMBS,),
                     Breadcrumbs, _without_outliers, bytes_per_second=_RANKING),
    TaskVectorMethod("breadcrumbs_ties", "breadcrumbs, with one sign per entry", (BREADCRUMBS, TIES), Breadcrumbs,
                     _without_outliers, consensus="sum", bytes_per_second=_RANKING),
)  # fmt: skip
