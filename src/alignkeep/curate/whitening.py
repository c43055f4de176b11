"""Vectors in the measure of the references: what varies within a set of them counts little, what does not counts much.

Sources
    Fisher, The use of multiple measurements in taxonomic problems, Annals of Eugenics 7, 1936: variation within groups.
    Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance matrices, Journal of Multivariate
    Analysis 88, 2004: the shrinkage.

Symbols
    X           the references, each less the mean of its set
    S           X^T X / m                           m rows of all sets
    C           (1 - shrinkage) S + shrinkage mu I  mu = tr(S) / d
    c           centre                              midway between the means of the sets
    z           C^(-1/2) (z - c)                    what `whitened` gives

The centre, which cosines of whitened vectors need, is chosen: measured on sets with poison of the validation part
(docs/curation.md). Not the covariance of the data: harm that hides there is what varies, and would count least.

C differs from a multiple of I in the span of X alone. So C^(-1/2) comes from the thin singular values of X, and no
d x d matrix is made: width 4,096 with few anchors is cheap.

Shapes: n rows, m references, d wide, r = min(m, d).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_LEAST = 1e-6  # shrinkage: where it is nothing, directions that the references do not span have no measure (chosen)


class Whitening(NamedTuple):
    """c, and C^(-1/2): the gain along each direction, and `gain` along all that are orthogonal to them."""

    centre: Float[Tensor, " d"]
    directions: Float[Tensor, "r d"]
    gains: Float[Tensor, " r"]
    gain: float
    shrinkage: float


def fit_whitening(references: Sequence[Float[Tensor, "m d"]]) -> Whitening:
    """From sets of rows, in float64. Raises ValueError where no row differs from the mean of its set."""
    means = torch.stack([rows.double().mean(0) for rows in references])
    centred = torch.cat([rows.double() - mean for rows, mean in zip(references, means, strict=True)])
    count, width = centred.shape
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    variances = singular.square() / count
    mean = float(variances.sum()) / width
    if mean <= 0:
        raise ValueError("need references that differ within a set")
    # Ledoit and Wolf's b^2 / d^2, by |S|^2 = sum of squared variances.
    squares = float(variances.square().sum())
    noise = (float(centred.square().sum(1).square().sum()) / count - squares) / count
    distance = squares - width * mean**2
    shrinkage = max(min(noise / distance, 1.0) if distance > 0 else 1.0, _LEAST)
    gains = ((1 - shrinkage) * variances + shrinkage * mean).rsqrt()
    return Whitening(means.mean(0), directions, gains, (shrinkage * mean) ** -0.5, shrinkage)


def whitened(rows: Float[Tensor, "n d"], by: Whitening) -> Float[Tensor, "n d"]:
    """C^(-1/2) (z - c) for every row, in their dtype."""
    apart = rows.double() - by.centre
    within = apart @ by.directions.mT
    return (by.gain * apart + (within * (by.gains - by.gain)) @ by.directions).to(rows.dtype)
