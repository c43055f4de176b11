"""The models of a merge, found and held against each other before a number is read.

Two checkpoints can be merged when they are the same network over the same vocabulary: the same tensors in the same
shapes, and no setting that both configs state differently. Whatever does not fit is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from alignkeep.checkpoint.adapters import EMBEDDINGS, HEADS, Adapter, read_adapter
from alignkeep.checkpoint.numbers import FORMATS
from alignkeep.errors import CheckpointError, ShapeError
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.models.folders import base_of, localise, names_no_base, resolve, tensor_entries
from alignkeep.models.headers import TensorEntry, load_json

# Settings of training, saving and generating, which change nothing about what a tensor means.
_HARMLESS = re.compile(
    r"_name_or_path|architectures|torch_dtype|dtype|transformers_version|use_cache|.*token_id|.*dropout.*|.*_pdrop|"
    r"initializer_range|output_.*|return_dict|gradient_checkpointing|_attn_implementation.*|pretraining_tp|auto_map|"
    r"router_aux_loss_coef|unsloth_.*|quantization_config|max_length|torchscript|chunk_size_feed_forward"
)
# Caches that old checkpoints store; the model makes them itself.
_BUFFERS = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|\.attention\.(masked_)?bias$")


@dataclass(frozen=True)
class Tuned:
    """One tuned model: tensors of its own by the base's names, or an adapter's changes to the base."""

    reference: str
    folder: Path
    entries: Mapping[str, TensorEntry]
    adapter: Adapter | None = None


@dataclass(frozen=True)
class Models:
    """The base and what was tuned from it; `notes` say what had to be decided."""

    base: Path
    entries: Mapping[str, TensorEntry]
    tuned: tuple[Tuned, ...]
    notes: tuple[str, ...]


def read_models(base: str, tuned: Sequence[str], revision: str | None = None) -> Models:
    """Find and compare them. Raises CheckpointError and ShapeError naming file, setting or tensor."""
    found = localise(resolve(base, revision))
    folder = cast(Path, found.folder)
    if found.is_adapter:
        raise CheckpointError(
            base, seen="an adapter", expected="a full model as the base", remedy=f"give its base: {found.base}"
        )
    _refuse_quantised(folder)
    entries = tensor_entries(folder, adapter=False)
    notes: list[str] = []
    models = tuple(_read_tuned(folder, entries, reference, base, notes) for reference in tuned)
    return Models(folder, entries, models, tuple(notes))


def _read_tuned(
    base: Path, entries: Mapping[str, TensorEntry], reference: str, base_reference: str, notes: list[str]
) -> Tuned:
    found = localise(resolve(reference, base=base_reference))
    folder = cast(Path, found.folder)
    if found.is_adapter:
        _check_base_of(folder, base_reference, base, notes)
        return Tuned(reference, folder, {}, read_adapter(folder, entries))
    _refuse_quantised(folder)
    _compare_configs(base, folder)
    return Tuned(reference, folder, _fitting(base, entries, folder, reference, notes))


def _refuse_quantised(folder: Path) -> None:
    scheme = load_json(folder / "config.json").get("quantization_config")
    if scheme is None:
        return
    kind = scheme.get("quant_method", "?") if isinstance(scheme, dict) else scheme
    raise CheckpointError(
        f"{folder / 'config.json'}: quantization_config",
        seen=f"quantised weights ({kind})",
        expected="weights in floating point: packed numbers have no mean",
        remedy="give the model before quantisation, and quantise the merge",
    )


def _compare_configs(base: Path, tuned: Path) -> None:
    """What both configs state has to agree; a newer library writes more of its defaults than an older one did."""
    for key, ours, theirs in _differences(load_json(base / "config.json"), load_json(tuned / "config.json")):
        raise ShapeError(
            f"{tuned / 'config.json'}: {key}",
            seen=repr(theirs)[:80],
            expected=f"{ours!r:.80}, as in {base}",
            remedy="merge models of one architecture, tuned from the same base",
        )


def _differences(
    ours: Mapping[str, object], theirs: Mapping[str, object], within: str = ""
) -> Iterator[tuple[str, object, object]]:
    """Settings that both state and differently, also those of a part of the model (text_config, rope_parameters)."""
    if not within.endswith("rope_parameters."):
        ours, theirs = _with_rope(ours), _with_rope(theirs)
    for key in sorted(ours.keys() & theirs.keys()):
        mine, other = ours[key], theirs[key]
        if isinstance(mine, dict) and isinstance(other, dict):
            yield from _differences(mine, other, f"{within}{key}.")
        elif mine != other and not _HARMLESS.fullmatch(key):
            yield f"{within}{key}", mine, other


def _with_rope(settings: Mapping[str, object]) -> dict[str, object]:
    """The settings with those of the positions where new libraries write them: flat, or by kind of layer."""
    kept = {key: value for key, value in settings.items() if key not in ("rope_theta", "rope_scaling")}
    rope: dict[str, object] = dict(cast(Any, settings.get("rope_scaling") or settings.get("rope_parameters") or {}))
    if not any(isinstance(value, dict) for value in rope.values()):
        rope.setdefault("rope_type", rope.pop("type", "default"))
        if "rope_theta" in settings:
            rope.setdefault("rope_theta", settings["rope_theta"])
    return {**kept, "rope_parameters": rope}


def _fitting(
    base: Path, entries: Mapping[str, TensorEntry], folder: Path, reference: str, notes: list[str]
) -> dict[str, TensorEntry]:
    """The tuned model's tensor for every tensor of the base that is merged."""
    theirs = tensor_entries(folder, adapter=False)
    tied = bool(load_json(base / "config.json").get("tie_word_embeddings"))
    for name in sorted(theirs.keys() - entries.keys()):
        if not ((tied and name.endswith(HEADS)) or _BUFFERS.search(name)):
            raise _misfit(f"{theirs[name].file}: tensor {name}", "a tensor that the base has not", f"those of {base}")
    fitting: dict[str, TensorEntry] = {}
    for name, entry in entries.items():
        other = theirs.get(name)
        if other is None and tied and name.endswith(HEADS):  # stored once there, twice in the base
            other = next((theirs[key] for key in theirs if key.endswith(EMBEDDINGS)), None)
        if other is None:
            if _BUFFERS.search(name):
                continue
            raise _misfit(f"{folder}: tensor {name}", "no such tensor", f"it, as in {base}")
        if other.shape != entry.shape:
            raise _misfit(
                f"{other.file}: tensor {name}", f"shape {list(other.shape)}", f"{list(entry.shape)}, as in {entry.file}"
            )
        if entry.dtype in FORMATS and other.dtype in FORMATS:
            fitting[name] = other
        elif entry.dtype != other.dtype:
            raise _misfit(f"{other.file}: tensor {name}", f"type {other.dtype}", f"{entry.dtype}, as in {entry.file}")
    left = sorted(entries.keys() - fitting.keys())
    if left:
        notes.append(f"{reference}: {len(left)} tensors that are no weights stay the base's ({left[0]}, ...)")
    return fitting


def _check_base_of(folder: Path, base: str, base_folder: Path, notes: list[str]) -> None:
    """The adapter was trained on this very base, as far as that can be told without fetching a model."""
    if names_no_base(folder):
        notes.append(f"{folder}: it names no base, {base} is taken for it")
        return
    recorded, _ = base_of(folder)
    if recorded == base:
        return
    if not Path(recorded).is_dir():
        notes.append(f"{folder}: its recorded base {recorded} is not here to compare, {base} is taken for it")
    elif fingerprint_model(recorded) != fingerprint_model(str(base_folder)):
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: base_model_name_or_path",
            seen=f"{recorded}, which is another model than {base}",
            expected="an adapter trained on the base of the merge",
            remedy="give that base, or correct the path in the file",
        )


def _misfit(where: str, seen: str, expected: str) -> ShapeError:
    return ShapeError(where, seen=seen, expected=expected, remedy="merge models tuned from one base")
