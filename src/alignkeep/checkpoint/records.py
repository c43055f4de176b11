"""What a stage did, in one file beside its output: `record.json`."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from alignkeep.checkpoint.files import jsonable, write_json
from alignkeep.checkpoint.listing import RECORD_NAME
from alignkeep.errors import DataError
from alignkeep.input_files import read_input

# Under this name example weights carry, in the metadata of their parquet file, the fingerprint of the data's rows.
MADE_FROM = "alignkeep_data"
# Where and how loudly a stage runs is no part of what it makes.
_NOT_IDENTITY = frozenset({"out", "overwrite", "resume", "fresh", "quiet", "json", "device", "progress", "cites"})
_PACKAGES = ("alignkeep", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "tokenizers")


@dataclass(frozen=True)
class Record:
    """One finished stage.

    `inputs` maps the name of a config key (`model`, `data`, ...) to the fingerprint of what it pointed to; `seconds` is
    wall time of the process that finished the stage; `result` is what the stage returned, as JSON; `files` are size and
    SHA-256 of everything else in the folder (null for weights, of which the manifest has every tensor's).
    """

    stage: str
    identity: str
    config: dict[str, object]
    inputs: dict[str, str]
    seed: int
    seconds: float
    result: dict[str, object]
    versions: dict[str, str] = field(default_factory=lambda: versions())
    files: dict[str, dict[str, object]] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def write(self, folder: Path) -> Path:
        """Put the record into `folder` (atomically)."""
        return write_json(folder / RECORD_NAME, self.as_json())

    @classmethod
    def read(cls, folder: Path) -> Record:
        """The record of a finished folder. Raises DataError where there is none, or it is not one of ours."""
        path = folder / RECORD_NAME
        try:
            return _typed(cls(**json.loads(read_input(path))))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise DataError(
                str(path),
                seen=f"no readable record ({type(error).__name__})",
                expected="the record.json that every alignkeep stage writes",
                remedy="give the --out folder of a finished command",
            ) from error


def identity_of(stage: str, config: Mapping[str, object], inputs: Mapping[str, str]) -> str:
    """SHA-256 of what determines a stage's output, 64 hex digits.

    A config key that `inputs` names is replaced by its fingerprint, so that a moved folder or another spelling of the
    same path is the same run, and a changed file under the same path is another one. Flags that say where or how loudly
    to run (device, out, quiet, ...) do not count, at any depth.
    """
    settings = {key: value for key, value in config.items() if key not in inputs}
    facts = {"stage": stage, "config": _without_flags(jsonable(settings)), "inputs": dict(inputs)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Installed versions of everything that touches a number, without importing any of it."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _typed(record: Record) -> Record:
    """Raises TypeError where a field is not of its kind: the file was written by someone else."""
    texts, objects = (record.stage, record.identity), (record.config, record.inputs, record.result, record.files)
    if not all(isinstance(one, str) for one in texts) or not all(isinstance(one, dict) for one in objects):
        raise TypeError
    return record


def _without_flags(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_flags(inner) for key, inner in value.items() if key not in _NOT_IDENTITY}
    if isinstance(value, list):
        return [_without_flags(inner) for inner in value]
    return value
