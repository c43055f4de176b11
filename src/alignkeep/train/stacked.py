"""All adapted matrices at once: those of one shape are stacked, so that a step costs a few operations per shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from alignkeep.errors import RecipeError
from alignkeep.train.penalties import Emphasis, coherence, collision, fisher_penalty, inner, trust_penalty
from alignkeep.train.split import LowRank, LowRankSplit, Side, Subspace, split

if TYPE_CHECKING:
    from alignkeep.models.squares import RunningSquares
    from alignkeep.train.align_guard_settings import AlignGuardSettings


class Penalty(NamedTuple):
    """What is added to the loss, and its parts, weighted: the alignment term, the trust region, the overlap and the
    coherence. `inside` and `beside` are the squared norms of the update in and out of the subspace."""

    total: Tensor
    fisher: Tensor
    trust: Tensor
    collision: Tensor
    coherence: Tensor
    inside: Tensor
    beside: Tensor


class Adapted(NamedTuple):
    """A module with a LoRA adapter: dW = scaling * B A."""

    down: Any  # A
    up: Any  # B
    scaling: float
    base: Any
    whole: Any  # the base's matrix with its adapter


class Stacked:
    """The adapters of a model, grouped by shape, with their subspaces on the adapters' device in float32.

    Ranks of bases differ: they are padded with directions of zero, which nothing is projected onto.
    """

    def __init__(self, subspaces: Mapping[str, Subspace], settings: AlignGuardSettings) -> None:
        self._subspaces, self._settings = subspaces, settings
        self._stacks: dict[tuple[str, ...], Subspace] = {}

    def _groups(self, modules: Mapping[str, Adapted]) -> list[tuple[list[str], Subspace]]:
        """The adapters as they are now: parameters and scalings are never kept, they may be replaced (FSDP)."""
        groups: dict[tuple[object, ...], list[str]] = {}
        for name, one in modules.items():
            key = tuple(one.up.shape), tuple(one.down.shape), one.scaling, str(one.up.device)
            groups.setdefault(key, []).append(name)
        found: list[tuple[list[str], Subspace]] = []
        for (*_, device), names in groups.items():
            key = (str(device), *names)
            if key not in self._stacks:
                self._stacks[key] = _stack([self._subspaces[name] for name in names], str(device))
            found.append((names, self._stacks[key]))
        return found

    def penalty(self, modules: Mapping[str, Adapted], curvature: RunningSquares | None = None) -> Penalty:
        """`curvature` is what H is made of where the settings want one; before its first step H has no entries yet,
        and the terms that weigh by it are 0."""
        settings = self._settings
        device = next(iter(modules.values())).up.device
        sums = {name: torch.zeros((), device=device) for name in Penalty._fields[1:]}

        def add(name: str, strength: float, values: Tensor) -> None:
            sums[name] = sums[name] + strength * values.sum().to(device)

        for names, subspace in self._groups(modules):
            some = [modules[name] for name in names]
            parts = split(_update(some), subspace)
            h, begun = (None, None), settings.curvature == "none"
            if not begun:
                h, begun = _squares(names, curvature, some[0].up.device)
            with torch.no_grad():
                add("inside", 1.0, inner(parts.aligned, parts.aligned))
                add("beside", 1.0, inner(parts.rest, parts.rest))
            if settings.alignment:
                add("fisher", settings.alignment, fisher_penalty(parts.aligned, subspace))
            if settings.trust and begun:
                add("trust", settings.trust, trust_penalty(parts.rest, *h))
            if settings.collision and settings.overlap:
                add("collision", settings.collision * settings.overlap, self._collision(parts, some))
            metric = h if settings.metric == "curvature" else (None, None)
            if settings.collision and settings.overlap < 1 and (begun or settings.metric == "fisher"):
                add("coherence", settings.collision * (1 - settings.overlap), coherence(parts, subspace, *metric))
        total = sums["fisher"] + sums["trust"] + sums["collision"] + sums["coherence"]
        return Penalty(total, **sums)

    @torch.no_grad()
    def energies(self, modules: Mapping[str, Adapted]) -> dict[str, tuple[float, float]]:
        """Squared norms of every matrix's update, inside its subspace and beside it."""
        found: dict[str, tuple[float, float]] = {}
        for names, subspace in self._groups(modules):
            parts = split(_update([modules[name] for name in names]), subspace)
            pairs = torch.stack([inner(part, part) for part in parts], -1).tolist()
            found |= {name: (pair[0], pair[1]) for name, pair in zip(names, pairs, strict=True)}
        return {name: found[name] for name in modules}

    def _collision(self, parts: LowRankSplit, modules: Sequence[Adapted]) -> Tensor:
        settings = self._settings.emphasis
        emphasis = Emphasis(settings.beta, settings.tau, settings.compares)
        if emphasis.compares != "weight":
            return collision(parts, emphasis)
        return collision(parts, emphasis, torch.stack([_matrix(one.base) for one in modules]))


def _squares(
    names: Sequence[str], curvature: RunningSquares | None, device: Any
) -> tuple[tuple[Tensor | None, Tensor | None], bool]:
    """H's rows and columns of these matrices, and whether there are any. One that no token has reached weighs 0."""
    found = {} if curvature is None else {name: one for name in names if (one := curvature.of(name)) is not None}
    if not found:
        return (None, None), False
    some = next(iter(found.values()))
    every = [found.get(name) or tuple(torch.zeros_like(part) for part in some) for name in names]
    rows, columns = (torch.stack(list(parts)).to(device) for parts in zip(*every, strict=True))
    return (rows, columns), True


def _update(modules: Sequence[Adapted]) -> LowRank:
    left = torch.stack([_whole(one.up).float() for one in modules])
    right = torch.stack([_whole(one.down).float() for one in modules])
    return LowRank(left * modules[0].scaling, right)


def _whole(parameter: Any) -> Tensor:
    """A parameter that FSDP has cut into shards, whole: its gradient goes back to the shards."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def _matrix(base: Any) -> Tensor:
    weight = _whole(base.weight).detach()
    if not weight.is_floating_point():
        raise RecipeError(
            "alignguard.emphasis.compares",
            seen="weight, over a quantised base",
            expected="update or relative, which need no entries of the base",
            remedy="set it to update",
        )
    return weight.mT if isinstance(base, Conv1D) else weight


def _stack(subspaces: Sequence[Subspace], device: Any) -> Subspace:
    sides: list[Side | None] = []
    for some in zip(*subspaces, strict=True):
        there = [side for side in some if side is not None]
        if not there:
            sides.append(None)
            continue
        rank = max(side.vectors.shape[1] for side in there)
        padded = [
            Side(
                torch.nn.functional.pad(side.vectors.float(), (0, rank - side.vectors.shape[1])),
                torch.nn.functional.pad(side.eigenvalues.float(), (0, rank - side.eigenvalues.shape[0])),
                side.diagonal.float(),
            )
            for side in there
        ]
        sides.append(Side(*(torch.stack(list(parts)).to(device) for parts in zip(*padded, strict=True))))
    return Subspace(*sides)
