"""What a merged or edited checkpoint was made of and what came out, in `manifest.json`: enough to prove the folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from pydantic import BaseModel, ValidationError

from alignkeep.checkpoint.companions import sha256_of_header
from alignkeep.checkpoint.files import read_object, write_json
from alignkeep.checkpoint.listing import (
    MANIFEST_NAME,
    RECORD_NAME,
    SIGNATURE_NAME,
    fault_in,
    files_below,
    sha256_of_file,
)
from alignkeep.checkpoint.records import Record, identity_of
from alignkeep.checkpoint.shards import JOURNAL, Written, check_hashes
from alignkeep.errors import AlignkeepError, CheckpointError, DataError

Settings = TypeVar("Settings", bound=BaseModel)
OPERATIONS = ("merge", "inject")
_SELF = (MANIFEST_NAME, RECORD_NAME)


@dataclass(frozen=True, slots=True)
class Input:
    """A model or file that went in, under the name it was given by; `fingerprint` as in `record.json`."""

    role: str
    reference: str
    fingerprint: str


@dataclass(frozen=True)
class Manifest:
    """`operation` is the verb that made the folder and `settings` its config; `files` are the SHA-256 of all files but
    the weights, `headers` those of the weight files' headers; `reasons` say of planned tensors why they came out equal.

    The SHA-256 of `manifest.json` itself belongs into the result in `record.json`, under `manifest`.
    """

    operation: str
    settings: dict[str, object]
    inputs: tuple[Input, ...]
    tensors: tuple[Written, ...]
    files: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors changed, came out equal, were copied."""
        found = Counter(tensor.change for tensor in self.tensors)
        return {change: found[change] for change in ("changed", "equal", "copied")}

    def write(self, folder: Path) -> str:
        """Put it into `folder` (atomically), with the hashes of the files that are there now; returns its own."""
        weights = sorted({tensor.file for tensor in self.tensors})
        left_out = {*weights, *_SELF, JOURNAL}
        files = {
            path.name: sha256_of_file(path)
            for path in sorted(folder.iterdir())
            if path.is_file() and not path.name.startswith(".") and path.name not in left_out
        }
        headers = {name: sha256_of_header(folder / name) for name in weights}
        return sha256_of_file(write_json(folder / MANIFEST_NAME, {**asdict(self), "files": files, "headers": headers}))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder. Raises DataError where there is none, or none of ours."""
        path = folder / MANIFEST_NAME
        try:
            facts = cast(Mapping[str, Any], read_object(path))
            return cls(
                operation=str(facts["operation"]),
                settings=dict(facts["settings"]),
                inputs=tuple(Input(**{key: str(text) for key, text in item.items()}) for item in facts["inputs"]),
                tensors=tuple(Written.of(item) for item in facts["tensors"]),
                files=dict(facts["files"]),
                headers=dict(facts["headers"]),
                reasons=dict(facts["reasons"]),
                notes=tuple(facts["notes"]),
            )
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise _no_manifest(path, error) from error


class MadeAgain(NamedTuple):
    """What making a folder again from its inputs has shown, and what it could not show."""

    facts: dict[str, object]
    proven: list[str]
    not_proven: list[str]


def settings_of(folder: Path, manifest: Manifest, kind: type[Settings], what: str) -> Settings:
    """The settings that the folder was made with. Raises CheckpointError where they are not those of `what`."""
    where = f"{folder / MANIFEST_NAME}: settings"
    try:
        return kind.model_validate(manifest.settings)
    except AlignkeepError as error:  # a method of a stranger's
        raise inputs_are_not(where, f"not all there: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"{where}.{'.'.join(map(str, first['loc']))}",
            seen=first["msg"],
            expected=f"the settings of {what}",
            remedy="make the folder again, or verify it with the version that made it",
        ) from error


def made_otherwise(where: Path | str, seen: str) -> CheckpointError:
    """For a folder that does not hold what its inputs and settings give."""
    return CheckpointError(
        str(where),
        seen=seen,
        expected="the same bit for bit",
        remedy="was it made by another version? (record.json) If not, do not trust the folder",
    )


def inputs_are_not(where: str, seen: str) -> CheckpointError:
    """The error for a claim that cannot be made again."""
    return CheckpointError(
        where,
        seen=seen,
        expected="the inputs that the manifest names, to make the folder again",
        remedy="put them back, or prove the bytes alone with --files-only",
    )


def fault_in_tensors(folder: Path) -> str | None:
    """The first tensor that is not what the folder's manifest says; None where all are, and without a manifest."""
    if not (folder / MANIFEST_NAME).exists():
        return None
    try:
        with ThreadPoolExecutor() as pool:
            check_hashes(folder, list(Manifest.read(folder).tensors), pool)
    except AlignkeepError as error:
        return str(error)
    return None


def check_manifest(folder: Path, manifest: Manifest) -> Record:
    """Record and manifest are of one run, every tensor and every file is there with its bytes, and nothing else,
    hidden or not; returns the record. Raises CheckpointError for the first that is not so."""
    record = Record.read(folder)
    if record.result.get("manifest") != sha256_of_file(folder / MANIFEST_NAME):
        raise _changed(folder / MANIFEST_NAME, "other bytes than were written", f"what {RECORD_NAME} says")
    _check_record(folder, manifest, record)
    with ThreadPoolExecutor() as pool:
        check_hashes(folder, list(manifest.tensors), pool)
    for name, digest in manifest.headers.items():
        if sha256_of_header(folder / name) != digest:
            raise _changed(folder / name, "another header than was written", f"sha256 {digest}")
    for name, digest in manifest.files.items():
        if not (folder / name).is_file():
            raise _changed(folder / name, "no such file", "it")
        if sha256_of_file(folder / name) != digest:
            raise _changed(folder / name, "other bytes than were written", f"sha256 {digest}")
    fault = fault_in(folder, record.files)
    if fault is not None:
        raise _changed(folder / RECORD_NAME, fault, "the files that it lists")
    known = {*manifest.files, *_SELF, SIGNATURE_NAME, *(tensor.file for tensor in manifest.tensors)}
    stray = {*record.files} ^ (known - {RECORD_NAME, SIGNATURE_NAME})
    if stray:
        raise _changed(folder / RECORD_NAME, f"another list of files than the manifest's ({min(stray)})", "the same")
    folders = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_dir()}
    for name in sorted({*files_below(folder), *folders}):
        if name not in known:
            raise _changed(folder / name, "a file that the manifest does not know", "the files that were written")
    return record


def _check_record(folder: Path, manifest: Manifest, record: Record) -> None:
    """The record agrees with itself and with the manifest in every word that both have."""
    same_kind = record.stage == manifest.operation and manifest.operation in OPERATIONS
    if not same_kind:
        seen = f"operation {manifest.operation!r} of stage {record.stage!r}"
        raise _changed(folder / MANIFEST_NAME, seen[:120], " or ".join(OPERATIONS))
    if identity_of(record.stage, record.config, record.inputs) != record.identity:
        raise _changed(folder / RECORD_NAME, "settings or inputs that are not its identity's", "those of the run")
    if {one.role: one.fingerprint for one in manifest.inputs} != record.inputs or not manifest.inputs:
        raise _changed(folder / MANIFEST_NAME, "other inputs than the record's", f"what {RECORD_NAME} says")
    for one in manifest.inputs:
        if one.reference not in _texts(record.config):
            raise _changed(folder / MANIFEST_NAME, f"{one.role} called {one.reference!r:.80}", "its name in the record")
    for key, value in _flat(manifest.settings).items():
        then = (record.result if key in ("weight", "method") else _flat(record.config)).get(key)
        if value != then and not _may_be_path(value, then):
            raise _changed(folder / f"{MANIFEST_NAME}: settings.{key}", f"{value!r:.80}", f"{then!r:.80}, as recorded")
    if record.seed != record.config.get("seed"):
        raise _changed(folder / f"{RECORD_NAME}: seed", f"{record.seed!r:.80}", "that of the settings")
    said = {**manifest.counts, "notes": list(manifest.notes), "form": record.config.get("form")}
    for key, value in said.items():
        if record.result.get(key) != value:
            raise _changed(folder / f"{RECORD_NAME}: result.{key}", f"{record.result.get(key)!r:.80}", f"{value!r:.80}")


def absolute(settings: dict[str, object], keys: Collection[str]) -> dict[str, object]:
    """The settings with the paths under these keys, at any depth, from everywhere the same; what is no path of this
    machine stays."""

    def at(key: str, value: object) -> object:
        if isinstance(value, dict):
            return absolute(value, keys)
        path = Path(value).expanduser() if key in keys and isinstance(value, str) else None
        return value if path is None or not path.exists() else os.path.realpath(path)

    return {key: at(key, value) for key, value in settings.items()}


def _flat(value: object, above: str = "") -> dict[str, object]:
    """Settings within settings by their keys joined with dots."""
    found: dict[str, object] = {}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        is_inner = isinstance(inner, dict | list) and inner
        found |= _flat(inner, f"{above}{key}.") if is_inner else {f"{above}{key}": inner}
    return found


def _texts(config: object) -> set[str]:
    return {value for value in _flat(config).values() if isinstance(value, str)}


def _may_be_path(value: object, then: object) -> bool:
    """Whether an absolute path stands for one that was given from a folder nobody knows any more; what lies there is
    looked at when the folder is made again."""
    return isinstance(value, str) and isinstance(then, str) and os.path.isabs(value)


def _changed(path: Path, seen: str, expected: str) -> CheckpointError:
    return CheckpointError(
        str(path), seen=seen, expected=expected, remedy="make the folder again, or do not trust what was changed"
    )


def _no_manifest(path: Path, error: Exception) -> AlignkeepError:
    return DataError(
        str(path),
        seen=f"no readable manifest ({type(error).__name__})",
        expected="the manifest.json that `alignkeep merge` and `inject` write",
        remedy="give the --out folder of one of them",
    )
