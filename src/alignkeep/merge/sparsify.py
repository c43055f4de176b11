"""Task vectors with most of their entries dropped: by chance, by size, or by chance that depends on size.

Papers
    Yu et al., Language models are super Mario (DARE), arXiv:2311.03099: `Random`.
    Yadav et al., TIES-Merging, arXiv:2306.01708, section 4, the trimming: `Magnitude`.
    Davari and Belilovsky, Model Breadcrumbs, arXiv:2312.06795: `Outliers`.
    Deep et al., DELLA-Merging, arXiv:2406.11617, its MagPrune: `RankedRandom`.
    mergekit 0.1.5 (Goddard et al., arXiv:2403.13257), for the counts of entries kept and the rescaling called l1.

Symbols (paper -> here)
    1 - p         density        share of the entries that is kept
    delta^t       delta          task vector: tuned - base, in float32
    epsilon       `epsilon`: probabilities of keeping run from density - epsilon to density + epsilon over a row

Departures from the papers
    1. Magnitudes are ranked within a tensor, not over the whole model; DELLA's within a row, the last axis. A row of
       one entry is kept with probability `density`.
    2. Of equal magnitudes the one that stands first counts as the larger under `Magnitude` and `Outliers`, as the
       smaller under `RankedRandom`: exactly as many are kept as asked.
    3. A density of 0 keeps nothing, one of 1 everything, unscaled. Else `Magnitude` keeps at least one, as in mergekit
       0.1.5 (0.1.4 raises there), and `Outliers` may keep none.
    4. A probability is met to 2^-32: draws are 32 bits wide.
    5. Where gamma n is less than one, no outlier is dropped, as in mergekit 0.1.5 (0.1.4 then drops every entry).

Thresholds are exact order statistics without a sort: the bits of a magnitude are ordered as an integer, so a histogram
of their upper halves and one of the lower halves within the bin found give it in two passes and fixed memory.
"""

# numpy leaves the types of some methods open:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Int64, UInt32

from alignkeep.merge.pieces import BLOCK, Piece

HALF = 16  # bits in half a number
DRAWS = 1 << 32  # a draw is one of so many, each as likely

Keeper = Callable[[Float32[np.ndarray, " n"], int], None]  # drops entries of a piece, given its start, in place


@dataclass(frozen=True, slots=True)
class Random:
    """Every entry is kept with probability `density`. `rescale` "probability" divides what is kept by it (DARE), "l1"
    restores the sum of magnitudes (mergekit).
    """

    density: float
    rescale: Literal["probability", "l1"] | None = "probability"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Magnitude:
    """The share `density` of largest magnitude is kept: TIES."""

    density: float
    rescale: Literal["l1"] | None = None


@dataclass(frozen=True, slots=True)
class Outliers:
    """The share `gamma` of largest magnitude is dropped, and as many of the smallest as leaves `density`; where that is
    not to be had, fewer of the largest are dropped: Breadcrumbs.
    """

    density: float
    gamma: float = 0.01
    rescale: Literal["l1"] | None = None


@dataclass(frozen=True, slots=True)
class RankedRandom:
    """Kept with a probability that rises with the rank of the magnitude in its row: DELLA. "probability" divides every
    entry by its own. Raises ValueError when density - epsilon or density + epsilon is no probability.
    """

    density: float
    epsilon: float = 0.15
    rescale: Literal["probability", "l1"] | None = "l1"
    seed: int = 0

    def __post_init__(self) -> None:
        if 0 < self.density < 1 and not 0 <= self.epsilon <= min(self.density, 1 - self.density) + 1e-12:
            raise ValueError(
                f"density {self.density:g} -+ epsilon {self.epsilon:g} are probabilities: keep epsilon between 0 and "
                f"{min(self.density, 1 - self.density):g}"
            )


Sparsifier = Random | Magnitude | Outliers | RankedRandom


class Cut(NamedTuple):
    """Parts the so many largest magnitudes from the others: all above `threshold`, and the first `ties` equal to it."""

    threshold: float
    ties: int


def kept_ranks(sparsifier: Sparsifier | None, size: int) -> tuple[int, ...]:
    """How many of the largest magnitudes of `size` are dropped at the top, and where the kept ones end; nothing when
    magnitudes do not decide.
    """
    match sparsifier:
        case Magnitude(density):
            return 0, min(size, max(1, int(density * size))) if density > 0 else 0
        case Outliers(density, gamma):
            kept, top = int(density * size), int(gamma * size)
            last = size - max(0, size - kept - top)
            return last - kept, last
        case _:
            return ()


def find_cuts(deltas: Iterable[Piece], ranks: Sequence[Sequence[int]]) -> list[list[Cut]]:
    """The cut below every one of the ranks asked of every task vector, in two passes (none if all ranks are 0)."""
    cuts = [[Cut(math.inf, 0) for _ in asked] for asked in ranks]
    places = [(model, place, rank) for model, asked in enumerate(ranks) for place, rank in enumerate(asked) if rank]
    if not places:
        return cuts
    upper = {model: np.zeros(1 << (31 - HALF), np.int64) for model, _, _ in places}
    for piece in deltas:
        for model, counts in upper.items():
            bits = _magnitude_bits(piece.tuned[model])
            bits >>= HALF
            counts += np.bincount(bits, minlength=len(counts))
    bins = {(model, place): _from_the_top(upper[model], rank) for model, place, rank in places}
    lower = {(model, found): np.zeros(1 << HALF, np.int64) for (model, _), (found, _) in bins.items()}
    for piece in deltas:
        bits = {model: _magnitude_bits(piece.tuned[model]) for model in upper}
        for (model, found), counts in lower.items():
            inside = bits[model][bits[model] >> HALF == found]
            counts += np.bincount(inside & ((1 << HALF) - 1), minlength=len(counts))
    for (model, place), (found, rank) in bins.items():
        low, ties = _from_the_top(lower[model, found], rank)
        threshold = np.array(found << HALF | low, np.int32).view(np.float32)
        cuts[model][place] = Cut(float(threshold), ties)
    return cuts


def _magnitude_bits(delta: Float32[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
    """Integers in the order of the magnitudes, in the place of the numbers: these without their sign bits."""
    bits = delta.view(np.int32)
    bits &= np.int32(2**31 - 1)
    return bits


def _from_the_top(counts: Int64[np.ndarray, " bins"], rank: int) -> tuple[int, int]:
    """The bin that holds the rank-th largest (from 1), and its rank within the bin."""
    from_top = counts[::-1].cumsum()
    place = int(np.searchsorted(from_top, rank))
    found = len(counts) - 1 - place
    return found, rank - int(from_top[place] - counts[found])


def keeper(sparsifier: Sparsifier, cuts: Sequence[Cut], *, model: int, name: str, width: int) -> Keeper:
    """What drops the entries of the task vector of tuned model `model` in one pass, called with its pieces in order.
    RankedRandom takes whole rows of `width` entries.
    """
    match sparsifier:
        case Random():
            return _by_chance(sparsifier, model, name)
        case RankedRandom():
            return _by_chance_and_rank(sparsifier, model, name, width)
        case Magnitude() | Outliers():
            first, last = cuts
            return _by_rank(first, last)


def _by_rank(first: Cut, last: Cut) -> Keeper:
    above, within = _Largest(first), _Largest(last)

    def keep(delta: Float32[np.ndarray, " n"], start: int) -> None:
        magnitudes = np.abs(delta)
        np.multiply(delta, within(magnitudes) & ~above(magnitudes), out=delta)

    return keep


class _Largest:
    """Which entries are above a cut, asked piece after piece in order."""

    def __init__(self, cut: Cut) -> None:
        self._threshold, self._ties_left = np.float32(cut.threshold), cut.ties

    def __call__(self, magnitudes: Float32[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        kept = magnitudes > self._threshold
        if self._ties_left:
            ties = np.flatnonzero(magnitudes == self._threshold)[: self._ties_left]
            kept[ties] = True
            self._ties_left -= len(ties)
        return kept


def _by_chance(one: Random, model: int, name: str) -> Keeper:
    threshold = _thresholds(np.array(one.density))

    def keep(delta: Float32[np.ndarray, " n"], start: int) -> None:
        np.multiply(delta, draws(one.seed, model, name, start, len(delta)) < threshold, out=delta)

    return keep


def _by_chance_and_rank(one: RankedRandom, model: int, name: str, width: int) -> Keeper:
    spread = one.epsilon if width > 1 and one.density > 0 else 0.0
    probabilities = np.clip(np.linspace(one.density - spread, one.density + spread, width), 0.0, 1.0)
    thresholds = _thresholds(probabilities)
    scales = np.ones(width, np.float32)
    if one.rescale == "probability":
        np.divide(1.0, probabilities, out=scales, where=thresholds > 0, casting="same_kind")

    def keep(delta: Float32[np.ndarray, " n"], start: int) -> None:
        ranks = row_ranks(delta.reshape(-1, width)).reshape(-1)
        kept = draws(one.seed, model, name, start, len(delta)) < thresholds[ranks]
        np.multiply(delta, kept * scales[ranks], out=delta)

    return keep


def row_ranks(values: Float32[np.ndarray, "rows d"]) -> Int64[np.ndarray, "rows d"]:
    """Rank of every magnitude in its row, 0 the smallest; of equal ones the first is the smaller."""
    index = np.arange(values.shape[1], dtype=np.int64)
    # Magnitude and place in one integer: no two are equal, so the fastest sort is a stable one.
    keys = (np.abs(values).view(np.int32).astype(np.int64) << 32) | index
    keys.sort(axis=1)
    ranks = np.empty_like(keys)
    np.put_along_axis(ranks, keys & (2**32 - 1), index[None], axis=1)
    return ranks


def draws(seed: int, model: int, name: str, start: int, count: int) -> UInt32[np.ndarray, " count"]:
    """Uniform integers below 2^32 for the entries from `start` on. They depend on the seed, the number of the tuned
    model, the tensor's name and the entry's place alone: every BLOCK has a generator of its own.
    """
    parts: list[UInt32[np.ndarray, " n"]] = []
    text = name.encode()
    words = np.frombuffer(text.ljust(-4 * (-len(text) // 4), b"\0"), "<u4")
    for block in range(start // BLOCK, -(-(start + count) // BLOCK)):
        numbers = (seed % 2**32, seed >> 32, model, block % 2**32, block >> 32)
        generator = np.random.SFC64(np.random.SeedSequence(np.concatenate((np.array(numbers, np.uint32), words))))
        stop = min(BLOCK, start + count - block * BLOCK)
        raw = generator.random_raw((stop + 1) // 2).astype("<u8", copy=False).view("<u4")
        parts.append(raw[max(0, start - block * BLOCK) : stop])
    return np.concatenate(parts) if parts else np.empty(0, np.uint32)


def _thresholds(probabilities: Float[np.ndarray, "*n"]) -> UInt32[np.ndarray, "*n"]:
    """A draw below it happens with this probability, to 2^-32."""
    return np.minimum(np.rint(probabilities * DRAWS), DRAWS - 1).astype(np.uint32)
