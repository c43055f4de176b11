"""The weighted mean of base and tuned models.

Paper
    Wortsman et al., Model soups, arXiv:2203.05482. Between an aligned base and its tune: Farn et al., Safeguard
    Fine-Tuned LLMs Through Pre- and Post-Tuning Model Merging, arXiv:2412.19512.

Departures
    Those of merging at all, which every merge cites (`citations.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Float32

from alignkeep.merge.method import Asked, Identity, MergeMethod, NoOptions, TensorMerge, only_model
from alignkeep.merge.pieces import Array, Pieces


@dataclass(frozen=True)
class Linear(TensorMerge):
    """sum_i weights_i x_i, the base first. Nothing is normalised here. Laws: one weight of 1 among zeros gives that
    model's numbers exactly; convex weights give equal numbers back exactly. Raises ValueError when weights and models
    differ in number.
    """

    weights: tuple[float, ...]
    needs_finite = False

    def merged(self, pieces: Pieces) -> Iterator[Float32[Array, " n"]]:
        for piece in pieces:
            yield weighted_sum((piece.base, *piece.tuned), self.weights)

    @property
    def identity(self) -> Identity:
        return only_model(self.weights)


class LinearMethod(MergeMethod[NoOptions]):
    """Its works are cited by every merge."""

    name = "linear"
    title = "the weighted mean of the base and the mean of the tuned models"
    options = NoOptions
    weighs = "share"
    adapter = "scaled"
    in_auto = True

    def tensor(self, asked: Asked[NoOptions]) -> Linear:
        return weighted_mean(asked.weight, asked.models)


def weighted_mean(weight: float, models: int) -> Linear:
    """(1 - weight) base + weight mean(tuned)."""
    return Linear((1 - weight, *(weight / models,) * models))


def weighted_sum(arrays: Sequence[Float32[Array, " n"]], weights: Sequence[float]) -> Float32[Array, " n"]:
    """sum_i weights_i x_i, written into one of the arrays, the others being overwritten. A convex one is a running
    mean: it keeps equal numbers.
    """
    parts = [(array, weight) for array, weight in zip(arrays, weights, strict=True) if weight != 0]
    if not parts:
        arrays[0].fill(0)
        return arrays[0]
    (result, sum_of_weights), *rest = parts
    if all(weight > 0 for _, weight in parts) and abs(math.fsum(weights) - 1) < 1e-12:
        for array, weight in rest:
            sum_of_weights += weight
            _between(result, array, weight / sum_of_weights)
        return result
    result *= sum_of_weights
    for array, weight in rest:
        array *= weight
        result += array
    return result


def _between(first: Float32[Array, " n"], second: Float32[Array, " n"], share: float) -> None:
    """first + share (second - first), into `first`; counted from the nearer end, so that both ends are exact."""
    if share < 0.5:
        second -= first
        second *= share
        first += second
    else:
        first -= second
        first *= 1 - share
        first += second


METHODS = (LinearMethod(),)
