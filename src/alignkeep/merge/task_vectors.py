"""Merges of task vectors: drop entries, weigh, let the models agree on a sign, add to the base.

Papers
    Ilharco et al., Editing models with task arithmetic, arXiv:2212.04089.
    Yadav et al., TIES-Merging, arXiv:2306.01708, section 4: the election (`sum`) and the merge of who agrees.
    mergekit 0.1.5 (Goddard et al., arXiv:2403.13257), for weights, `count`, normalisation and the l1 rescaling.

Symbols (paper -> here)
    tau_t      task vector of tuned model t: tuned - base
    gamma_m    elected sign of an entry: that of the sum of the weighted task vectors, + when the sum is 0
    lambda     `scale`

Departures from the papers
    1. Task vectors are weighted before the election, and what agrees is summed; `normalize` divides by the sum of the
       weights that agree. With equal weights that is TIES' mean over those who agree; with one model weights cancel.
    2. An entry that is 0 agrees with no sign and is not counted.
    3. Weights that add up to 0 (below 1e-8 without an election) are not divided by.
    4. Task vectors are float32, combining weights are computed in float64 and applied in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32

from alignkeep.merge.linear import weighted_sum
from alignkeep.merge.method import Identity, TensorMerge
from alignkeep.merge.pieces import BLOCK, Array, Piece, Pieces, magnitude_sums, row_length, total
from alignkeep.merge.sparsify import Keeper, Random, RankedRandom, Sparsifier, find_cuts, keeper, kept_ranks

Election = Literal["sum", "count"]

TINY = 1e-7  # mergekit's: a task vector whose sum of magnitudes is below it is not rescaled
NO_WEIGHT = 1e-8  # mergekit's


@dataclass(frozen=True)
class TaskVectors(TensorMerge):
    """base + scale * sum_t weights_t tau_t over sparsified task vectors: task arithmetic, and with sparsifiers and a
    consensus TIES, DARE, DELLA and Breadcrumbs. One weight and one sparsifier (None: keep everything) per tuned model.
    With `consensus` only those of the elected sign are summed, with `normalize` the sum is divided by their weights.

    Laws: models equal to the base give the base, and so does scale 0; turning the signs of all task vectors turns the
    merged one, sums of 0 aside. Raises ValueError when there are not as many weights and sparsifiers as tuned models.
    """

    weights: tuple[float, ...]
    sparsify: tuple[Sparsifier | None, ...]
    consensus: Election | None = None
    normalize: bool = False
    scale: float = 1.0

    def merged(self, pieces: Pieces) -> Iterator[Float32[Array, " n"]]:
        deltas = SparseTaskVectors(pieces, self.sparsify)
        combined = [weight * factor for weight, factor in zip(self.weights, deltas.factors, strict=True)]
        if self.consensus is None or len(combined) == 1:  # one model is always of its own opinion
            whole = math.fsum(self.weights)
            divisor = whole if self.normalize and abs(whole) >= NO_WEIGHT else 1.0
            combined = [self.scale * weight / divisor for weight in combined]
            for piece in deltas:
                base, update = piece.base, weighted_sum(piece.tuned, combined)
                base += update
                yield base
        else:
            for piece in deltas:
                base, votes = piece.base, piece.tuned
                for vote, weight in zip(votes, combined, strict=True):
                    vote *= weight
                update = _agreed(votes, self.weights, self.consensus, self.normalize)
                update *= self.scale
                base += update
                yield base

    @property
    def identity(self) -> Identity:
        silent = [
            weight == 0 or (one is not None and one.density == 0)
            for weight, one in zip(self.weights, self.sparsify, strict=True)
        ]
        return "base" if self.scale == 0 or all(silent) else None


def _agreed(
    votes: Sequence[Float32[Array, " n"]], weights: Sequence[float], consensus: Election, normalize: bool
) -> Float32[Array, " n"]:
    """Sum of the votes with the elected sign; their mean by weight with `normalize`. Overwrites the votes."""
    sign = np.zeros_like(votes[0])
    for vote in votes:
        sign += vote if consensus == "sum" else np.sign(vote)
    np.copysign(np.float32(1), sign, out=sign)  # votes that cancel leave +0, which elects +
    for vote in votes:
        vote *= sign
        np.maximum(vote, 0, out=vote)
    result = np.zeros_like(sign)
    for vote in votes:
        result += vote
    result *= sign
    if normalize:
        divisor = np.zeros_like(sign)
        for vote, weight in zip(votes, weights, strict=True):
            np.sign(vote, out=vote)
            vote *= weight
            divisor += vote
        divisor += divisor == 0
        result /= divisor
    return result


class SparseTaskVectors:
    """The task vectors of one tensor, piece by piece in the place of the tuned models; every iteration is a pass.

    They come sparsified, entries that are dropped being 0, and are to be multiplied by `factors`, which make up for
    what is dropped. Laws: every pass gives the same; neither the size of the pieces nor the number of threads changes
    a bit.
    Raises ValueError when `sparsify` (None: keep everything) has not one value per tuned model.
    """

    def __init__(self, pieces: Pieces, sparsify: Sequence[Sparsifier | None]) -> None:
        self._pieces = pieces
        self._sparsify = [one if one is None or one.density < 1 else None for one in sparsify]
        self._by_row = any(isinstance(one, RankedRandom) for one in self._sparsify)
        size = math.prod(pieces.shape)
        self._cuts = find_cuts(_Dense(pieces), [kept_ranks(one, size) for one in self._sparsify])
        self.factors = tuple(self._factors())

    def __iter__(self) -> Iterator[Piece]:
        keepers = self._keepers()
        for piece in self._dense():
            for delta, keep in zip(piece.tuned, keepers, strict=True):
                if keep is not None:
                    keep(delta, piece.start)
            yield piece

    def _dense(self) -> Iterator[Piece]:
        return iter(_Dense(self._pieces.rows() if self._by_row else self._pieces))

    def _keepers(self) -> list[Keeper | None]:
        """New ones for every pass: they count what they have seen."""
        width = row_length(self._pieces.shape)
        return [
            None if one is None else keeper(one, cuts, model=model, name=self._pieces.name, width=width)
            for model, (one, cuts) in enumerate(zip(self._sparsify, self._cuts, strict=True))
        ]

    def _factors(self) -> Iterator[float]:
        """One pass where a sum of magnitudes is to be restored."""
        restored = [one is not None and one.rescale == "l1" for one in self._sparsify]
        sums: list[tuple[list[float], list[float]]] = [([], []) for _ in restored]
        width = row_length(self._pieces.shape) if self._by_row else BLOCK
        keepers = self._keepers()
        for piece in self._dense() if any(restored) else ():
            for delta, keep, wanted, (before, after) in zip(piece.tuned, keepers, restored, sums, strict=True):
                if wanted and keep is not None:
                    before += magnitude_sums(delta, width)
                    keep(delta, piece.start)
                    after += magnitude_sums(delta, width)
        for one, (before, after) in zip(self._sparsify, sums, strict=True):
            if isinstance(one, Random) and one.rescale == "probability":
                yield 1 / one.density if one.density > 0 else 1.0
            else:
                norms = total(before), total(after)
                yield norms[0] / norms[1] if min(norms) >= TINY else 1.0


class _Dense:
    """Passes over the whole task vectors."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[Piece]:
        for piece in self._pieces:
            for tuned in piece.tuned:
                tuned -= piece.base
            yield piece
