"""The merge methods as values, and what each does to a tensor.

A value holds everything a method needs to know beside the models; `merged` is the one place where they part ways. The
settings of a user become values in `config.py`.
"""

# numpy and torch leave the types of some methods open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from jaxtyping import Float, Float32

from alignkeep.merge.arithmetic import linear, nuslerp, slerp
from alignkeep.merge.consensus import task_vector_merge
from alignkeep.merge.pieces import Array, Pieces, Whole
from alignkeep.merge.sparsify import Magnitude, Outliers, Random, RankedRandom, Sparsifier
from alignkeep.merge.stock import model_stock

if TYPE_CHECKING:  # torch takes longer to import than a merge that does without it takes
    from torch import Tensor

__all__ = [
    "InputMap",
    "Linear",
    "Magnitude",
    "Mapped",
    "Method",
    "ModelStock",
    "NuSlerp",
    "Outliers",
    "Random",
    "RankedRandom",
    "Slerp",
    "Sparsifier",
    "Subspace",
    "TaskVectors",
    "identity_of",
    "input_map",
    "merge_tensor",
    "merged",
]


@dataclass(frozen=True, slots=True)
class Linear:
    """sum_i weights_i x_i, the base first. Nothing is normalised here."""

    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Slerp:
    """Along the arc from base (t = 0) to the one tuned model (t = 1)."""

    t: float


@dataclass(frozen=True, slots=True)
class NuSlerp:
    """mergekit's nuslerp: from base to the one tuned model, or (`over_base`) between the task vectors of two. `flatten`
    takes the tensor as one vector; else its last axis holds the vectors, or (`row_wise`) its first.
    """

    t: float
    over_base: bool = False
    row_wise: bool = False
    flatten: bool = True


@dataclass(frozen=True, slots=True)
class ModelStock:
    """The weight of the mean of two or more tuned models follows from the angle between them, tensor by tensor."""


@dataclass(frozen=True, slots=True)
class TaskVectors:
    """base + scale * (weighted sum of sparsified task vectors): task arithmetic, and with sparsifiers and a consensus
    TIES, DARE, DELLA and Breadcrumbs. One weight and one sparsifier (None: keep everything) per tuned model.
    """

    weights: tuple[float, ...]
    sparsify: tuple[Sparsifier | None, ...]
    consensus: Literal["sum", "count"] | None = None
    normalize: bool = False
    scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Subspace:
    """The tune scaled by `weight` within the span of the orthonormal columns of `basis`, kept outside. `input_axis` is
    -1, or 0 for matrices stored (in, out).
    """

    weight: float
    basis: Float[Tensor, "d_in m"]
    input_axis: int = -1


@dataclass(frozen=True, slots=True, eq=False)
class Mapped:
    """The tune through the map scale I + reads writes^T of its inputs: nothing of it at weight 0, all of it at 1."""

    weight: float
    scale: float
    reads: Float[Tensor, "d_in k"]
    writes: Float[Tensor, "d_in k"]
    input_axis: int = -1


class InputMap(NamedTuple):
    """scale I + reads writes^T."""

    scale: float
    reads: Float[Tensor, "d_in k"]
    writes: Float[Tensor, "d_in k"]


Method = Linear | Slerp | NuSlerp | ModelStock | TaskVectors | Subspace | Mapped


def merged(method: Method, pieces: Pieces) -> Iterator[Float32[Array, " n"]]:
    """The merged tensor in order, flat, in float32; the parts need not be as long as the pieces. Raises ValueError,
    before the first part, when the number of tuned models is not the method's.
    """
    match method:
        case Linear(weights):
            return linear(pieces, weights)
        case Slerp(t):
            return slerp(pieces, t)
        case NuSlerp(t, over_base, row_wise, flatten):
            return nuslerp(pieces, t, over_base=over_base, row_wise=row_wise, flatten=flatten)
        case ModelStock():
            return model_stock(pieces)
        case TaskVectors(weights, sparsify, consensus, normalize, scale):
            return task_vector_merge(pieces, weights, sparsify, consensus=consensus, normalize=normalize, scale=scale)
        case Subspace() | Mapped():
            from alignkeep.merge.mapped import mapped_merge

            return mapped_merge(pieces, input_map(method), input_axis=method.input_axis)


def input_map(method: Subspace | Mapped) -> InputMap:
    """What the method does to the inputs of an update."""
    match method:
        case Subspace(weight, basis):
            return InputMap(1.0, (weight - 1) * basis, basis)
        case Mapped(_, scale, reads, writes):
            return InputMap(scale, reads, writes)


def merge_tensor(method: Method, name: str, base: Tensor, tuned: Sequence[Tensor]) -> Tensor:
    """One tensor merged in memory: float32, in the shape of the base. Random methods draw by its name."""
    import torch

    first, *others = (tensor.detach().float().cpu().numpy() for tensor in (base, *tuned))
    parts = [torch.from_numpy(part.copy()) for part in merged(method, Whole(name, first, others))]
    return (torch.cat(parts) if parts else torch.empty(0)).reshape(base.shape)


def identity_of(method: Method) -> Literal["base"] | int | None:
    """Which model the method gives back by construction, whatever the numbers: the base, a tuned model by its index
    (from 0), or none. Law: where it says so, the merge has that model's numbers.
    """
    match method:
        case Linear(weights):
            return _only(weights)
        case Slerp(t):
            return _only((1 - t, t))
        case NuSlerp(t, over_base):
            end = _only((1 - t, t))
            return end if not over_base else None if end is None else 0 if end == "base" else 1
        case TaskVectors(weights, sparsify, scale=scale):
            silent = [
                weight == 0 or (one is not None and one.density == 0)
                for weight, one in zip(weights, sparsify, strict=True)
            ]
            return "base" if scale == 0 or all(silent) else None
        case Subspace(weight):
            return 0 if weight == 1 else None
        case Mapped(weight):
            return _only((1 - weight, weight))
        case ModelStock():
            return None


def _only(weights: Sequence[float]) -> Literal["base"] | int | None:
    if weights.count(1) != 1 or weights.count(0) != len(weights) - 1:
        return None
    return weights.index(1) - 1 if weights.index(1) else "base"
