"""A curation before its first number: sets read, held against each other and against what will measure the tune."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignkeep.curate.config import CurateConfig
from alignkeep.curate.vectors import SETS, Vectors, embeddings_files, given_vectors
from alignkeep.data import fingerprint_data, read_examples, read_prompts
from alignkeep.errors import DataError
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.models.folders import resolve
from alignkeep.types import Example, Message


@dataclass(frozen=True)
class Prepared:
    """The sets that were given as text (empty ones else), and the vectors where they were given."""

    config: CurateConfig
    data: list[Example]
    safe: list[Example]
    harmful: list[Example]
    vectors: Vectors | None

    @property
    def count(self) -> int:
        return len(self.data) if self.vectors is None else len(self.vectors.data)


def prepare(config: CurateConfig) -> Prepared:
    """Raises RecipeError, CheckpointError, ShapeError or DataError naming what cannot be used; loads no model."""
    if config.loads_model:
        resolve(str(config.model), config.load.revision)
    data, safe, harmful = (
        [] if path is None else read_examples(path) for path in (config.data, config.safe, config.harmful)
    )
    vectors = None if config.embeddings is None else given_vectors(config.embeddings)
    if vectors is not None:
        for name, examples, rows in zip(SETS, (data, safe, harmful), vectors[:3], strict=True):
            if examples and len(examples) != len(rows):
                raise DataError(
                    str(config.embeddings), seen=f"{len(rows)} vectors of {name}",
                    expected=f"{len(examples)}, one for every row of {getattr(config, name)}",
                    remedy="embed that very file",
                )  # fmt: skip
    prepared = Prepared(config, data, safe, harmful, vectors)
    _check_sizes(prepared)
    _check_apart(prepared)
    return prepared


def fingerprints(config: CurateConfig) -> dict[str, str]:
    """Of everything a curation reads, by the name of its setting."""
    found = {name: fingerprint_data(path) for name in SETS if (path := getattr(config, name)) is not None}
    if config.loads_model:
        found["model"] = fingerprint_model(str(config.model), config.load.revision)
    if config.embeddings is not None:
        found["embeddings"] = "+".join(fingerprint_bytes(file) for file in embeddings_files(config.embeddings))
    return found


def fingerprint_bytes(file: Path) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def local_inputs(config: CurateConfig) -> list[Path]:
    """What is read from this disk."""
    named = (config.model, config.embeddings, config.data, config.safe, config.harmful, *config.evaluation)
    return [path for path in map(Path, filter(None, named)) if path.exists()]


def plan_curation(prepared: Prepared) -> dict[str, object]:
    """Counts are exact, memory is rough: costs in blocks, vectors, and the curvature of one reference."""
    config, count = prepared.config, prepared.count
    given = prepared.vectors
    sizes = {name: len(one) for name, one in zip(SETS, given[:3] if given else _texts(prepared), strict=True)}
    references = max(sizes["safe"], sizes["harmful"], 1)
    costs = 4 * min(count, config.sot.block) * references * 4 + 8 * references**2 * 3
    return {
        "stage": "curate",
        "method": config.method,
        "model": config.model,
        "examples": sizes,
        "kept": round(config.keep * count),
        "memory_bytes": costs,
        "disk_bytes": 64 * count,
    }


def _texts(prepared: Prepared) -> tuple[list[Example], list[Example], list[Example]]:
    return prepared.data, prepared.safe, prepared.harmful


def _check_sizes(prepared: Prepared) -> None:
    config, count = prepared.config, prepared.count
    if count < 2:
        raise DataError(
            str(config.data), seen="one example", expected="at least two to choose from", remedy="give more examples"
        )
    kept = round(config.keep * count)
    if kept == 0 or (kept == count and config.keep < 1):
        raise DataError(
            "keep", seen=f"{config.keep:g} of {count} examples, which is {kept}",
            expected="to keep some and to drop some", remedy="give another share, or more examples",
        )  # fmt: skip


def _check_apart(prepared: Prepared) -> None:
    """No example stands in two sets, and no anchor asks what the evaluation asks."""
    config = prepared.config
    named = list(zip(SETS, _texts(prepared), strict=True))
    for at, (name, examples) in enumerate(named):
        for other, others in named[at + 1 :]:
            both = {one.messages for one in examples} & {one.messages for one in others}
            if both:
                raise DataError(
                    str(getattr(config, other)),
                    seen=f"{len(both)} of its examples in {getattr(config, name)} too",
                    expected=f"{other} references apart from {name}",
                    remedy="take them out of one of the two: an example cannot be weighed against itself",
                )
    for file in config.evaluation:
        prompts = {prompt.messages for prompt in read_prompts(file)}
        for name, examples in named[1:]:
            _refuse_asked(str(getattr(config, name)), file, examples, prompts)


def _refuse_asked(path: str, file: str, examples: Sequence[Example], prompts: Collection[tuple[Message, ...]]) -> None:
    asked = sum(one.messages[:-1] in prompts for one in examples)
    if asked:
        raise DataError(
            path, seen=f"{asked} of its prompts in {file}, which will measure the tune",
            expected="anchors apart from it",
            remedy="take them out: a tune chosen by its own test looks better than it is",
        )  # fmt: skip
