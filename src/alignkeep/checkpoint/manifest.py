"""What a merged or edited checkpoint was made of and what came out, in `manifest.json`: enough to prove the folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from alignkeep.checkpoint.beside import sha256_of_header
from alignkeep.checkpoint.files import read_object, write_json
from alignkeep.checkpoint.listing import MANIFEST_NAME, RECORD_NAME, sha256_of_file
from alignkeep.checkpoint.records import Record
from alignkeep.checkpoint.shards import JOURNAL, Written, check_hashes
from alignkeep.errors import AlignkeepError, CheckpointError, DataError

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
                inputs=tuple(Input(**item) for item in facts["inputs"]),
                tensors=tuple(Written.of(item) for item in facts["tensors"]),
                files=dict(facts["files"]),
                headers=dict(facts["headers"]),
                reasons=dict(facts["reasons"]),
                notes=tuple(facts["notes"]),
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise _no_manifest(path, error) from error


def check_manifest(folder: Path, manifest: Manifest) -> None:
    """The manifest is the one that was written, every tensor and every file is there with its bytes, and no other file.
    Raises CheckpointError for the first that is not so."""
    if Record.read(folder).result.get("manifest") != sha256_of_file(folder / MANIFEST_NAME):
        raise _changed(folder / MANIFEST_NAME, "other bytes than were written", f"what {RECORD_NAME} says")
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
    known = {*manifest.files, *_SELF, *(tensor.file for tensor in manifest.tensors)}
    for path in sorted(folder.iterdir()):
        if path.name not in known and not path.name.startswith("."):
            raise _changed(path, "a file that the manifest does not know", "the files that were written")


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
