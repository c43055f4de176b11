"""Merges that see the update through its inputs: base + D M.

Symbols
    D          tuned - base
    U, P       basis (d_in, m) of the directions the aligned model uses on alignment prompts; P = U U^T
    M          map of the inputs, scale I + reads writes^T; I - (1 - w) P for the alignment subspace

Ours, after Matena and Raffel, Merging Models with Fisher-Weighted Averaging, arXiv:2111.09832 (`subspace/balance.py`
finds the map). Products are torch's, which is imported for these two methods only.
"""

# torch leaves the types of some methods open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Float32
from pydantic import Field

from alignkeep.merge.linear import Linear, weighted_mean
from alignkeep.merge.method import (
    Asked,
    Identity,
    InputMap,
    MergeMethod,
    Rule,
    Space,
    Spectrum,
    TensorMerge,
    only_model,
)  # fmt: skip
from alignkeep.merge.pieces import Array, Pieces, row_length
from alignkeep.settings import Checked
from alignkeep.works import Citation

if TYPE_CHECKING:  # torch takes longer to import than a merge that does without it takes
    from torch import Tensor

# A product's bits depend on its shape, and on the number of threads where a side is no multiple of 16 (measured with
# MKL): so products are of blocks of so many rows, cut at fixed places, with sides filled up with zeros.
TILE = 64
_ALONE, _under_way, _threads = Lock(), list[None](), [1]


@dataclass(frozen=True, eq=False)
class Subspace(TensorMerge):
    """The tune scaled by `weight` within the span of the orthonormal columns of `basis`, kept outside. `input_axis` is
    -1, or 0 for matrices stored (in, out).
    """

    weight: float
    basis: Float[Tensor, "d_in m"]
    input_axis: int = -1

    def merged(self, pieces: Pieces) -> Iterator[Float32[Array, " n"]]:
        return mapped_merge(pieces, self.through, input_axis=self.input_axis)

    @property
    def identity(self) -> Identity:
        return 0 if self.weight == 1 else None

    @property
    def through(self) -> InputMap:
        return InputMap(1.0, (self.weight - 1) * self.basis, self.basis)


@dataclass(frozen=True, eq=False)
class Mapped(TensorMerge):
    """The tune through the map scale I + reads writes^T of its inputs: nothing of it at weight 0, all of it at 1."""

    weight: float
    scale: float
    reads: Float[Tensor, "d_in k"]
    writes: Float[Tensor, "d_in k"]
    input_axis: int = -1

    def merged(self, pieces: Pieces) -> Iterator[Float32[Array, " n"]]:
        return mapped_merge(pieces, self.through, input_axis=self.input_axis)

    @property
    def identity(self) -> Identity:
        return only_model((1 - self.weight, self.weight))

    @property
    def through(self) -> InputMap:
        return InputMap(self.scale, self.reads, self.writes)


def mapped_merge(pieces: Pieces, through: InputMap, *, input_axis: int = -1) -> Iterator[Float32[Array, " n"]]:
    """base + D M: the update seen through a map of its inputs.

    The input side is the last axis, or axis 0 of a matrix (d_in, d_out) such as Conv1D's, where it takes two passes.
    Law: scale 1 and no reads give tuned exactly. Raises ValueError for another axis and when the map has not as many
    rows as the input side.
    """
    inputs = pieces.shape[input_axis] if pieces.shape else 1
    if len(through.reads) != inputs or len(through.writes) != inputs:
        raise ValueError(f"the map is of {len(through.reads)} inputs, tensor {pieces.name!r} has {inputs}")
    import torch

    read, write = _filled(through.reads), _filled(through.writes)
    if input_axis in (-1, len(pieces.shape) - 1):
        for _, update, tuned in _row_blocks(pieces):
            inside = _product(_product(update, read), write.T)[: len(tuned), : tuned.shape[1]]
            yield _mapped(tuned, update, inside, through.scale)
    elif input_axis == 0 and len(pieces.shape) == 2:
        coordinates = torch.zeros((), dtype=torch.float64)
        for row, update, _ in _row_blocks(pieces):
            coordinates = coordinates + _product(read[row : row + TILE].T, update)
        for row, update, tuned in _row_blocks(pieces):
            inside = _product(write[row : row + TILE], coordinates.float())[: len(tuned), : tuned.shape[1]]
            yield _mapped(tuned, update, inside, through.scale)
    else:
        raise ValueError(f"the input side is the last axis, or axis 0 of a matrix, not {input_axis} of {pieces.shape}")


def seen_through(factor: Float32[Array, "r d_in"], through: InputMap) -> Float32[Array, "r d_in"]:
    """A M, the factor A of an update B A seen through the same map."""
    import torch

    numbers = torch.from_numpy(factor)
    return torch.add(through.scale * numbers, numbers @ through.reads.float() @ through.writes.float().T).numpy()


def _product(left: Float[Tensor, "a b"], right: Float[Tensor, "b c"]) -> Float[Tensor, "a c"]:
    """Of matrices, in one thread: on some processors the order of summation depends on how many there are. As long as
    one product is under way all are in one thread, whichever of the workers asked for it."""
    import torch

    with _ALONE:
        if not _under_way:
            _threads[:] = [torch.get_num_threads()]
        _under_way.append(None)
        torch.set_num_threads(1)
    try:
        return torch.mm(left, right)
    finally:
        with _ALONE:
            _under_way.pop()
            if not _under_way:
                torch.set_num_threads(_threads[0])


def _mapped(
    tuned: Float[Tensor, "rows d"], update: Float[Tensor, "tile filled"], inside: Float[Tensor, "rows d"], scale: float
) -> Float32[Array, " n"]:
    """base + scale D + inside, from tuned = base + D."""
    if scale != 1:
        tuned = tuned.sub_(update[: len(tuned), : tuned.shape[1]], alpha=1 - scale)
    return tuned.add_(inside).view(-1).numpy()


def _filled(factor: Float[Tensor, "d_in k"]) -> Float[Tensor, "tiled tiled"]:
    """In float32, filled up to whole tiles: products of one shape have one order of summation."""
    import torch

    return torch.nn.functional.pad(factor.float(), (0, -factor.shape[1] % TILE, 0, -factor.shape[0] % TILE))


def _row_blocks(pieces: Pieces) -> Iterator[tuple[int, Float[Tensor, "tile filled"], Float[Tensor, "rows d"]]]:
    """The update and the one tuned model in blocks of TILE rows, cut at the same places whatever the pieces, with the
    number of the first row. The last block of tuned rows may be shorter; updates are filled up with zeros.
    """
    import torch

    width = row_length(pieces.shape)
    filled = torch.zeros(TILE, width + -width % TILE)
    waiting = torch.empty(2, 0, width)
    first = 0
    for piece in pieces.rows():
        (tuned,) = piece.tuned
        both = torch.stack((torch.from_numpy(piece.base), torch.from_numpy(tuned)))
        waiting = torch.cat((waiting, both.view(2, -1, width)), 1)
        last_piece = piece.start + len(tuned) == math.prod(pieces.shape)
        while waiting.shape[1] >= (1 if last_piece else TILE):
            base_rows, tuned_rows = waiting[:, :TILE]
            torch.sub(tuned_rows, base_rows, out=filled[: len(tuned_rows), :width])
            filled[len(tuned_rows) :].zero_()
            yield first, filled, tuned_rows
            waiting, first = waiting[:, TILE:], first + TILE


_MOST = "largest rank that is kept of a matrix's Fisher factor"
_EXAMPLES = "how many of the alignment and of the tuning data it is measured on at most, drawn with the seed"


class FisherOptions(Checked):
    most: int = Field(default=32, gt=0, le=1_000_000_000, description=_MOST)  # subspace.balance.RANK
    examples: int = Field(default=256, gt=0, le=1_000_000_000, description=_EXAMPLES)


class SubspaceOptions(Checked):
    share: float = Field(default=0.9, gt=0, le=1, description="smallest share of the Fisher's trace that is kept")
    most: int = Field(default=64, gt=0, le=1_000_000_000, description=_MOST)  # subspace.eigenbasis.MOST
    examples: int = Field(default=256, gt=0, le=1_000_000_000, description=_EXAMPLES)


class MappedMethod(MergeMethod[Any], ABC):
    """Through a map where a tensor has one; what has none is merged linearly."""

    models = (1, 1)
    weighs = "share"
    adapter = "mapped"
    in_auto = True

    def tensor(self, asked: Asked[Any]) -> Linear:
        return weighted_mean(asked.weight, asked.models)

    @abstractmethod
    def maps(self, weight: float, spaces: Mapping[str, Space]) -> Mapping[str, TensorMerge]:
        """By tensor name."""

    def rule(self, asked: Asked[Any]) -> Rule:
        maps, linear = self.maps(asked.weight, asked.spaces), self.tensor(asked)
        return lambda name: maps.get(name, linear)


class FisherMethod(MappedMethod):
    name = "fisher"
    title = "base and tune averaged in every input direction by what each one's data depends on"
    options = FisherOptions
    takes_tuning_data = True
    cites = (
        Citation(
            "fisher",
            "Averaging base and tune by what each one's data depends on",
            ("matena2022merging", "jin2023dataless", "martens2015optimizing"),
            (
                "The Fisher's input side, of few leading directions, in place of its diagonal.",
                "Between the base on alignment data and the tune on its own: our use, published nowhere.",
            ),
        ),
    )

    def spectrum(self, options: FisherOptions) -> Spectrum:
        return Spectrum(1.0, options.most, options.examples)

    def maps(self, weight: float, spaces: Mapping[str, Space]) -> Mapping[str, TensorMerge]:
        if not spaces:
            return {}
        from alignkeep.subspace.balance import balance

        tuning = {name: one.tuning for name, one in spaces.items() if one.tuning is not None}
        maps = balance({name: one.alignment for name, one in spaces.items()}, tuning or None, weight)
        return {name: Mapped(weight, *maps[name], one.input_axis) for name, one in spaces.items()}


class SubspaceMethod(MappedMethod):
    name = "alignment_subspace"
    title = "the tune scaled by the weight where alignment data has its inputs, kept elsewhere"
    options = SubspaceOptions
    cites = (
        Citation(
            "alignment_subspace",
            "Taking back what a tune did to alignment inputs",
            ("das2025alignguard", "martens2015optimizing"),
            ("The projector is that paper's; merging with it is ours, and published nowhere.",),
        ),
    )

    def spectrum(self, options: SubspaceOptions) -> Spectrum:
        return Spectrum(options.share, options.most, options.examples)

    def maps(self, weight: float, spaces: Mapping[str, Space]) -> Mapping[str, TensorMerge]:
        return {name: Subspace(weight, one.alignment.vectors, one.input_axis) for name, one in spaces.items()}


METHODS = (FisherMethod(), SubspaceMethod())
