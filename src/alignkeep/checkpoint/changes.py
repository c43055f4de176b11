"""What an adapter does to a stored tensor where that is not one product of two factors.

Each makes the tuned numbers of a range from the base's numbers of that range, in place, and takes what else it needs
(a row's length, a factorisation of the base) from the base's file when it is first asked. Use from one thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, Int64

from alignkeep.checkpoint.low_rank import ROWS, LowRank
from alignkeep.checkpoint.numbers import Numbers as Array
from alignkeep.checkpoint.reading import StoredNumbers
from alignkeep.models.headers import TensorEntry


class Change(Protocol):
    """The change of one stored tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def is_zero(self) -> bool:
        """Whether it changes nothing."""
        ...

    def add_to(self, numbers: Float32[Array, " n"], start: int) -> None:
        """Turn the base's numbers [start, start + n) into the tuned ones, in place."""
        ...

    def forget(self) -> None:
        """Let go of what was kept between ranges."""
        ...


@dataclass(eq=False)
class Stacked:
    """A low-rank change for every matrix of a tensor that holds the experts of a layer one after the other."""

    parts: Sequence[LowRank]

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.parts), *self.parts[0].shape

    @property
    def is_zero(self) -> bool:
        return all(part.is_zero for part in self.parts)

    def add_to(self, numbers: Float32[Array, " n"], start: int) -> None:
        size = math.prod(self.parts[0].shape)
        done = 0
        while done < len(numbers):
            expert, within = divmod(start + done, size)
            count = min(size - within, len(numbers) - done)
            self.parts[expert].add_to(numbers[done : done + count], within)
            done += count

    def forget(self) -> None:
        for part in self.parts:
            part.forget()


@dataclass(eq=False)
class Weighed:
    """DoRA: every output's row of W + scale B A gets the length that was learned, magnitude / |row|.

    `by_column` where outputs run along the columns (Conv1D, embeddings).
    """

    change: LowRank
    magnitude: Float32[Array, " outputs"]
    base: TensorEntry
    by_column: bool
    _factor: Array | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.change.shape

    @property
    def is_zero(self) -> bool:
        """A DoRA begins with the rows' own lengths, to rounding."""
        return self.change.is_zero and bool(np.abs(self._factors() - 1).max() < 1e-6)

    def add_to(self, numbers: Float32[Array, " n"], start: int) -> None:
        factors = self._factors()
        self.change.add_to(numbers, start)
        columns = self.shape[1]
        places: Int64[Array, " n"] = np.arange(start, start + len(numbers))
        numbers *= factors[places % columns if self.by_column else places // columns]

    def forget(self) -> None:
        self.change.forget()

    def _factors(self) -> Float32[Array, " outputs"]:
        if self._factor is None:
            rows, columns = self.shape
            squares = np.zeros(columns if self.by_column else rows, np.float64)
            buffer = np.empty(ROWS * columns, np.float32)
            with StoredNumbers(self.base) as stored:
                for row in range(0, rows, ROWS):
                    numbers = buffer[: min(ROWS, rows - row) * columns]
                    stored.fill(row * columns, numbers)
                    self.change.add_to(numbers, row * columns)
                    table = numbers.reshape(-1, columns).astype(np.float64) ** 2
                    if self.by_column:
                        squares += table.sum(0)
                    else:
                        squares[row : row + len(table)] = table.sum(1)
            self._factor = (self.magnitude / np.sqrt(squares)).astype(np.float32)
        return self._factor


@dataclass(eq=False)
class Replaced:
    """Some rows of a matrix replaced: `trainable_token_indices`, which PEFT stores as the rows' values."""

    shape: tuple[int, ...]
    values: Mapping[int, Float32[Array, " columns"]]
    base: TensorEntry

    @property
    def is_zero(self) -> bool:
        row = np.empty(self.shape[1], np.float32)
        with StoredNumbers(self.base) as stored:
            for index, value in self.values.items():
                stored.fill(index * self.shape[1], row)
                if not np.array_equal(row, value):
                    return False
        return True

    def add_to(self, numbers: Float32[Array, " n"], start: int) -> None:
        width, end = self.shape[1], start + len(numbers)
        for index, value in self.values.items():
            low, high = max(index * width, start), min((index + 1) * width, end)
            if low < high:
                numbers[low - start : high - start] = value[low - index * width : high - index * width]

    def forget(self) -> None:
        """It keeps nothing."""


@dataclass(eq=False)
class FromStart:
    """A LoRA whose start was taken out of the base when it was made (PiSSA, OLoRA): W - scale B0 A0 + scale B A.

    B0 and A0 come from W alone, and PEFT finds them anew whenever it loads the adapter; so does this, with PEFT's code.
    """

    change: LowRank
    base: TensorEntry
    settings: Mapping[str, Any]
    turned: bool
    _start: LowRank | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.change.shape

    @property
    def is_zero(self) -> bool:
        """Tuned not at all, the factors are those of the start."""
        start = self._found()
        gap = np.abs(start.left @ start.right - self.change.left @ self.change.right).max()
        return bool(gap * abs(self.change.scale) < 1e-7)

    def add_to(self, numbers: Float32[Array, " n"], start: int) -> None:
        self._found().add_to(numbers, start)
        self.change.add_to(numbers, start)

    def forget(self) -> None:
        self.change.forget()
        if self._start is not None:
            self._start.forget()

    def _found(self) -> LowRank:
        if self._start is None:
            self._start = _start_of(self)
        return self._start


def _start_of(change: FromStart) -> LowRank:
    """What was taken out of the base: minus scale B0 A0."""
    import torch
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    rows, columns = change.shape
    numbers = np.empty(rows * columns, np.float32)
    with StoredNumbers(change.base) as stored:
        stored.fill(0, numbers)
    weight = torch.from_numpy(numbers).view(rows, columns)
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight = torch.nn.Parameter(weight.T.contiguous() if change.turned else weight, requires_grad=False)
    layer.out_features, layer.in_features = layer.weight.shape
    rank = change.change.left.shape[1]
    alpha = change.change.scale * (math.sqrt(rank) if change.settings.get("use_rslora") else rank)
    config = LoraConfig(
        r=rank,
        init_lora_weights=str(change.settings["init_lora_weights"]),  # pyright: ignore[reportArgumentType]
        use_rslora=bool(change.settings.get("use_rslora")),
    )
    adapted: Any = Linear(layer, "start", config=config, r=rank, lora_alpha=alpha)  # pyright: ignore[reportArgumentType]
    left = adapted.lora_B["start"].weight.detach().float().contiguous()
    right = adapted.lora_A["start"].weight.detach().float().contiguous()
    if change.turned:
        left, right = right.T.contiguous(), left.T.contiguous()
    return LowRank(left.numpy(), right.numpy(), -change.change.scale)
