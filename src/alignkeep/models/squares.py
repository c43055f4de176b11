"""Running means of what goes into matrices and of the gradients that come back, squared, while a trainer trains.

They are read off the trainer's own forward and backward passes: no pass is added. A token counts where the loss depends
on what the matrix made of it, so padding does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkeep.models.matrices import widths

if TYPE_CHECKING:
    from torch import Tensor

DECAY = 0.95


class Squares(NamedTuple):
    """Of one matrix, each divided by its largest entry: mean squares of output gradients and of inputs."""

    rows: Tensor  # d_out
    columns: Tensor  # d_in


class RunningSquares:
    """Mean squares of every module over the tokens of a step, averaged over steps with `DECAY`; float32.

    `modules` take a tensor and give one (linear layers, with or without an adapter), by name. A module that saw no
    token in a step, such as an expert that nothing was routed to, keeps its mean.
    """

    def __init__(self, modules: Mapping[str, Any], decay: float = DECAY) -> None:
        self._decay = decay
        self._shapes = {name: widths(module) for name, module in modules.items()}
        self._sums: dict[str, Tensor] = {}
        self._means: dict[str, Tensor] = {}
        for name, module in modules.items():
            module.register_forward_hook(partial(self._forward, name))

    def _forward(self, name: str, module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        if module.training and output.requires_grad:
            output.register_hook(partial(self._backward, name, inputs[0].detach()))

    def _backward(self, name: str, vectors: Tensor, gradient: Tensor) -> None:
        import torch

        given = gradient.detach().float().flatten(0, -2)
        counts = given.ne(0).any(-1)
        seen = vectors.float().flatten(0, -2)[counts].square().sum(0)
        one = torch.cat([given.square().sum(0), seen, counts.sum().float()[None]])
        self._sums[name] = self._sums[name] + one if name in self._sums else one

    def end_step(self, reduced: Callable[[Tensor], Tensor], device: Any = "cpu") -> None:
        """What the step saw joins the means. `reduced` adds a vector on `device` up over processes; all call."""
        import torch

        sizes = {name: sum(shape) + 1 for name, shape in self._shapes.items()}
        nothing = {name: torch.zeros(size) for name, size in sizes.items() if name not in self._sums}
        whole = reduced(torch.cat([(self._sums | nothing)[name].to(device) for name in sizes]))
        self._sums.clear()
        for name, one in zip(sizes, whole.split(list(sizes.values())), strict=True):
            if one[-1] > 0:
                mean = one[:-1] / one[-1]
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
