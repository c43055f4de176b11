"""Where the matrices of a model in memory lie in its checkpoint: the names that transformers itself writes them under,
and proof that the same numbers stand there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkeep.errors import CheckpointError
from alignkeep.models.architecture import Writer
from alignkeep.models.headers import TensorEntry
from alignkeep.models.matrices import under_adapter

if TYPE_CHECKING:
    from torch import Tensor


class Stored(NamedTuple):
    """A writer on disk: the tensor, its index on the first axis where the tensor holds all experts (else None), and
    whether it lies there (in, out)."""

    tensor: str
    expert: int | None
    inputs_first: bool


def stored_as(writers: Sequence[Writer], model: Any, entries: Mapping[str, TensorEntry]) -> dict[str, Stored]:
    """Where these writers lie in a checkpoint, by writer's name. An adapter over the model may be on.

    Raises CheckpointError unless exactly one stored tensor has a writer's name (whatever stands before the list of
    blocks in it), its shape and its numbers.
    """
    base = under_adapter(model)
    by_tensor: dict[tuple[str, str], list[Writer]] = {}
    for writer in writers:
        by_tensor.setdefault((writer.place, writer.parameter), []).append(writer)
    found: dict[str, Stored] = {}
    with ExitStack() as files:
        numbers = _Numbers(files)
        for some in by_tensor.values():
            names = _names(some[0], base)
            for writer in some:
                name, expert, inputs_first = names[writer.expert or 0]
                shape = tuple(writer.weight.mT.shape if inputs_first else writer.weight.shape)
                count = getattr(writer.module, writer.parameter).shape[0]
                shape = shape if expert is None else (count, *shape)
                place = Stored(name, expert, inputs_first)
                there = [place._replace(tensor=one) for one in _fitting(name, writer.block, shape, entries)]
                same = [one for one in there if numbers.are_same(writer, one, entries[one.tensor])]
                if len(same) != 1:
                    raise CheckpointError(
                        f"tensor {name}",
                        seen=f"{len(same)} stored tensors of that name, shape {list(shape)} and the numbers in memory"
                        + (f" ({len(there)} of that name and shape)" if len(there) != len(same) else ""),
                        expected="one",
                        remedy="save the model again with save_pretrained, or take --as adapter",
                    )
                found[writer.name] = same[0]
    return found


def _names(writer: Writer, base: Any) -> dict[int, Stored]:
    """The names of a writer's tensor on disk, by expert (0 where it holds one matrix), as transformers saves it.

    What is handed to its conversion is not the weight but the number of each of its rows, so that what comes out says
    which rows it holds and which way round.
    """
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    shape = getattr(writer.module, writer.parameter).shape
    *before, rows, _ = shape
    numbered = torch.arange(rows * (before[0] if before else 1)).view(*before, rows, 1).expand(shape)
    name = f"{writer.place}.{writer.parameter}"
    try:
        saved = dict(revert_weight_conversion(base, {name: numbered}))
    except (RuntimeError, ValueError, LookupError) as error:
        raise CheckpointError(
            f"tensor {name}",
            seen=f"a name that transformers cannot turn into one on disk ({str(error)[:120]})",
            expected="one",
            remedy="take --as adapter",
        ) from error
    found: dict[int, Stored] = {}
    for key, rows_there in saved.items():
        first = rows_there[0] if rows_there.ndim == 3 else rows_there
        turned = writer.inputs_first is bool(first.shape[0] < 2 or first[0, 0] != first[1, 0])
        fused = rows_there.ndim == 3
        for at in range(rows_there.shape[0] if fused else 1):
            number = int((rows_there[at] if fused else rows_there)[0, 0]) // rows
            found[number] = Stored(key, at if fused else None, turned)
    return found


def _fitting(name: str, block: int, shape: tuple[int, ...], entries: Mapping[str, TensorEntry]) -> list[str]:
    """Stored tensors of this name and shape; where there is none, of the name without what stands first in it."""
    tail = name
    while re.match(rf".*\.{block}\.", tail):
        named = [one for one in entries if one == tail or one.endswith(f".{tail}")]
        fitting = [one for one in named if entries[one].shape == shape]
        if fitting:
            return fitting
        tail = tail.partition(".")[2]
    return []


class _Numbers:
    """Some rows of stored tensors."""

    def __init__(self, files: ExitStack) -> None:
        self._files, self._open = files, dict[str, Any]()

    def are_same(self, writer: Writer, place: Stored, entry: TensorEntry) -> bool:
        """Whether the first, middle and last row of the matrix are stored at this place."""
        weight = writer.weight
        rows = dict.fromkeys((0, len(weight) // 2, len(weight) - 1))
        return all(there.to(weight.dtype).equal(weight[row].cpu()) for row, there in self._rows(rows, place, entry))

    def _rows(self, rows: Mapping[int, None], place: Stored, entry: TensorEntry) -> Iterator[tuple[int, Tensor]]:
        from safetensors import safe_open

        path = str(entry.file)
        if path not in self._open:
            self._open[path] = self._files.enter_context(safe_open(path, framework="pt"))
        stored = self._open[path].get_slice(place.tensor)
        for row in rows:
            matrix = (slice(None), slice(row, row + 1)) if place.inputs_first else (slice(row, row + 1), slice(None))
            expert = () if place.expert is None else (slice(place.expert, place.expert + 1),)
            yield row, stored[(*expert, *matrix)].flatten()
