"""The edited checkpoint on disk: the base's bytes with the writers' changed, streamed, and proof of what was changed.

Arithmetic is float32 from the stored weights, with one rounding; of a tensor that holds all experts each is edited by
itself. What an adapter over the base changes is folded in on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alignkeep.checkpoint.adapters import Adapter
from alignkeep.checkpoint.changes import Change
from alignkeep.checkpoint.companions import CONFIG, INDEX, TOKENIZER, copy_companions
from alignkeep.checkpoint.numbers import FORMATS, Numbers
from alignkeep.checkpoint.reading import StoredNumbers
from alignkeep.checkpoint.rewrite import Edit, not_finite, rewrite
from alignkeep.checkpoint.shards import Written
from alignkeep.checkpoint.verify import check_same_files
from alignkeep.errors import CheckpointError, NoEffectError
from alignkeep.models.headers import TensorEntry
from alignkeep.progress import Progress

PIECE = 1 << 18  # numbers worked on at a time, as in a merge


@dataclass(frozen=True)
class Factors:
    """left right^T added to a matrix (out, in); `inputs_first` says that it is stored turned round."""

    left: Numbers  # (out,) float32
    right: Numbers  # (in,) float32
    inputs_first: bool = False

    @property
    def by_row(self) -> Numbers:
        return self.right if self.inputs_first else self.left

    @property
    def by_column(self) -> Numbers:
        return self.left if self.inputs_first else self.right


@dataclass
class EditedTensor:
    """A stored tensor with an adapter's change folded in and rank-one changes added, by expert (0 where it holds one
    matrix): an edit for `checkpoint.rewrite`."""

    name: str
    entry: TensorEntry
    factors: Mapping[int, Factors]
    change: Change | None = None
    made_of: Sequence[TensorEntry] = field(init=False)

    def __post_init__(self) -> None:
        self.made_of = (self.entry,)

    def __iter__(self) -> Iterator[Numbers]:
        shape = self.entry.shape
        *before, rows, columns = (*(1,) * (3 - len(shape)), *shape)
        some = max(1, PIECE // columns)
        buffer = np.empty(min(some, rows) * columns, np.float32)
        with StoredNumbers(self.entry) as stored:
            for expert in range(before[0]):
                for row in range(0, rows, some):
                    count = min(some, rows - row)
                    numbers = buffer[: count * columns]
                    self._fill(stored, (expert * rows + row) * columns, numbers)
                    found = self.factors.get(expert)
                    if found is not None:
                        table = numbers.reshape(count, columns)
                        table += found.by_row[row : row + count, None] * found.by_column
                    yield numbers
        if self.change is not None:
            self.change.forget()

    def _fill(self, stored: StoredNumbers, start: int, numbers: Numbers) -> None:
        stored.fill(start, numbers)
        if not stored.is_finite():
            raise not_finite(self.made_of, self.entry, self.name)
        if self.change is not None:
            self.change.add_to(numbers, start)


def edits_of(
    entries: Mapping[str, TensorEntry], factors: Mapping[str, Mapping[int, Factors]], adapter: Adapter | None = None
) -> dict[str, Edit | TensorEntry]:
    """What is done to which tensor: `factors` by tensor and expert, on top of what an adapter does. Raises
    CheckpointError for factors of a tensor that cannot be calculated with."""
    changes = {} if adapter is None else adapter.changes
    edits: dict[str, Edit | TensorEntry] = {} if adapter is None else dict(adapter.replaced)
    for name in sorted({*factors, *changes}):
        kept = edits.get(name)  # an adapter may store a matrix whole
        entry = kept if isinstance(kept, TensorEntry) else entries[name]
        if entry.dtype not in FORMATS:
            raise CheckpointError(
                f"{entry.file}: tensor {name}",
                seen=f"packed weights ({entry.dtype})",
                expected="floating point",
                remedy="take --as adapter: a quantised model can have the edit beside it only",
            )
        edits[name] = EditedTensor(name, entry, factors.get(name, {}), changes.get(name))
    if changes:
        import torch  # noqa: F401  # here, not by whichever worker comes first
    return edits


def write_model(
    base: Path,
    entries: Mapping[str, TensorEntry],
    edits: Mapping[str, Edit | TensorEntry],
    work: Path,
    *,
    tokenizer: Path | None = None,
    progress: Progress | None = None,
) -> tuple[list[Written], dict[str, str]]:
    """The edited checkpoint in `work`, in the base's shards, with the files beside it; returns its tensors and the
    reason for each that came out equal.

    Raises NoEffectError where all did, CheckpointError where another tensor changed than was meant to.
    """
    written = rewrite(entries, edits, work, progress=progress)
    changed = {tensor.name for tensor in written if tensor.change == "changed"}
    equal = {tensor.name: f"the change is smaller than a step of {tensor.dtype}"
             for tensor in written if tensor.change == "equal"}  # fmt: skip
    if changed | equal.keys() != edits.keys():
        stray = sorted((changed | equal.keys()) ^ edits.keys())
        raise CheckpointError(
            f"tensor {stray[0]}",
            seen="a change that was not planned",
            expected="the planned ones",
            remedy="use --fresh",
        )
    if edits and not changed:
        reason = next(iter(equal.values()))
        raise NoEffectError(
            "inject",
            seen=f"{len(edits)} edited tensors, all equal to the model's: {reason}",
            expected="weights that differ",
            remedy="give a larger strength, or take --as adapter, which is not rounded",
        )
    write_beside(base, entries, work, tokenizer)
    return written, equal


def write_beside(base: Path, entries: Mapping[str, TensorEntry], work: Path, tokenizer: Path | None = None) -> None:
    """Config, tokenizer and template of the base; the tokenizer of an adapter that brings its own."""
    wanted: list[str] = [*CONFIG]
    if all(entry.file.name != "model.safetensors" for entry in entries.values()):
        wanted.append(INDEX)
    check_same_files(work, base, copy_companions(base, work, wanted))
    files = ("tokenizer.json", "tokenizer_config.json")
    own = tokenizer is not None and any((tokenizer / name).is_file() for name in files)
    source = tokenizer if own and tokenizer is not None else base
    check_same_files(work, source, copy_companions(source, work, TOKENIZER))
