"""In which order a tune sees its examples: a permutation that follows from seed and epoch, like lengths side by side.

A batch is padded to its longest row, so batches drawn at random compute up to 1.7 times the tokens that count. Within
windows of 50 batches of the permutation the examples are sorted by length and cut into batches, which then come in the
order of their earliest members: rows of equal length stay where they were, and short batches do not come before long
ones. The loss of a step stays the mean over its answer tokens; only which examples share a step changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler

WINDOW = 50  # batches; chosen: benchmarks/bench_real.py has 1.01 to 1.03 computed for each token that counts


def grouped_by_length(order: Sequence[int], lengths: Sequence[int], batch: int, window: int = WINDOW) -> list[int]:
    """The same examples, whose every `batch` are of like length. What does not fill a last batch stays at the end."""
    grouped: list[int] = []
    whole = len(order) - len(order) % batch
    for start in range(0, whole, window * batch):
        places = range(start, min(start + window * batch, whole))
        by_length = sorted(places, key=lambda place: lengths[order[place]])
        batches = [sorted(by_length[at : at + batch]) for at in range(0, len(by_length), batch)]
        grouped += [order[place] for one in sorted(batches) for place in one]
    return [*grouped, *order[whole:]]


class ExampleOrder(Sampler[int]):
    """Accelerate's seeded permutation of `rows`, grouped where `lengths` are given, then `blanks` at the data's end."""

    def __init__(
        self, rows: int, seed: int | None, *, lengths: Sequence[int] | None = None, batch: int = 1, blanks: int = 0
    ) -> None:
        self._permutation = SeedableRandomSampler(range(rows), data_seed=seed)
        self._lengths = lengths
        self._batch = batch
        self._blanks = range(rows, rows + blanks)

    def __iter__(self) -> Iterator[int]:
        order = list(self._permutation)
        yield from order if self._lengths is None else grouped_by_length(order, self._lengths, self._batch)
        yield from self._blanks

    def __len__(self) -> int:
        return len(self._permutation) + len(self._blanks)

    def set_epoch(self, epoch: int) -> None:
        self._permutation.set_epoch(epoch)
