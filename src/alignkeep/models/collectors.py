"""Fisher factors of a model's matrices on examples: hooks that hand activations and output gradients to `subspace`.

The Fisher is the empirical one: the loss is the summed negative log-likelihood of each example's own answer, not of an
answer sampled from the model. On the aligned model's own refusals the two are close. Example weights play no role.

What is given up for what
    Collecting a matrix costs memory for its factor (d^2 numbers in float64 up to width `FULL_UP_TO`, 128 d beyond) and
    for its activations during one batch. `matrices.passes` cuts the matrices into passes over the data: k passes take
    1/k of that memory and k times the forward and backward passes, and give the same factors.

No parameter receives a gradient, and the model is left as it was: hooks, modes and `requires_grad`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alignkeep.errors import CheckpointError, MachineError, RecipeError, ShapeError
from alignkeep.models.chat import IGNORED, EncodedExample
from alignkeep.models.examples import encoded
from alignkeep.models.generation import context_length
from alignkeep.models.loading import LoadedModel
from alignkeep.models.matrices import matrices, under_adapter, untouched, widths
from alignkeep.progress import Progress, Silent
from alignkeep.types import Example

if TYPE_CHECKING:
    import torch

    from alignkeep.subspace.fisher import Factor, FactorSum

Side = Literal["input", "output", "moment"]


class Batch(NamedTuple):
    """Examples padded on the right; labels are -100 where nothing is learned."""

    input_ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor


def collect_factors(
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    modules: Sequence[str] | None = None,
    side: Side = "input",
    batch_size: int = 8,
    max_length: int = 1024,
    progress: Progress | None = None,
) -> dict[str, Factor]:
    """One factor per matrix, by module name: of the Fisher's input or output side, or the inputs' second moment.

    `modules` are names from `models.matrices`, None takes them all. They are the base's names with an adapter too; the
    gradients are then the tuned model's, unless taken within `loaded.as_base()`. Raises RecipeError for a name that the
    model has not, DataError for no examples or an answer beyond `max_length`, CheckpointError for numbers not finite.
    """
    return collect_sides(
        loaded, examples, (side,), modules=modules, batch_size=batch_size, max_length=max_length, progress=progress
    )[side]


def collect_sides(
    loaded: LoadedModel,
    examples: Sequence[Example],
    sides: Sequence[Side],
    *,
    modules: Sequence[str] | None = None,
    batch_size: int = 8,
    max_length: int = 1024,
    progress: Progress | None = None,
) -> dict[Side, dict[str, Factor]]:
    """`collect_factors` of several sides in one pass. Second moments alone need no backward pass."""
    import torch

    chosen = _chosen(loaded, modules)
    length = min(max_length, context_length(loaded) or max_length)
    rows, _ = encoded(loaded.tokenizer, examples, length, "alignment example")
    rows.sort(key=lambda row: -len(row.input_ids))
    size = batch_size
    while True:
        try:
            return _collected(loaded, rows, chosen, tuple(sides), size, progress or Silent())
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise MachineError(
                    "alignment data",
                    seen=f"out of memory with one example of {len(rows[0].input_ids)} tokens, {len(chosen)} matrices",
                    expected="room for its activations and for the factors",
                    remedy="lower max_length, or adapt fewer matrices",
                ) from error
        size //= 2  # and from the start: what a batch had added before it failed cannot be taken back


def _collected(
    loaded: LoadedModel,
    rows: Sequence[EncodedExample],
    chosen: Mapping[str, Any],
    sides: tuple[Side, ...],
    size: int,
    progress: Progress,
) -> dict[Side, dict[str, Factor]]:
    """One pass over the examples, the longest first."""
    collector = Collector(chosen, sides)
    backward = any(side != "moment" for side in sides)
    progress.start("statistics of examples", len(rows))
    with untouched(loaded.model), collector.hooked(), gradients_flow(loaded.model, backward):
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            run(loaded.model, padded(some, loaded.model.device), collector, backward)
            progress.advance(len(some))
    progress.done()
    return collector.factors()


def padded(rows: Sequence[EncodedExample], device: torch.device) -> Batch:
    """Token 0 stands in the padding; the mask keeps it out of everything."""
    import torch

    shape = len(rows), max(len(row.input_ids) for row in rows)
    ids = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.bool)
    for at, row in enumerate(rows):
        length = len(row.input_ids)
        ids[at, :length] = torch.tensor(row.input_ids)
        labels[at, :length] = torch.tensor(row.labels)
        mask[at, :length] = True
    return Batch(ids.to(device), mask.to(device), labels.to(device))


@dataclass
class _Call:
    """One use of a matrix in one forward pass, per sample."""

    vectors: torch.Tensor
    gradients: torch.Tensor | None = None


@dataclass
class Collector:
    """The sums, and the hooks that feed them.

    A matrix used once is contracted as soon as its gradient is known, and its activations are let go. One that is used
    several times has one gradient per sample all the same: its tokens wait for the end of the backward pass.
    """

    modules: Mapping[str, Any]
    sides: tuple[Side, ...]
    sums: dict[tuple[Side, str], FactorSum] = field(default_factory=dict)
    shape: tuple[int, int] = (0, 0)
    mask: torch.Tensor | None = None  # None for a batch of one, which has no padding
    calls: dict[str, list[_Call]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from alignkeep.subspace.fisher import FULL_UP_TO, FactorSum, gaussian_probe

        probes: dict[tuple[int, Any], Any] = {}
        for name, module in self.modules.items():
            for side in self.sides:
                width, device = widths(module)[side == "output"], module.weight.device
                if width > FULL_UP_TO and (width, device) not in probes:
                    probes[width, device] = gaussian_probe(width, device=device)
                self.sums[side, name] = FactorSum(width, probe=probes.get((width, device)), device=device)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in self.modules.items():
                handle = module.register_forward_hook(partial(self._forward, name))
                stack.callback(handle.remove)
            yield

    def start(self, mask: torch.Tensor) -> None:
        self.shape = mask.shape[0], mask.shape[1]
        self.mask = mask if mask.shape[0] > 1 else None
        self.calls.clear()

    def finish(self) -> None:
        """Contracts what waited; a use whose gradient never came had no part in the loss."""
        import torch

        for name, calls in self.calls.items():
            used = [(call.vectors, call.gradients) for call in calls if call.gradients is not None]
            if used:
                vectors, gradients = (torch.cat(part, 1) for part in zip(*used, strict=True))
                self._add(name, vectors, gradients, len(used))
        self.calls.clear()

    def factors(self) -> dict[Side, dict[str, Factor]]:
        found: dict[Side, dict[str, Factor]] = {side: {} for side in self.sides}
        for (side, name), running in self.sums.items():
            found[side][name] = running.factor()
            if not math.isfinite(found[side][name].trace):
                raise CheckpointError(
                    name,
                    seen="activations or gradients that are not finite",
                    expected="finite numbers",
                    remedy="load the model with --dtype bfloat16 or float32",
                )
        return found

    def _forward(self, name: str, _: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        vectors = self._per_sample(name, inputs[0].detach())
        if "moment" in self.sides:
            self.sums["moment", name].add(vectors, mask=self.mask)
        if output.requires_grad:
            call = _Call(vectors)
            self.calls.setdefault(name, []).append(call)
            output.register_hook(partial(self._backward, name, call))

    def _backward(self, name: str, call: _Call, gradient: torch.Tensor) -> None:
        gradients = self._per_sample(name, gradient)
        if len(self.calls[name]) > 1:
            call.gradients = gradients
        else:
            del self.calls[name]
            self._add(name, call.vectors, gradients, 1)

    def _add(self, name: str, vectors: torch.Tensor, gradients: torch.Tensor, uses: int) -> None:
        mask = None if self.mask is None else self.mask.repeat(1, uses)
        if "input" in self.sides:
            self.sums["input", name].add(vectors, gradients, mask=mask)
        if "output" in self.sides:
            self.sums["output", name].add(gradients, vectors, mask=mask)

    def _per_sample(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Values as (B, T, width), out of that shape or with both token axes in one."""
        batch, length = self.shape
        if values.ndim > 3 and values.shape[0] == batch and sorted(values.shape[1:-1])[:-1] == [1] * (values.ndim - 3):
            values = values.flatten(1, -2)  # latent attention: axes of one head beside the tokens
        if values.ndim == 3 and values.shape[:2] == self.shape:
            return values
        if values.ndim == 2 and batch == 1:
            return values[None]
        routed = "experts" in name.split(".")  # sees some of the tokens only, in an order of its own
        if values.ndim == 2 and values.shape[0] == batch * length and not routed:
            return values.reshape(batch, length, -1)
        raise ShapeError(
            name,
            seen=f"rows of shape {tuple(values.shape)} for {batch} examples of {length} tokens",
            expected="one row per token of every example",
            remedy="collect it with a batch size of 1, or leave it out of `modules`",
        )


def run(model: Any, batch: Batch, collector: Collector, backward: bool) -> None:
    """One forward pass, and one backward pass of the answers' summed negative log-likelihood."""
    import torch

    collector.start(batch.mask)
    targets = batch.labels[:, 1:]
    positions = (targets != IGNORED).any(0).nonzero()[:, 0]
    # Logits of the prompt are never looked at; over a large vocabulary they would be most of the memory.
    chosen = "logits_to_keep" in inspect.signature(under_adapter(model).forward).parameters
    keep = {"logits_to_keep": positions} if chosen else {}
    output = model(input_ids=batch.input_ids, attention_mask=batch.mask.long(), use_cache=False, **keep)
    if not backward:
        return
    logits = output.logits if chosen else output.logits[:, positions]
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets[:, positions].flatten(), ignore_index=IGNORED, reduction="sum"
    ).backward()
    collector.finish()


@contextmanager
def gradients_flow(model: Any, wanted: bool) -> Iterator[None]:
    """With every parameter frozen nothing has a gradient unless the embeddings' output begins one."""
    import torch

    def begin(_: Any, __: Any, output: torch.Tensor) -> Any:
        # A copy, since some models scale the embeddings in place, which a tensor that begins a gradient forbids.
        return output.requires_grad_().clone() if wanted else output.requires_grad_(False)

    with ExitStack() as stack:
        stack.callback(under_adapter(model).get_input_embeddings().register_forward_hook(begin).remove)
        stack.enter_context(torch.set_grad_enabled(wanted))
        yield


def _chosen(loaded: LoadedModel, names: Sequence[str] | None) -> dict[str, Any]:
    found = matrices(loaded.model).modules
    if names is None:
        return found
    for name in names:
        if name not in found:
            raise RecipeError(
                "modules",
                seen=name,
                expected=f"one of the model's {len(found)} linear modules, as {next(iter(found), 'none')}",
                remedy="take names from alignkeep.models.matrices.matrices(model)",
            )
    return {name: found[name] for name in dict.fromkeys(names)}
