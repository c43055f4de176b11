"""Running means of what goes into matrices and of the gradients that come back, squared, while a trainer trains.

They are read off the trainer's own forward and backward passes: no pass is added, and an input is kept no longer than
autograd keeps it (under activation checkpointing it is made again). A token counts where the loss depends on what the
matrix made of it, so padding does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignkeep.models.matrices import widths

DECAY = 0.95


class Squares(NamedTuple):
    """Of one matrix, each divided by its largest entry: mean squares of output gradients and of inputs."""

    rows: Tensor  # d_out
    columns: Tensor  # d_in


class RunningSquares:
    """Mean squares of every module over the tokens of a step, averaged over steps with `DECAY`; float32.

    `modules` take a tensor and give one (linear layers, with or without an adapter), by name; they are watched from
    `begin` to `end`. A module that saw no token in a step, such as an expert that nothing was routed to, keeps its
    mean, and so does one whose numbers are not finite (a step that mixed precision drops).
    """

    def __init__(self, modules: Mapping[str, Any], decay: float = DECAY) -> None:
        self._modules, self._decay = dict(modules), decay
        self._shapes = {name: widths(module) for name, module in modules.items()}
        self._handles: list[Any] = []
        self._sums: dict[str, Tensor] = {}
        self._means: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Forget all, and watch."""
        self.end()
        self._sums.clear()
        self._means.clear()
        self._handles = [
            module.register_forward_hook(partial(self._forward, name)) for name, module in self._modules.items()
        ]

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _forward(self, name: str, module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not (module.training and output.requires_grad):
            return None
        watched: Any = _Watched.apply(output, inputs[0].detach(), partial(self._add, name))
        return watched

    def _add(self, name: str, vectors: Tensor, gradient: Tensor) -> None:
        given = gradient.float().flatten(0, -2)
        counts = given.ne(0).any(-1)
        seen = (vectors.float().flatten(0, -2).square() * counts[:, None]).sum(0)
        one = torch.cat([given.square().sum(0), seen, counts.sum().float()[None]])
        self._sums[name] = self._sums[name] + one if name in self._sums else one

    def end_step(self, reduced: Callable[[Tensor], Tensor], device: Any = "cpu", scale: float = 1.0) -> None:
        """What the step saw joins the means. `reduced` adds a vector on `device` up over processes; all call.

        `scale` is what the loss was multiplied by.
        """
        sizes = {name: sum(shape) + 1 for name, shape in self._shapes.items()}
        seen = self._sums | {name: torch.zeros(size) for name, size in sizes.items() if name not in self._sums}
        whole = reduced(torch.cat([seen[name].to(device) for name in sizes])).split(list(sizes.values()))
        self._sums = {}
        totals = torch.stack([torch.stack([one.sum(), one[-1]]) for one in whole]).tolist()
        for (name, (_, outputs)), one, (total, count) in zip(self._shapes.items(), whole, totals, strict=True):
            if count > 0 and math.isfinite(total):
                mean = one[:-1] / count
                mean[:outputs] /= scale**2
                before = self._means.get(name)
                self._means[name] = mean if before is None else self._decay * before + (1 - self._decay) * mean

    def of(self, name: str) -> Squares | None:
        """None before the first step; all of a module's being 0 divides by 1."""
        mean = self._means.get(name)
        if mean is None:
            return None
        inputs, outputs = self._shapes[name]
        rows, columns = mean.split([outputs, inputs])
        return Squares(*(part / part.max().where(part.max() > 0, 1.0) for part in (rows, columns)))

    def state(self) -> dict[str, Tensor]:
        """The means, to be given back to `restore`."""
        return {name: mean.cpu() for name, mean in self._means.items()}

    def restore(self, state: Mapping[str, Tensor], device: Any) -> None:
        self._means = {name: mean.to(device) for name, mean in state.items()}


class _Watched(torch.autograd.Function):
    """The output as it is; what went in and what comes back are shown to `add`."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, vectors: Tensor, add: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.save_for_backward(vectors)
        ctx.add = add
        return output.view_as(output)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: torch calls it by place
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, None, None]:
        ctx.add(*ctx.saved_tensors, gradient.detach())
        return gradient, None, None
