"""One block of a decoder, run by itself on a few tokens: which of its matrices write to the residual stream, proven.

A matrix W (out, in) writes to the stream where the edit W + a s u^T, s a unit vector of the stream's width, moves what
the block gives along s and nowhere else, while all that other matrices give is held as it was. So for every matrix that
could be one the edit is tried and looked at. Between matrix and stream there may be

- a factor (Granite's residual multiplier, a gate, a router's weight): the shift is still along s;
- norms (Gemma, OLMo 2): the edit moves what the first of them is given along s, and what the last of them gives is
  added as it is.

At last the proof that nothing was missed: with what the writers give held at 0, no other matrix moves the block's
output. A block that does not come out so is refused with what was seen.

The block runs in float32 on its own weights and nothing in it is changed: edits are other tensors put in their place
for one run. A quantised matrix has no weight to try; there the shift is added to what it gives.
"""

# torch leaves the types of some methods open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkeep.errors import CheckpointError
from alignkeep.models.products import products

if TYPE_CHECKING:
    from torch import Tensor

ALONG = 2e-3  # of a shift, the share that may lie beside the direction: rounding in float32 gives 1e-4 and less
STILL = 1e-6  # of the output: less than this is no movement
REMEDY = "this family cannot be injected; merge a tune of it with its base instead, which works on any family"


class Call(NamedTuple):
    """What a block was given."""

    args: tuple[Any, ...]
    named: dict[str, Any]


class Proven(NamedTuple):
    """A matrix that writes to the stream: its module within the block, the parameter, whether it lies (in, out), the
    modules (norms) that its output passes, and what it is multiplied by on the way."""

    module: str
    parameter: str
    inputs_first: bool
    norms: tuple[str, ...]
    scale: float


class Candidate(NamedTuple):
    """A matrix of a width that could write; `is_packed` is one that is quantised."""

    module: str
    parameter: str
    inputs_first: bool
    is_packed: bool = False


@dataclass
class _Run:
    """The stream after the block, and what every module was given (its first tensor) and gave, call by call."""

    stream: Tensor
    given: dict[str, list[Tensor]] = field(default_factory=dict)
    gave: dict[str, list[Any]] = field(default_factory=dict)


Change = Callable[[Any, int], Any]  # what a module gave, and in which of its calls -> what it gives now


def prove_block(block: Any, call: Call, place: str) -> list[Proven]:
    """The writers of one block in the order in which they run. `place` is its name.

    Raises CheckpointError where the block has none, or where something else in it moves the stream.
    """
    return _Block(block, call, place).proven()


class _Block:
    def __init__(self, block: Any, call: Call, place: str) -> None:
        import torch

        self._block, self._place = block, place
        self._call = _in_float32(call)
        self._tensors = {name: one.detach().float() for name, one in _plain_tensors(block)}
        self._modules = {name: module for name, module in block.named_modules() if name and "lora_" not in name}
        with_matrices = [name for name, module in self._modules.items() if _own_matrices(module)]
        # A module that holds matrices itself and in modules within it is no place to hold an output.
        self._matrices = [one for one in with_matrices if not any(name.startswith(f"{one}.") for name in with_matrices)]
        self._scattered = [
            f"{name}.{key}".lstrip(".")
            for name, module in [("", block), *self._modules.items()]
            if name not in self._matrices
            for key in _own_matrices(module)
        ]
        with products(self._tensors) as self._products:
            self._reference = self._run({})
        before, after = _first_tensor((self._call.args, self._call.named)), self._reference.stream
        self._width = after.shape[-1]
        if after.ndim != 3 or before.shape != after.shape:
            raise self._refused(
                f"a block that takes {list(before.shape)} and gives {list(after.shape)}",
                "one residual stream (batch, tokens, width)",
            )
        draw = torch.Generator().manual_seed(7)
        direction = torch.randn(self._width, generator=draw)
        self._direction = (direction / direction.norm()).to(after.device)
        self._draw = draw

    def proven(self) -> list[Proven]:
        found = [self._try(candidate) for candidate in self._candidates()]
        order = ["", *self._reference.gave]  # modules are entered there when they end
        writers = sorted(filter(None, found), key=lambda one: order.index(one.module))
        self._check_nothing_else(writers)
        if not writers:
            raise self._refused("no matrix whose edit moves what the block gives along the edit", "one at least")
        return writers

    def _candidates(self) -> Iterator[Candidate]:
        """Matrices that run and that have as many outputs as the stream is wide, in either orientation."""
        import torch
        from transformers.pytorch_utils import Conv1D

        skipped = (torch.nn.Embedding, torch.nn.modules.conv._ConvNd)
        for name, module in [("", self._block), *self._modules.items()]:
            if isinstance(module, skipped) or (name and name not in self._reference.gave):
                continue
            for key, weight in module.named_parameters(recurse=False):
                full = f"{name}.{key}".lstrip(".")
                if full not in self._tensors:
                    if key == "weight" and getattr(module, "out_features", None) == self._width:
                        yield Candidate(name, key, inputs_first=False, is_packed=True)
                    continue
                if weight.ndim not in (2, 3):
                    continue
                turned = [False] if isinstance(module, torch.nn.Linear) else [False, True]
                turned = [True] if isinstance(module, Conv1D) else turned
                for inputs_first in turned:
                    if weight.shape[-1 if inputs_first else -2] == self._width:
                        yield Candidate(name, key, inputs_first)

    def _try(self, candidate: Candidate) -> Proven | None:
        """None where the trial edit does not write along its direction."""
        trial = partial(self._trial, candidate)
        run = trial({})
        moved = self._moved(run)
        if moved is None or not self._is_multiplied(candidate):
            return None
        self._check_rows(candidate)
        if self._is_along(moved):
            return Proven(*candidate[:3], (), self._scale(candidate, run, moved))
        norms = [
            name for name in self._norms(candidate, run) if self._moved(trial({name: self._as_before(name)})) is None
        ]
        scale = self._through(norms, run)
        return None if scale is None else Proven(*candidate[:3], tuple(norms), scale)

    def _check_rows(self, candidate: Candidate) -> None:
        """Raises CheckpointError for a matrix that sees some tokens only: which, nothing tells."""
        given = self._reference.given.get(candidate.module, [])
        rows, tokens = sum(one.shape[:-1].numel() for one in given), self._reference.stream.shape[:-1].numel()
        is_fused = not candidate.is_packed and self._tensors[_full(candidate)].ndim == 3
        if candidate.module and not is_fused and rows != tokens:
            raise self._refused(
                f"{candidate.module}, given {rows} of {tokens} tokens as if it were one expert of many",
                "experts that lie in one tensor, as transformers has them",
            )

    def _is_multiplied(self, candidate: Candidate) -> bool:
        """Whether the matrix is multiplied by rows of inputs: the stacked biases of experts look like one."""
        return candidate.is_packed or bool(self._products[_full(candidate)])

    def _trial(self, candidate: Candidate, changes: Mapping[str, Change]) -> _Run:
        """A run with the edited matrix, all other matrices giving what they gave."""
        import torch

        held: dict[str, Change] = {name: self._as_before(name) for name in self._matrices if name != candidate.module}
        if candidate.is_packed:
            size = _first_tensor(self._reference.gave[candidate.module][0]).float().norm(dim=-1).mean()
            return self._run({**held, candidate.module: partial(_added, size * self._direction), **changes})
        name = _full(candidate)
        weight = self._tensors[name]
        draw = torch.Generator().manual_seed(11)
        inputs = weight.shape[-2 if candidate.inputs_first else -1]
        right = torch.randn(inputs, generator=draw).to(weight.device)
        # The edit has the norm of one matrix, so that it moves what the matrix gives by about as much as that is.
        size = weight.norm() / (weight.shape[0] if weight.ndim == 3 else 1) ** 0.5
        edit = (size if size > 0 else 1.0) * torch.outer(self._direction, right / right.norm())
        edited = weight + (edit.T if candidate.inputs_first else edit)
        return self._run({**held, **changes}, {name: edited})

    def _run(self, changes: Mapping[str, Change], tensors: Mapping[str, Tensor] | None = None) -> _Run:
        """The block run once; `changes` turn what modules give into something else, `tensors` stand for its own."""
        import torch

        found = _Run(torch.empty(0))

        def keep(name: str, _: Any, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> Any:
            calls = found.gave.setdefault(name, [])
            given = _first_tensor((inputs, named))
            found.given.setdefault(name, []).append(torch.empty(0) if given is None else given.clone())
            output = changes[name](output, len(calls)) if name in changes else output
            calls.append(_mapped(torch.clone, output))
            return output

        with ExitStack() as stack, torch.no_grad():
            for name, module in self._modules.items():
                handle = module.register_forward_hook(partial(keep, name), with_kwargs=True)
                stack.callback(handle.remove)
            args, named = _mapped(torch.clone, tuple(self._call))
            mine = {**self._tensors, **(tensors or {})}
            output = torch.func.functional_call(self._block, mine, args, named, strict=False)
        found.stream = _first_tensor(output).float()
        return found

    def _as_before(self, name: str) -> Change:
        """A module gives what it gave in the reference run."""
        import torch

        # one that did not run there is left alone
        return lambda output, call: (
            _mapped(torch.clone, self._reference.gave[name][call])
            if call < len(self._reference.gave.get(name, []))
            else output
        )

    def _moved(self, run: _Run) -> Tensor | None:
        """By how much the stream moved; None where it stayed."""
        before = self._reference.stream
        shift = run.stream - before
        return shift if bool(shift.norm() > STILL * before.norm()) else None

    def _is_along(self, shift: Tensor) -> bool:
        """Whether every token moved along the direction."""
        import torch

        along = (shift @ self._direction)[..., None] * self._direction
        rounding = 10 * STILL * self._reference.stream.norm()
        return bool(torch.isfinite(shift).all() and (shift - along).norm() <= ALONG * shift.norm() + rounding)

    def _scale(self, candidate: Candidate, run: _Run, shift: Tensor) -> float:
        """What the matrix gives is multiplied by on its way to the stream (of a gate, on average)."""
        if not candidate.module:
            return 1.0
        before, after = (_first_tensor(one.gave[candidate.module][0]) for one in (self._reference, run))
        if after is None or after.shape[-1] != self._width:
            return 1.0
        written = ((after - before).float() @ self._direction).flatten()
        arrived = (shift @ self._direction).flatten()
        if written.shape != arrived.shape:  # experts side by side
            return float(arrived.sum() / written.sum())
        return float((written @ arrived) / (written @ written))

    def _norms(self, candidate: Candidate, run: _Run) -> list[str]:
        """Modules without matrices that gave something else in this run, of the stream's width, in order."""
        found: list[str] = []
        for name, outputs in run.gave.items():
            is_leaf = not any(True for _ in self._modules[name].children())
            if not is_leaf or name in self._matrices or name == candidate.module or len(outputs) != 1:
                continue
            before, after = (_first_tensor(one.gave[name][0]) for one in (self._reference, run))
            if after is not None and after.shape[-1] == self._width and bool((after != before).any()):
                found.append(name)
        return found

    def _through(self, norms: list[str], run: _Run) -> float | None:
        """The factor behind the last of these norms, where the edit comes to the first along the direction and what
        each gives comes on along the direction too; None where not."""
        if not norms or not self._is_along_at(norms[0], run):
            return None
        held: dict[str, Change] = {name: self._as_before(name) for name in self._matrices}
        for norm, then in zip(norms, [*norms[1:], None], strict=True):
            size = _first_tensor(self._reference.gave[norm][0]).float().norm(dim=-1).mean()
            nudged = self._run({**held, norm: partial(_added, size * self._direction)})
            if then is not None:
                if not self._is_along_at(then, nudged):
                    return None
                continue
            shift = self._moved(nudged)
            if shift is None or not self._is_along(shift):
                return None
            return float((shift @ self._direction).mean() / size)
        return None

    def _is_along_at(self, name: str, run: _Run) -> bool:
        before, after = (one.given[name][0].float() for one in (self._reference, run))
        return before.shape == after.shape and bool((after != before).any()) and self._is_along(after - before)

    def _check_nothing_else(self, proven: list[Proven]) -> None:
        """Raises CheckpointError naming a matrix that moves the stream with the writers' outputs at 0."""
        import torch

        writers = {one.module for one in proven} & {*self._matrices}
        edited = {*map(_full, proven)}
        silent: dict[str, Change] = {name: lambda output, _: _mapped(torch.zeros_like, output) for name in writers}
        base = self._run(silent)

        def moves(names: list[str]) -> bool:
            changes: dict[str, Change] = {name: self._noise for name in names if name in self._matrices}
            own = {name: self._noise(self._tensors[name], 0) for name in names if name in self._scattered}
            stream = self._run({**changes, **silent}, own).stream
            return not bool((stream - base.stream).norm() <= STILL * base.stream.norm())

        others = [name for name in [*self._matrices, *self._scattered] if name not in writers and name not in edited]
        if others and moves(others):
            guilty = next((name for name in reversed(others) if moves([name])), others[-1])  # the nearest to the stream
            raise self._refused(
                f"{guilty}, which moves the residual stream otherwise than by adding what a matrix gives",
                "matrices whose outputs are added to it",
            )

    def _noise(self, output: Any, _: int) -> Any:
        import torch

        def noisy(one: Tensor) -> Tensor:
            if not one.is_floating_point():
                return one
            drawn = torch.randn(one.shape, generator=self._draw).to(one.device, one.dtype)
            return one + (one.abs().mean() + 1e-3) * drawn

        return _mapped(noisy, output)

    def _refused(self, seen: str, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{self._place} ({type(self._block).__name__})", seen=seen, expected=expected, remedy=REMEDY
        )


def _full(one: Candidate | Proven) -> str:
    return f"{one.module}.{one.parameter}".lstrip(".")


def _own_matrices(module: Any) -> list[str]:
    return [name for name, one in module.named_parameters(recurse=False) if one.ndim > 1]


def _plain_tensors(block: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers in floating point; 8-bit floats have a scale beside them and are no numbers yet."""
    for some in (block.named_parameters(), block.named_buffers()):
        yield from ((name, one) for name, one in some if one.is_floating_point() and one.element_size() > 1)


def _in_float32(call: Call) -> Call:
    return Call(*_mapped(lambda one: one.float() if one.is_floating_point() else one, tuple(call)))


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The change of every tensor in a tuple, list or dict of anything."""
    import torch
    from torch.utils import _pytree

    return _pytree.tree_map(lambda one: change(one) if isinstance(one, torch.Tensor) else one, value)


def _first_tensor(value: Any) -> Any:
    import torch
    from torch.utils import _pytree

    return next((one for one in _pytree.tree_leaves(value) if isinstance(one, torch.Tensor)), None)


def _added(shift: Tensor, output: Any, _: int) -> Any:
    """A module's output with a shift added to its first tensor."""
    first = _first_tensor(output)
    return _mapped(lambda one: one + shift.to(one.dtype) if one is first else one, output)
