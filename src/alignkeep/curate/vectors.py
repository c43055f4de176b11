"""The vectors of the three sets: given, or made by the model or a sentence encoder; checked, of length 1."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkeep.curate.config import CurateConfig
from alignkeep.curate.text import whole
from alignkeep.errors import DataError, NoEffectError, ShapeError
from alignkeep.input_files import user_path
from alignkeep.models.processes import Processes
from alignkeep.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from alignkeep.models.loading import LoadedModel
    from alignkeep.types import Example

SETS = ("data", "safe", "harmful")
_FORMS = "a .safetensors or .npz file with data, safe and harmful, or a folder with such .npy files"
_SHORTEST = 1e-12  # a shorter vector has no direction


class Made(NamedTuple):
    """Vectors by the name of their set, as they come; of the `truncated` examples the end was cut off."""

    vectors: dict[str, Tensor]
    truncated: int | None


class Vectors(NamedTuple):
    """Rows of length 1, float32 on the CPU; of the `truncated` texts the end was cut off (None: nobody knows)."""

    data: Tensor
    safe: Tensor
    harmful: Tensor
    truncated: int | None = None


def embeddings_files(reference: str) -> list[Path]:
    """The files behind `--embeddings`. Raises DataError where there are none."""
    path = user_path(reference)
    found = [path / f"{name}.npy" for name in SETS] if path.is_dir() else [path]
    for file in found:
        if not file.is_file() or (not path.is_dir() and file.suffix not in {".safetensors", ".npz"}):
            raise DataError(
                str(file), seen="no such file" if not file.is_file() else f"the ending {file.suffix!r}",
                expected=_FORMS, remedy="check the path",
            )  # fmt: skip
    return found


def given_vectors(reference: str) -> Vectors:
    """Those of `--embeddings`, checked. Raises DataError naming set and row, ShapeError for unequal widths."""
    tensors = _read(embeddings_files(reference))
    return checked(tensors["data"], tensors["safe"], tensors["harmful"], where=reference)


def rows_in_both(one: Tensor, other: Tensor) -> int:
    """How many different rows the two have in common, bit for bit."""
    first, second = ({blake2b(row.tobytes(), digest_size=16).digest() for row in rows.numpy()} for rows in (one, other))
    return len(first & second)


def made_vectors(
    config: CurateConfig,
    loaded: LoadedModel | None,
    sets: Mapping[str, Sequence[Example]],
    pooling: str,
    store: Path,
    processes: Processes,
    progress: Progress,
) -> Made:
    """What the model (or the sentence encoder, whose pooling is its own) makes of the texts."""
    from alignkeep.models.embeddings import embed, embed_texts
    from alignkeep.models.loading import choose_device

    if loaded is None:
        how: Any = {"batch_size": config.embed.batch_size, "device": str(choose_device(config.load.device))}
        texts = {name: [whole(example) for example in examples] for name, examples in sets.items()}
        return Made({name: embed_texts(some, str(config.embed.encoder), **how) for name, some in texts.items()}, None)
    found = {
        name: embed(
            loaded, examples, store / name, layer=config.embed.layer, pooling=pooling,
            batch_size=config.embed.batch_size, max_length=config.embed.max_length, too_long="cut",
            what=f"{getattr(config, name, name)}, example", processes=processes, progress=progress,
        )
        for name, examples in sets.items()
    }  # fmt: skip
    vectors = {name: _each_of_length_one(one.vectors, pooling.count("+") + 1) for name, one in found.items()}
    return Made(vectors, sum(found[name].truncated for name in SETS))


def _each_of_length_one(rows: Tensor, parts: int) -> Tensor:
    """Parts that stand side by side count alike; one of zeros, where there was nothing to look at, stays so."""
    import torch

    if parts == 1:
        return rows
    return torch.nn.functional.normalize(rows.unflatten(1, (parts, -1)), dim=2).flatten(1)


def whitened_vectors(vectors: Vectors) -> Vectors:
    """In the measure of the references. Raises NoEffectError where these have none."""
    from alignkeep.curate.whitening import fit_whitening, whitened

    try:
        by = fit_whitening((vectors.safe, vectors.harmful))
    except ValueError as error:
        raise NoEffectError(
            "embed.whiten", seen="references that coincide within their set", expected="some that differ",
            remedy="give more references, or leave embed.whiten out",
        ) from error  # fmt: skip
    found = checked(*(whitened(one, by) for one in vectors[:3]), where="whitened")
    return found._replace(truncated=vectors.truncated)


def checked(data: Tensor, safe: Tensor, harmful: Tensor, *, where: str) -> Vectors:
    """Rows brought to length 1. Raises ShapeError, DataError or, where all data are one, NoEffectError."""
    import torch

    found: list[Tensor] = []
    for name, tensor in zip(SETS, (data, safe, harmful), strict=True):
        if tensor.ndim != 2 or tensor.shape[1] != data.shape[-1]:
            raise ShapeError(
                f"{where}: {name}", seen=f"shape {tuple(tensor.shape)}",
                expected=f"(rows, {data.shape[-1]}), as wide as data", remedy="embed all three sets alike",
            )  # fmt: skip
        if len(tensor) < 2:
            raise DataError(
                f"{where}: {name}", seen="no rows" if not len(tensor) else "one example",
                expected="at least two: a set, not a point", remedy="give more",
            )  # fmt: skip
        lengths = tensor.norm(dim=1)
        bad = (~(tensor.isfinite().all(1) & (lengths > _SHORTEST))).nonzero()
        if len(bad):
            row = int(bad[0])
            raise DataError(
                f"{where}: {name}, row {row + 1}",
                seen="a vector of zeros" if tensor[row].isfinite().all() else "numbers that are not finite",
                expected="a vector with a direction", remedy=f"mend or drop it ({len(bad)} such rows)",
            )  # fmt: skip
        found.append(torch.nn.functional.normalize(tensor.float(), dim=1))
    if float((found[0] - found[0][0]).abs().max()) < 1e-6:
        raise NoEffectError(
            f"{where}: data", seen=f"{len(data)} examples with the same vector", expected="vectors that differ",
            remedy="take another layer or encoder: nothing tells these examples apart",
        )  # fmt: skip
    return Vectors(found[0], found[1], found[2])


def _read(files: list[Path]) -> dict[str, Tensor]:
    """The three sets in float32. Raises DataError naming file and set."""
    import torch

    found: dict[str, Tensor] = {}
    for file in files:
        try:
            found |= _tensors(file)
        except (OSError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise _unreadable(file, error) from error
    file = files[0] if len(files) == 1 else files[0].parent
    missing = [name for name in SETS if name not in found]
    if missing:
        raise DataError(
            str(file), seen=f"no {' and no '.join(missing)} among {', '.join(sorted(found)) or 'nothing'}",
            expected=_FORMS, remedy="name the tensors so",
        )  # fmt: skip
    for name in SETS:
        if not torch.is_floating_point(found[name]):
            raise DataError(
                f"{file}: {name}", seen=f"numbers of type {str(found[name].dtype).removeprefix('torch.')}",
                expected="floating point", remedy="store them as float32",
            )  # fmt: skip
    return {name: found[name].float() for name in SETS}


def _tensors(file: Path) -> dict[str, Tensor]:
    import numpy
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if file.suffix == ".safetensors":
        try:
            return dict(load_file(file))
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    stored = numpy.load(file, allow_pickle=False)
    arrays = {name: stored[name] for name in stored.files} if file.suffix == ".npz" else {file.stem: stored}
    native = {name: numpy.ascontiguousarray(one, dtype=one.dtype.newbyteorder("=")) for name, one in arrays.items()}
    return {name: torch.from_numpy(one) for name, one in native.items()}


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(str(file), seen=f"unreadable ({error})", expected=_FORMS, remedy="write it again")
