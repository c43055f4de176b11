"""Gradients of examples at the model as it is: their mean over a set, and every example's product with such means.

An example's loss is the mean negative log-likelihood of its answer's tokens. Its gradient is never made: with the
activations x_t and the output gradients d_t of a matrix, <g_i, G> = sum_t d_t . (G x_t), for one more product a matrix.

Shapes: n examples; G one (d_out, d_in) per matrix, float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from alignkeep.errors import CheckpointError, MachineError
from alignkeep.models.chat import IGNORED, EncodedExample
from alignkeep.models.collectors import Collector, gradients_flow, padded, run
from alignkeep.models.examples import encoded
from alignkeep.models.generation import context_length
from alignkeep.models.loading import LoadedModel
from alignkeep.models.matrices import matrices, untouched, widths
from alignkeep.progress import Progress, Silent
from alignkeep.types import Example

if TYPE_CHECKING:
    from torch import Tensor

Use = Callable[[str, "Tensor", "Tensor"], None]


def mean_gradient(
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    batch_size: int = 8,
    max_length: int = 1024,
    what: str = "reference",
    too_long: Literal["refuse", "cut"] = "refuse",
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """The mean over the examples, by matrix. Raises what `collect_factors` raises."""
    import torch

    _check_whole(loaded)
    modules, sums = matrices(loaded.model).modules, dict[str, Any]()

    def use(name: str, vectors: Tensor, gradients: Tensor) -> None:
        if name not in sums:
            sums[name] = torch.zeros(*widths(modules[name])[::-1], device=vectors.device)
        sums[name] += torch.einsum("bto,bti->oi", gradients, vectors)

    length = min(max_length, context_length(loaded) or max_length)
    rows, _ = encoded(loaded.tokenizer, examples, length, what, too_long=too_long)
    _pass(loaded, rows, lambda _: use, batch_size, progress, "gradients of references")
    return {name: found / len(rows) for name, found in sums.items()}


def gradient_products(
    loaded: LoadedModel,
    examples: Sequence[Example],
    against: Sequence[Mapping[str, Tensor]],
    *,
    batch_size: int = 8,
    max_length: int = 1024,
    what: str = "example",
    too_long: Literal["refuse", "cut"] = "refuse",
    progress: Progress | None = None,
) -> Tensor:
    """<g_i, G_k> of every example with every one of `against`, over all their matrices: (n, k) float64 on the CPU."""
    import torch

    length = min(max_length, context_length(loaded) or max_length)
    rows, _ = encoded(loaded.tokenizer, examples, length, what, too_long=too_long)
    found = torch.zeros(len(rows), len(against), dtype=torch.float64)

    def using(places: Sequence[int]) -> Use:
        def use(name: str, vectors: Tensor, gradients: Tensor) -> None:
            for column, one in enumerate(against):
                parts = (vectors @ one[name].mT * gradients).sum((1, 2))
                found[list(places), column] += parts.cpu().double()

        return use

    _pass(loaded, rows, using, batch_size, progress, "gradients of examples")
    bad = (~found.isfinite().all(1)).nonzero()
    if len(bad):
        raise CheckpointError(
            f"{what} {int(bad[0]) + 1}", seen="a gradient that is not finite", expected="finite numbers",
            remedy="load the model with --dtype bfloat16 or float32",
        )  # fmt: skip
    return found


def _check_whole(loaded: LoadedModel) -> None:
    """Gradients of a part of the model would pass for those of all of it."""
    left_out = matrices(loaded.model).left_out
    if left_out:
        raise CheckpointError(
            str(loaded.checkpoint.reference), seen=f"{len(left_out)} fused weights ({left_out[0]}, ...)",
            expected="a model of linear layers, whose gradients can be taken", remedy="take another method",
        )  # fmt: skip


@dataclass
class _Users(Collector):
    """Hands what is collected on to `use`, each example's gradients divided by its answer's tokens."""

    use: Use | None = None
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        """No sums."""

    def _add(self, name: str, vectors: Tensor, gradients: Tensor, uses: int) -> None:
        assert self.use is not None and self.lengths is not None
        vectors, gradients = vectors.float(), gradients.float() / self.lengths[:, None, None]
        if self.mask is not None:
            vectors = vectors * self.mask.repeat(1, uses)[:, :, None]
        self.use(name, vectors, gradients)


def _pass(
    loaded: LoadedModel,
    rows: Sequence[EncodedExample],
    using: Callable[[Sequence[int]], Use],
    size: int,
    progress: Progress | None,
    label: str,
) -> None:
    """Forward and backward over all rows, the longest first."""
    import torch

    progress = progress or Silent()
    collector: Any = _Users(matrices(loaded.model).modules, ("input",))
    order = sorted(range(len(rows)), key=lambda at: -len(rows[at].input_ids))
    progress.start(label, len(rows))
    try:
        with untouched(loaded.model), collector.hooked(), gradients_flow(loaded.model, wanted=True):
            for start in range(0, len(order), size):
                places = order[start : start + size]
                batch = padded([rows[at] for at in places], loaded.model.device)
                collector.use = using(places)
                collector.lengths = (batch.labels[:, 1:] != IGNORED).sum(1)
                run(loaded.model, batch, collector, backward=True)
                progress.advance(len(places))
    except torch.OutOfMemoryError as error:
        raise MachineError(
            "embed.batch_size", seen=f"out of memory with {size} examples at once",
            expected="room for their gradients, and for two float32 copies of the matrices",
            remedy="lower the batch size, or take another method",
        ) from error  # fmt: skip
    progress.done()
