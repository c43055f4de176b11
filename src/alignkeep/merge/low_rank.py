"""A low-rank change of a matrix, without the matrix: `scale * left @ right`, computed where it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

ROWS = 64  # products are formed in blocks of this many rows with a fixed place, so that no range changes a bit


@dataclass
class LowRank:
    """The change of a (rows, columns) matrix by factors of rank r. Adding it to a range of the flattened matrix costs
    memory for a block of rows. Use from one thread."""

    left: Float[Tensor, "rows r"]
    right: Float[Tensor, "r columns"]
    scale: float
    _kept: tuple[int, Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def is_zero(self) -> bool:
        """Whether it changes nothing: a LoRA begins with `left` = 0."""
        return self.scale == 0 or not bool(self.left.any()) or not bool(self.right.any())

    def dense(self) -> Float[Tensor, "rows columns"]:
        """The whole change, block by block as `add_to` forms it."""
        return torch.cat([self._block(first) for first in range(0, self.shape[0], ROWS)])

    def add_to(self, numbers: Float[Tensor, " n"], start: int) -> None:
        """Add the change to the range [start, start + n) of the flattened matrix, in place."""
        columns = self.shape[1]
        end = start + numbers.numel()
        width = ROWS * columns
        for begin in range(start - start % width, end, width):
            block = self._block(begin // columns).view(-1)
            low, high = max(begin, start), min(begin + block.numel(), end)
            numbers[low - start : high - start].add_(block[low - begin : high - begin])

    def forget(self) -> None:
        """Let go of the last block: the changes of a whole model stay in memory throughout."""
        self._kept = None

    def _block(self, first: int) -> Tensor:
        if self._kept is None or self._kept[0] != first:
            self._kept = first, (self.left[first : first + ROWS] @ self.right).mul_(self.scale)
        return self._kept[1]
