"""Processes played by threads: what each of them holds is added up over all."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
Total = Callable[[Tensor], Tensor]


def together(count: int, part: Callable[[int, Total], Result]) -> list[Result]:
    """`part(rank, total)` of every rank at once; `total` gives every one the sum. One that fails ends all."""
    barrier, shared = Barrier(count, timeout=60), [torch.zeros(0)] * count

    def of(rank: int) -> Result:
        def total(vector: Tensor) -> Tensor:
            shared[rank] = vector
            barrier.wait()
            found = torch.stack(shared).sum(0)
            barrier.wait()
            return found

        try:
            return part(rank, total)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(of, range(count)))
