"""A low-rank change of a matrix, without the matrix: `scale * left @ right`, computed where it is asked for.

Products are torch's, as in PEFT, whose bits they have; torch is imported where the first one is formed.
"""

# numpy and torch leave the types of some methods open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32

from alignkeep.checkpoint.numbers import Numbers as Array

ROWS = 64  # products are formed in blocks of this many rows with a fixed place, so that no range changes a bit


@dataclass(eq=False)
class LowRank:
    """The change of a (rows, columns) matrix by factors of rank r. Adding it to a range of the flattened matrix costs
    memory for a block of rows. Use from one thread."""

    left: Float32[Array, "rows r"]
    right: Float32[Array, "r columns"]
    scale: float
    _kept: tuple[int, Array] | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def is_zero(self) -> bool:
        """Whether it changes nothing: a LoRA begins with `left` = 0."""
        return self.scale == 0 or not self.left.any() or not self.right.any()

    def equals(self, other: LowRank) -> bool:
        """Whether it has the same factors and scale."""
        same = np.array_equal(self.left, other.left) and np.array_equal(self.right, other.right)
        return same and self.scale == other.scale

    def dense(self) -> Float32[Array, "rows columns"]:
        """The whole change, block by block as `add_to` forms it."""
        return np.concatenate([self._block(first) for first in range(0, self.shape[0], ROWS)])

    def add_to(self, numbers: Float32[Array, " n"], start: int) -> None:
        """Add the change to the range [start, start + n) of the flattened matrix, in place."""
        columns = self.shape[1]
        end = start + len(numbers)
        width = ROWS * columns
        for begin in range(start - start % width, end, width):
            block = self._block(begin // columns).reshape(-1)
            low, high = max(begin, start), min(begin + len(block), end)
            numbers[low - start : high - start] += block[low - begin : high - begin]

    def forget(self) -> None:
        """Let go of the last block: the changes of a whole model stay in memory throughout."""
        self._kept = None

    def _block(self, first: int) -> Float32[Array, "some columns"]:
        import torch

        if self._kept is None or self._kept[0] != first:
            left, right = torch.from_numpy(self.left[first : first + ROWS]), torch.from_numpy(self.right)
            self._kept = first, (left @ right).mul_(self.scale).numpy()
        return self._kept[1]
