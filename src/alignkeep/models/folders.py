"""Which model a reference means, found without loading it: a local folder, an adapter over its base, or a hub id.

Only safetensors are read. A folder that has its weights as pickles only is refused, since unpickling runs code.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

from alignkeep.errors import CheckpointError, MachineError
from alignkeep.input_files import kind_of, user_path
from alignkeep.models.endpoint import is_endpoint
from alignkeep.models.gguf import gguf_folder, is_gguf
from alignkeep.models.headers import TensorEntry, load_json, read_headers
from alignkeep.types import Checkpoint

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_LARGEST_ALPHA = 1e6  # chosen: usual ones are below 1,000
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
# Second copies of the weights in other layouts, and weights that belong to other programs.
_HUB_LEFT_OUT = ("*/*.safetensors", "consolidated*", "original/*")


def resolve(
    reference: str, revision: str | None = None, *, base: str | None = None, with_base: bool = True
) -> Checkpoint:
    """What `reference` is. A local folder is checked (files there, headers whole, no pickles), the hub is not asked.

    `base` is taken for that of an adapter which names none; without `with_base` an adapter's is not looked for.

    Raises CheckpointError naming the file: no such folder, no config, weights missing, pickled or cut short, an adapter
    whose base is not there, a revision of a folder.
    """
    if is_endpoint(reference):
        raise CheckpointError(
            "model",
            seen="a URL: a served model, whose weights are out of reach",
            expected="a model folder or a hub id",
            remedy="give the folder that is served (evaluate, answers and check take URLs)",
        )
    path = user_path(reference)
    if path.is_dir():
        if revision is not None:
            raise CheckpointError(
                reference,
                seen=f"revision {revision} of a local folder",
                expected="a revision of a hub model only",
                remedy="drop --revision, or name the hub model",
            )
        return _resolve_folder(reference, path, revision, base, with_base=with_base)
    if is_gguf(path) and revision is None:
        return Checkpoint(reference=reference, folder=None, is_adapter=False, base=None)
    if path.exists():
        raise CheckpointError(
            reference,
            seen=f"revision {revision} of a file" if is_gguf(path) else kind_of(path) or "a file",
            expected="a model folder with config.json, or a GGUF file",
            remedy="give the folder",
        )
    if _looks_local(reference):
        raise _no_such_folder(reference, path)
    return Checkpoint(reference=reference, folder=None, is_adapter=False, base=base, revision=revision)


def localise(checkpoint: Checkpoint, *, with_code: bool = False, with_base: bool = True) -> Checkpoint:
    """The same checkpoint with a folder: what lies on the hub is downloaded (or taken from the cache) and checked.

    Raises CheckpointError if the hub has no such model. If it cannot be reached, MachineError for `owner/name` and
    CheckpointError for a single word.
    """
    if checkpoint.folder is not None:
        return checkpoint
    file = Path(checkpoint.reference).expanduser()
    if is_gguf(file):
        return _resolve_folder(checkpoint.reference, gguf_folder(file), None)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    patterns: list[str] = [*_HUB_FILES, "*.py"] if with_code else [*_HUB_FILES]
    try:
        folder = snapshot_download(
            checkpoint.reference,
            revision=checkpoint.revision,
            allow_patterns=patterns,
            ignore_patterns=list(_HUB_LEFT_OUT),
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise CheckpointError(
            checkpoint.reference,
            seen=f"no local folder, and not on the hub for you ({type(error).__name__})",
            expected="a local model folder or a hub id you may read",
            remedy="check the name and revision, or log in to the hub",
        ) from error
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        if "/" not in checkpoint.reference:  # few hub ids are one word: more likely a folder's name, misspelt
            raise _no_such_folder(checkpoint.reference, Path(checkpoint.reference)) from error
        raise MachineError(
            checkpoint.reference,
            seen=f"no local folder, and cannot reach the hub ({type(error).__name__})",
            expected="a local model folder, or a connection",
            remedy="give a local folder, or try again when connected",
        ) from error
    where = Path(folder)
    return _resolve_folder(checkpoint.reference, where, checkpoint.revision, checkpoint.base, with_base=with_base)


def tensor_entries(folder: Path, *, adapter: bool) -> dict[str, TensorEntry]:
    """The tensors of a model or adapter folder by the names they have on disk, all headers checked."""
    if adapter:
        return read_headers([_weight_file(folder, "adapter_model.safetensors")])
    index = folder / "model.safetensors.index.json"
    # transformers prefers the single file where both are there; so do we.
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return read_headers([_weight_file(folder, "model.safetensors")])
    placed = _shards(index)
    entries = read_headers([_weight_file(folder, shard) for shard in sorted(set(placed.values()))])
    for name, shard in placed.items():
        if name not in entries or entries[name].file.name != shard:
            raise CheckpointError(
                f"{folder / shard}: tensor {name}",
                seen="no such tensor",
                expected=f"it here, says {index.name}",
                remedy="copy or download the model again",
            )
    return entries


def _shards(index: Path) -> dict[str, str]:
    placed = load_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(str(index), seen="no weight_map", expected="tensor: file", remedy="get the model again")
    for name, shard in placed.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: tensor {name}",
                seen=f"the file name {shard!r}",
                expected="a .safetensors file in the same folder",
                remedy="do not use this model",
            )
    return placed


def _weight_file(folder: Path, name: str) -> Path:
    file = folder / name
    if file.is_file():
        return file
    pickles = sorted(entry.name for entry in folder.iterdir() if _is_pickled_weight(entry.name))
    if pickles:
        raise CheckpointError(
            str(folder / pickles[0]),
            seen="pickled weights, which can run code when opened",
            expected=name,
            remedy="convert the model to safetensors",
        )
    raise CheckpointError(str(file), seen="no such file", expected="it", remedy="copy or download the model again")


def _is_pickled_weight(name: str) -> bool:
    # A trainer leaves these beside good weights.
    return name.endswith(_PICKLES) and not name.startswith(("training_args", "optimizer", "scheduler", "rng_state"))


def _resolve_folder(
    reference: str, folder: Path, revision: str | None, given: str | None = None, *, with_base: bool = True
) -> Checkpoint:
    for entry in sorted(folder.iterdir()):  # transformers and PEFT open them by name, and wait at a pipe for ever
        kind = None if entry.is_dir() else kind_of(entry)
        if kind is not None:
            raise CheckpointError(str(entry), seen=kind, expected="an ordinary file", remedy="remove it")
    if (folder / "adapter_config.json").is_file():
        base = base_of(folder, given)[0] if with_base else None
        _check_adapter(folder, tensor_entries(folder, adapter=True))
        return Checkpoint(reference=reference, folder=folder, is_adapter=True, base=base, revision=revision)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            reference,
            seen="a folder without config.json or adapter_config.json",
            expected="a model or adapter folder",
            remedy="give the folder that holds the config",
        )
    load_json(folder / "config.json")
    tensor_entries(folder, adapter=False)
    return Checkpoint(reference=reference, folder=folder, is_adapter=False, base=None, revision=revision)


def _check_adapter(folder: Path, entries: Mapping[str, TensorEntry]) -> None:
    """Raises CheckpointError for a LoRA whose rank is not that of its matrices, or whose scale no matrix survives."""
    config = load_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        return
    where = f"{folder / 'adapter_config.json'}"
    alpha, rank, pattern = config.get("lora_alpha", 8), config.get("r", 8), config.get("rank_pattern") or {}
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) <= _LARGEST_ALPHA:
        remedy = "get the adapter again"
        raise CheckpointError(f"{where}: lora_alpha", seen=repr(alpha)[:80], expected="a usual number", remedy=remedy)
    ranks = [rank, *(pattern.values() if isinstance(pattern, dict) else ())]
    for name, entry in entries.items():
        rows = entry.shape[0] if entry.shape else 0
        fits = any(type(one) is int and one > 0 and rows % one == 0 for one in ranks)  # of experts, stacked
        if name.endswith("lora_A.weight") and not fits:
            raise CheckpointError(
                f"{where}: r", seen=f"{', '.join(map(repr, ranks))[:80]}, of a matrix of rank {rows} ({name})",
                expected="the rank of the matrices", remedy="put the config back that belongs to these weights",
            )  # fmt: skip


def names_no_base(folder: Path) -> bool:
    """Whether an adapter's settings leave its base open."""
    return not load_json(folder / "adapter_config.json").get("base_model_name_or_path")


def base_of(folder: Path, given: str | None = None) -> tuple[str, str | None]:
    """The base of an adapter folder and its revision: a path seen from the folder, else from here, else a hub id;
    `given` for an adapter that names none."""
    config = load_json(folder / "adapter_config.json")
    named, revision = config.get("base_model_name_or_path"), config.get("revision")
    where = f"{folder / 'adapter_config.json'}: base_model_name_or_path"
    expected = "the full model that the adapter was trained on"
    if given is not None and not named:
        named, revision, folder = given, None, Path()
    if not isinstance(named, str) or not named:
        remedy = "write it into the file, or name it where the command takes a base"
        raise CheckpointError(where, seen=repr(named), expected=expected, remedy=remedy)
    path = user_path(named)
    base = next((found for found in (folder / path, path) if found.is_dir() or is_gguf(found)), None)
    if base is None:
        if _looks_local(named):
            remedy = "put the base back or correct the path (it may be relative to the adapter's folder)"
            raise CheckpointError(where, seen=f"{named}, which is no folder", expected=expected, remedy=remedy)
        return named, revision if isinstance(revision, str) else None
    if (base / "adapter_config.json").is_file():
        remedy = "merge that adapter into its base first"
        raise CheckpointError(where, seen=f"{named}, itself an adapter", expected=expected, remedy=remedy)
    return str(base.resolve()), None


def _looks_local(reference: str) -> bool:
    """A string that is no hub id, or whose first part is a folder here."""
    if not _HUB_ID.fullmatch(reference) or reference.endswith((".safetensors", *_PICKLES, ".gguf")):
        return True
    first, slash, _ = reference.partition("/")
    return bool(slash) and Path(first).is_dir()


def _no_such_folder(reference: str, path: Path) -> CheckpointError:
    parent = path.parent
    names = sorted(entry.name for entry in parent.iterdir() if entry.is_dir()) if parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=3)
    return CheckpointError(
        reference,
        seen="no such folder" if parent.is_dir() else f"no such folder, and no folder {parent}",
        expected="a local model folder or a hub id (owner/name)",
        remedy=f"did you mean {', '.join(near)}?" if near else "check the path",
    )
