"""The subspace of every adapted matrix: measured on the base with alignment data, kept in a file, refused elsewhere.

A kept subspace carries some numbers of every matrix it was measured on. They are compared with the model that it is
used with: the Fisher of another model says nothing about this one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.checkpoint.files import write_tensors
from alignkeep.errors import CheckpointError, NoEffectError, RecipeError
from alignkeep.models.collectors import Side as Collected
from alignkeep.models.collectors import collect_sides
from alignkeep.models.loading import LoadedModel
from alignkeep.models.matrices import matrices, passes, untouched, widths
from alignkeep.progress import Progress
from alignkeep.types import Example

if TYPE_CHECKING:
    from torch import Tensor

    from alignkeep.subspace.fisher import Factor
    from alignkeep.train.align_guard_settings import AlignGuardSettings
    from alignkeep.train.split import Side, Subspace

_FORMAT = "alignkeep.subspace/1"
_SAMPLES = 64  # numbers of every matrix by which it is known again (chosen)
_HEAD = "output embeddings"
_PARTS = ("vectors", "eigenvalues", "diagonal")


def measure_subspaces(
    loaded: LoadedModel,
    names: Sequence[str],
    examples: Sequence[Example],
    settings: AlignGuardSettings,
    *,
    batch_size: int = 8,
    max_length: int = 1024,
    progress: Progress | None = None,
) -> dict[str, Subspace]:
    """One subspace per matrix, as the settings want them; the adapter that is being trained is switched off meanwhile.

    Raises NoEffectError where the examples give no matrix a gradient, and what `collect_sides` raises.
    """
    from alignkeep.train.split import Subspace

    sides: tuple[Collected, ...] = ("input", "output") if settings.side == "both" else (settings.side,)
    modules = matrices(loaded.model).modules
    _refuse_unmeasured(names, modules)
    found: dict[str, Subspace] = {}
    largest: dict[Collected, dict[str, float]] = {at: {} for at in _BOTH}
    with untouched(loaded.model), _without_adapter(loaded.model):
        for group in passes({name: modules[name] for name in names}):
            factors = collect_sides(
                loaded,
                examples,
                sides,
                modules=group,
                batch_size=batch_size,
                max_length=max_length,
                progress=progress,
            )
            for name in group:
                made: dict[Collected, Side] = {}
                for at in sides:
                    made[at], largest[at][name] = _side(factors[at][name], settings)
                found[name] = Subspace(made.get("input"), made.get("output"))
    if not any(_rank(one) for one in found.values()):
        raise NoEffectError(
            "alignguard.data",
            seen="examples that give no matrix of the base a gradient",
            expected="prompts with the aligned model's own answers",
            remedy="give the alignment set of this model",
        )
    return found if settings.unit == "matrix" else _in_one_unit(found, largest)


def tensors_of(subspaces: Mapping[str, Subspace]) -> dict[str, Tensor]:
    """Every part under a name of its own, on the CPU: the way into a file."""
    return {
        f"{name}|{at}|{part}": values.float().cpu().contiguous()
        for name, one in subspaces.items()
        for at, side in zip(_BOTH, one, strict=True)
        if side is not None
        for part, values in zip(_PARTS, side, strict=True)
    }


def subspaces_of(tensors: Mapping[str, Tensor]) -> dict[str, Subspace]:
    """The way back."""
    from alignkeep.train.split import Side, Subspace

    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    for key, values in tensors.items():
        name, at, part = key.split("|")
        found.setdefault(name, {}).setdefault(at, {})[part] = values
    return {
        name: Subspace(*(Side(*(one[at][part] for part in _PARTS)) if at in one else None for at in _BOTH))
        for name, one in found.items()
    }


def write_subspaces(path: Path, subspaces: Mapping[str, Subspace], model: Any, settings: AlignGuardSettings) -> None:
    """Put them into a file (atomically), with what the model is known by."""
    tensors = tensors_of(subspaces)
    modules = matrices(model).modules
    tensors[f"{_HEAD}|known by"] = _known_by(model.get_output_embeddings())
    for name in subspaces:
        tensors[f"{name}|known by"] = _known_by(modules[name])
    write_tensors(path, tensors, {"format": _FORMAT, "measured": json.dumps(settings.measured, sort_keys=True)})


def read_subspaces(path: Path, names: Sequence[str], model: Any, settings: AlignGuardSettings) -> dict[str, Subspace]:
    """Those of a file. Raises CheckpointError for another file, other settings, another model, or a missing matrix."""
    from safetensors import SafetensorError, safe_open

    from alignkeep.train.split import Side, Subspace

    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _refused(path, f"{type(error).__name__}: {error}", "a file that AlignGuard wrote") from error
    if facts.get("format") != _FORMAT:
        raise _refused(path, f"format {facts.get('format')}", _FORMAT)
    wanted = json.dumps(settings.measured, sort_keys=True)
    if facts.get("measured") != wanted:
        raise _refused(path, str(facts.get("measured")), wanted)
    modules = matrices(model).modules
    _refuse_unmeasured(names, modules)
    if f"{_HEAD}|known by" not in tensors or not _is_known(tensors[f"{_HEAD}|known by"], model.get_output_embeddings()):
        raise _refused(path, "a subspace of another model", "the model that it was measured on")
    found: dict[str, Subspace] = {}
    for name in names:
        if f"{name}|known by" not in tensors:
            raise _refused(path, f"no subspace of {name}", "one of every adapted matrix")
        if not _is_known(tensors[f"{name}|known by"], modules[name]):
            raise _refused(path, f"{name} of another model", "the model that it was measured on")
        sides: list[Side | None] = []
        for at, width in zip(_BOTH, widths(modules[name]), strict=True):
            parts = [tensors.get(f"{name}|{at}|{part}") for part in _PARTS]
            if settings.side not in (at, "both"):
                sides.append(None)
                continue
            there = [part for part in parts if part is not None]
            if len(there) < len(_PARTS) or there[0].shape[0] != width or there[2].shape != (width,):
                raise _refused(path, f"no whole {at} side of {name}", "vectors, eigenvalues and diagonal of its width")
            sides.append(Side(*there))
        found[name] = Subspace(*sides)
    return found


_BOTH: tuple[Collected, Collected] = ("input", "output")


def _side(factor: Factor, settings: AlignGuardSettings) -> tuple[Side, float]:
    """The factor divided by its largest eigenvalue, and that eigenvalue."""
    from alignkeep.subspace.eigenbasis import coordinate_basis, eigenbasis
    from alignkeep.train.split import Side

    made = (coordinate_basis if settings.fisher == "diagonal" else eigenbasis)(factor, settings.share, settings.most)
    unit = made.largest or 1.0
    return Side(made.vectors.float(), made.eigenvalues.float(), (factor.diagonal / unit).float()), made.largest


def _in_one_unit(
    subspaces: Mapping[str, Subspace], largest: Mapping[Collected, Mapping[str, float]]
) -> dict[str, Subspace]:
    """Every factor divided by the largest eigenvalue of any matrix on its side, in place of its own."""
    from alignkeep.train.split import Subspace

    sides: dict[str, list[Side | None]] = {name: [] for name in subspaces}
    for place, at in enumerate(_BOTH):
        unit = max(largest[at].values(), default=0.0) or 1.0
        for name, one in subspaces.items():
            side = one[place]
            share = largest[at].get(name, 0.0) / unit
            sides[name].append(
                None
                if side is None
                else side._replace(eigenvalues=side.eigenvalues * share, diagonal=side.diagonal * share)
            )
    return {name: Subspace(*some) for name, some in sides.items()}


def _rank(one: Subspace) -> int:
    return max(side.vectors.shape[1] for side in one if side is not None)


def _refuse_unmeasured(names: Sequence[str], modules: Mapping[str, Any]) -> None:
    for name in names:
        if name not in modules:
            raise RecipeError(
                f"adapter of {name}",
                seen="a matrix whose Fisher is not measured",
                expected="adapters of linear layers within the blocks",
                remedy="leave the head out of target_modules",
            )


@contextmanager
def _without_adapter(model: Any) -> Iterator[None]:
    """The base, whether PEFT wraps the model or transformers carries the adapter itself."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer) and not layer.disable_adapters]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _known_by(module: Any) -> Tensor:
    """Numbers of the weight at even distances, as they are in memory."""
    flat = module.weight.detach().flatten()
    return flat[:: max(flat.numel() // _SAMPLES, 1)][:_SAMPLES].float().cpu().contiguous()


def _is_known(kept: Tensor, module: Any) -> bool:
    """The same numbers, or the same rounded to bfloat16 or float16: a base may be loaded in another dtype."""
    import torch

    here = _known_by(module)
    if here.shape != kept.shape:
        return False
    return any(torch.equal(here.to(dtype), kept.to(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float16))


def _refused(path: Path, seen: str, expected: str) -> CheckpointError:
    return CheckpointError(
        str(path), seen=seen, expected=expected, remedy="measure it again on this model, with these settings"
    )
