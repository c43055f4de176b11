"""Where the parameters of a model in memory lie on disk, by the renaming that transformers itself applies in loading.

In memory a matrix can have another name than in its checkpoint, and the experts of a layer are one parameter where most
checkpoints store each by itself. transformers keeps these conversions for every family; they are run here over small
tensors that carry their origin, so that what comes out tells where each part came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkeep.errors import CheckpointError
from alignkeep.models.folders import tensor_entries
from alignkeep.models.headers import TensorEntry
from alignkeep.models.matrices import under_adapter

if TYPE_CHECKING:
    from torch import Tensor

    from alignkeep.models.architecture import Writer

_CELL = (2, 3)  # a stored matrix in the small: not square, so that one turned round is seen
_ALL = slice(None)


class Part(NamedTuple):
    """A stored tensor within a parameter in memory: which expert's, in which rows and columns, and whether it is
    stored turned round. A parameter that is only renamed is one part without an expert."""

    tensor: str
    expert: int | None = None
    rows: slice = _ALL
    columns: slice = _ALL
    turned: bool = False


class Parameter(NamedTuple):
    """A parameter in memory: its shape, the parts it is stored in, and whether inputs are its first matrix axis
    (experts only: what is stored as (experts, in, out))."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    inputs_first: bool

    @property
    def renamed(self) -> str | None:
        """The one tensor that it is stored as, just as it is; None where it is stored in parts."""
        name = self.parts[0].tensor
        return name if self.parts == (Part(name),) else None


@dataclass(frozen=True)
class StoredNames:
    """The parameters of a model by their names in memory. Those that are stored in a form whose parts cannot be told
    are missing."""

    parameters: Mapping[str, Parameter]

    def within(self, module: str) -> dict[str, Parameter]:
        """The parameters of one module, by their own names."""
        found = ((name.rpartition("."), held) for name, held in self.parameters.items())
        return {own: held for (place, _, own), held in found if place == module}

    @cached_property
    def renamed(self) -> Mapping[str, str]:
        """Names on disk by names in memory, of parameters that are stored as they are."""
        return {name: held.renamed for name, held in self.parameters.items() if held.renamed is not None}


class Stored(NamedTuple):
    """A writer on disk: the tensor, its index on the first axis where the tensor holds all experts (else None), and
    whether it lies there (in, out)."""

    tensor: str
    expert: int | None
    inputs_first: bool


def stored_names(folder: Path) -> StoredNames:
    """Of the model in a folder, as `load_model` has it in memory. Raises CheckpointError for a config that
    transformers cannot make one of."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors*"))]
    return _stored_names(folder, tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in files))


def stored_as(writers: Sequence[Writer], model: Any, entries: Mapping[str, TensorEntry]) -> dict[str, Stored]:
    """Where these writers lie in a checkpoint, by writer's name. An adapter over the model may be on.

    Raises CheckpointError unless one stored tensor has a writer's name, its shape and its numbers.
    """
    base = under_adapter(model)
    names = _names_of(type(base), base.config, entries)
    found: dict[str, Stored] = {}
    with ExitStack() as files:
        numbers = _Numbers(files)
        for writer in writers:
            name = f"{writer.place}.{writer.parameter}"
            place = _stored(writer, names.parameters.get(name))
            if place is None or not numbers.are_same(writer, place, entries[place.tensor]):
                nothing = "none, several, or one that is put together in loading"
                raise CheckpointError(
                    f"tensor {name}",
                    seen=nothing if place is None else f"{place.tensor} with other numbers than the model in memory",
                    expected="one stored tensor with its numbers",
                    remedy="save the model again with save_pretrained, or take --as adapter",
                )
            found[writer.name] = place
    return found


def _stored(writer: Writer, held: Parameter | None) -> Stored | None:
    """The stored tensor that is this writer's matrix, or holds it among those of all experts."""
    if held is None:
        return None
    if held.renamed is not None:
        return Stored(held.renamed, writer.expert, writer.inputs_first)
    rows, columns = held.shape[-2:]
    whole = (writer.expert, slice(0, rows), slice(0, columns))
    for part in held.parts:
        if (part.expert, part.rows, part.columns) == whole:
            return Stored(part.tensor, None, writer.inputs_first is not part.turned)
    return None


@lru_cache(maxsize=4)
def _stored_names(folder: Path, _: tuple[tuple[int, int], ...]) -> StoredNames:
    from transformers import AutoConfig

    from alignkeep.models.loading import model_class

    try:
        settings = AutoConfig.from_pretrained(folder, local_files_only=True)
        return _names_of(model_class(settings).from_config, settings, tensor_entries(folder, adapter=False))
    except (ValueError, KeyError, OSError, TypeError, AttributeError, ImportError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'}",
            seen=f"{type(error).__name__}: {str(error)[:240]}",
            expected="the config of a causal language model that transformers knows",
            remedy="mend or copy the model again",
        ) from error


def _names_of(build: Callable[[Any], Any], config: Any, entries: Mapping[str, TensorEntry]) -> StoredNames:
    import torch

    with torch.device("meta"):
        model = build(config)
    shapes = {name: tuple(entry.shape) for name, entry in entries.items()}
    memory = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    first = {name for name, module in model.named_modules() if getattr(module, "is_transposed", False)}
    found = {
        name: Parameter(memory[name], parts, name.rpartition(".")[0] in first)
        for name, parts in _parts(model, shapes, memory).items()
        if name in memory
    }
    return StoredNames(found)


def _parts(
    model: Any, shapes: Mapping[str, tuple[int, ...]], memory: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[Part, ...]]:
    """By names in memory, as `convert_and_load_state_dict_in_model` goes about it."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    conversions = get_model_conversion_mapping(model)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    meta = model.state_dict()
    found: dict[str, tuple[Part, ...]] = {}
    groups: dict[str, tuple[Any, list[tuple[str, str]]]] = {}
    twice: set[str] = set()
    for name in sorted(shapes, key=dot_natural_key):
        new, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, meta)
        if pattern is None or (name in meta and shapes[name] == memory[name]):
            own = new if pattern is None else name
            twice |= {own} & found.keys()
            found[own] = (Part(name),)
        else:
            groups.setdefault(new, (by_pattern[pattern], []))[1].append((name, pattern))
    for new, (converter, names) in groups.items():
        for name, made in _converted(model, converter, new, names, shapes).items():
            parts = _located(made, [one for one, _ in names], shapes, memory.get(name, ()))
            if parts is not None:
                found[name] = parts
    return {name: parts for name, parts in found.items() if name not in twice}


def _converted(
    model: Any, converter: Any, new: str, names: list[tuple[str, str]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The conversion of small tensors whose numbers say where they come from; nothing where it cannot do with them."""
    import torch

    if any(len(shapes[name]) != 2 for name, _ in names):
        return {}
    one = deepcopy(converter)
    size = _CELL[0] * _CELL[1]
    for number, (name, pattern) in enumerate(names):
        one.add_tensor(new, name, pattern, (torch.arange(size) + number * size).view(_CELL))
    try:
        made = one.convert(new, model=model, config=model.config, hf_quantizer=None, loading_info=None)
    except (RuntimeError, ValueError, IndexError, KeyError, AttributeError, TypeError):
        return {}  # it needs the real sizes: the parameter's parts are not known, and an adapter of it is refused
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def _located(
    made: Any, names: list[str], shapes: Mapping[str, tuple[int, ...]], whole: tuple[int, ...]
) -> tuple[Part, ...] | None:
    """The parts of a converted parameter; None unless they are whole matrices that fill it."""
    import torch

    size = _CELL[0] * _CELL[1]
    blocks: list[tuple[int | None, int, int, int, bool]] = []  # expert, row, column, which tensor, turned
    for expert, matrix in [(None, made)] if made.ndim == 2 else list(enumerate(made)) if made.ndim == 3 else []:
        for number in (matrix // size).unique().tolist():
            rows, columns = torch.nonzero(matrix // size == number, as_tuple=True)
            block = matrix[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] - number * size
            cell = torch.arange(size).view(_CELL)
            straight = block.shape == cell.shape and bool((block == cell).all())
            if not straight and not (block.shape == cell.T.shape and bool((block == cell.T).all())):
                return None
            blocks.append((expert, int(rows.min()), int(columns.min()), number, not straight))
    parts: list[Part] = []
    for expert, row, column, number, turned in blocks:
        beside = [one for one in blocks if one[0] == expert]
        above = sum(_sides(shapes[names[n]], t)[0] for _, r, c, n, t in beside if c == column and r < row)
        before = sum(_sides(shapes[names[n]], t)[1] for _, r, c, n, t in beside if r == row and c < column)
        height, width = _sides(shapes[names[number]], turned)
        parts.append(Part(names[number], expert, slice(above, above + height), slice(before, before + width), turned))
    filled = sum((one.rows.stop - one.rows.start) * (one.columns.stop - one.columns.start) for one in parts)
    return tuple(parts) if parts and filled == torch.Size(whole).numel() else None


def _sides(shape: tuple[int, ...], turned: bool) -> tuple[int, int]:
    return (shape[1], shape[0]) if turned else (shape[0], shape[1])


class _Numbers:
    """Some rows of stored tensors."""

    def __init__(self, files: ExitStack) -> None:
        self._files, self._open = files, dict[str, Any]()

    def are_same(self, writer: Writer, place: Stored, entry: TensorEntry) -> bool:
        """Whether shape, first, middle and last row of the matrix are stored at this place."""
        weight = writer.weight
        if sorted(entry.shape[-2:]) != sorted(weight.shape):
            return False
        rows = dict.fromkeys((0, len(weight) // 2, len(weight) - 1))
        return all(
            there.to(weight.dtype).equal(weight[row].cpu())
            for row, there in zip(rows, self._rows(rows, place, entry), strict=True)
        )

    def _rows(self, rows: Iterable[int], place: Stored, entry: TensorEntry) -> list[Tensor]:
        from safetensors import safe_open

        path = str(entry.file)
        if path not in self._open:
            self._open[path] = self._files.enter_context(safe_open(path, framework="pt"))
        stored = self._open[path].get_slice(place.tensor)
        expert = () if place.expert is None else (slice(place.expert, place.expert + 1),)
        return [
            stored[(*expert, *((_ALL, one) if place.inputs_first else (one, _ALL)))].flatten()
            for one in (slice(row, row + 1) for row in rows)
        ]
