"""Model Stock: how far to go from the base towards the mean of several tuned models, read off the angle between them.

Paper
    Jang, Yun and Han, Model Stock: all we need is just a few fine-tuned models, arXiv:2403.19522.

Symbols (paper -> here)
    N          number of tuned models, at least 2
    theta      angle between two task vectors (tuned - base) of one tensor; cos theta: `cosine`, the mean over pairs
    t          `share` of the mean: N cos / (1 + (N - 1) cos)

Departures from the paper
    1. The ratio is taken per tensor; the paper's is per layer.
    2. A denominator of 0 (task vectors that add up to nothing) gives share 0: the base. It cannot be negative but by
       rounding; below 1e-6 it counts as 0, as in mergekit 0.1.5.
    3. A task vector that is all zero has cosine 0 with the others.

Departure from mergekit 0.1.5
    Its cosines divide by 1e-6 where the product of two norms is less, so that small task vectors count as more
    orthogonal than they are, and smaller ones as orthogonal. Here a cosine does not depend on lengths.

A negative mean cosine gives a negative share, as printed: the merge then leaves the base away from the mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float32

from alignkeep.merge.linear import weighted_sum
from alignkeep.merge.method import Asked, MergeMethod, NoOptions, TensorMerge
from alignkeep.merge.pieces import Array, Gram, Pieces
from alignkeep.works import Citation

SINGULAR = 1e-6  # mergekit's


class StockShare(NamedTuple):
    """The mean cosine of the task vectors of one tensor, and the share of the tuned models' mean that follows from it.
    `opposed` says that the task vectors cancel, which gives the base by decision 2.
    """

    cosine: float
    share: float
    opposed: bool


@dataclass(frozen=True)
class ModelStock(TensorMerge):
    """(1 - share) base + share mean(tuned), the share following from the angle between the task vectors, tensor by
    tensor. Two passes. Raises ValueError for fewer than two tuned models."""

    def merged(self, pieces: Pieces) -> Iterator[Float32[Array, " n"]]:
        share = stock_share(pieces).share
        for piece in pieces:
            each = share / len(piece.tuned)
            yield weighted_sum((piece.base, *piece.tuned), (1 - share, *(each for _ in piece.tuned)))


class ModelStockMethod(MergeMethod[NoOptions]):
    name = "model_stock"
    title = "two tuned models or more, their weight from the angle between them"
    options = NoOptions
    models = (2, None)
    weighs = None
    cites = (
        Citation(
            "model_stock",
            "A weight from the angle between tuned models",
            ("jang2024model",),
            (
                "The ratio is taken per tensor; the paper's is per layer.",
                "Where the formula has no positive denominator the base's tensor is kept.",
            ),
        ),
    )

    def tensor(self, asked: Asked[NoOptions]) -> ModelStock:
        return ModelStock()


METHODS = (ModelStockMethod(),)


def stock_share(pieces: Pieces) -> StockShare:
    """One pass over a tensor. Laws: equal task vectors give share 1, orthogonal ones 0; scaling one of them changes
    nothing. An empty tensor has cosine 0. Raises ValueError for fewer than two tuned models.
    """
    gram: Gram | None = None
    models = 0
    for piece in pieces:
        models = len(piece.tuned)
        if models < 2:
            raise ValueError(f"model stock needs at least two tuned models, got {models}")
        gram = gram or Gram(models)
        for tuned in piece.tuned:
            tuned -= piece.base
        gram.add(piece.tuned)
    if gram is None:
        return StockShare(0.0, 0.0, False)
    cosines = [_cosine(gram[i, j], gram[i, i], gram[j, j]) for j in range(models) for i in range(j)]
    cosine = math.fsum(cosines) / len(cosines)
    denominator = 1 + (models - 1) * cosine
    if denominator < SINGULAR:
        return StockShare(cosine, 0.0, True)
    return StockShare(cosine, models * cosine / denominator, False)


def _cosine(dot: float, first_square: float, second_square: float) -> float:
    norms = math.sqrt(first_square) * math.sqrt(second_square)
    return max(-1.0, min(1.0, dot / norms)) if norms > 0 else 0.0
