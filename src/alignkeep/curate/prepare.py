"""A curation before its first number: sets read, held against each other and against what will measure the tune."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from alignkeep.curate.config import CurateConfig
from alignkeep.curate.method import Counts
from alignkeep.curate.planting import PARTS, plants_of
from alignkeep.curate.vectors import SETS, Vectors, embeddings_files, given_vectors, rows_in_both
from alignkeep.data import fingerprint_data, read_examples, read_prompts
from alignkeep.errors import DataError, RecipeError
from alignkeep.models.embeddings import no_encoder, no_such_layer
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.models.folders import base_of, resolve, tensor_entries
from alignkeep.models.headers import load_json
from alignkeep.types import Example, Message

_PROCESS = 600_000_000  # bytes of the libraries themselves; measured

if TYPE_CHECKING:
    from alignkeep.models.loading import LoadedModel


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
        _check_layer(config)
    if config.embed.encoder is not None and importlib.util.find_spec("sentence_transformers") is None:
        raise no_encoder(config.embed.encoder)
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
    for name, examples in zip(SETS, (data, safe, harmful), strict=True):
        if any(example.weight != 1 for example in examples):
            raise DataError(
                str(getattr(config, name)), seen="a column `weight`",
                expected="weights from one place: this command makes them", remedy="drop the column",
            )  # fmt: skip
    prepared = Prepared(config, data, safe, harmful, vectors)
    _check_sizes(prepared)
    _check_apart(prepared)
    if config.embed.pooling == "auto":
        plants_of(config, data, harmful)
    return prepared


@dataclass(frozen=True)
class Fitting:
    """The sets as they are looked at: `rows` are the places of their examples in the files, and `too_long` counts those
    of which no token of the answer is within the length."""

    prepared: Prepared
    rows: dict[str, list[int]]
    too_long: dict[str, int] | None = None


def fitting(prepared: Prepared, loaded: LoadedModel | None) -> Fitting:
    """All examples, or with `embed.too_long: drop` those that fit. Raises DataError where too few are left."""
    from alignkeep.models.examples import late_ones
    from alignkeep.models.generation import context_length

    config = prepared.config
    every = {name: list(range(len(getattr(prepared, name)))) for name in SETS} | {"data": list(range(prepared.count))}
    if loaded is None:
        return Fitting(prepared, every)
    length = min(config.embed.max_length, context_length(loaded) or config.embed.max_length)
    late = {
        name: set(late_ones(loaded.tokenizer, getattr(prepared, name), length, f"{getattr(config, name)}, example"))
        for name in SETS
    }
    counts = {name: len(some) for name, some in late.items()}
    if config.embed.too_long == "cut" or not any(late.values()):
        return Fitting(prepared, every, counts)
    rows = {name: [at for at in places if at not in late[name]] for name, places in every.items()}
    for name, left in rows.items():
        if len(left) < 2:
            raise DataError(
                str(getattr(config, name)),
                seen=f"{len(left)} examples of which some of the answer is among the first {length} tokens",
                expected="at least two", remedy="raise embed.max_length, or set embed.too_long: cut",
            )  # fmt: skip
    sets = {name: [getattr(prepared, name)[at] for at in left] for name, left in rows.items()}
    less = replace(prepared, **sets)
    _check_sizes(less)
    return Fitting(less, rows, counts)


def fingerprints(config: CurateConfig) -> dict[str, str]:
    """Of everything a curation reads, by the name of its setting."""
    found = {name: fingerprint_data(path) for name in SETS if (path := getattr(config, name)) is not None}
    if config.loads_model:
        found["model"] = fingerprint_model(str(config.model), config.load.revision)
    if config.embeddings is not None:
        found["embeddings"] = "+".join(fingerprint_bytes(file) for file in embeddings_files(config.embeddings))
    encoder = config.embed.encoder
    if encoder is not None and Path(encoder).is_dir():
        files = sorted(file for file in Path(encoder).rglob("*") if file.is_file())
        found["embed.encoder"] = "+".join(fingerprint_bytes(file) for file in files)
    return found


def _check_layer(config: CurateConfig) -> None:
    """Raises RecipeError for a block that the model has not, as far as its config is at hand."""
    checkpoint = resolve(str(config.model), config.load.revision)
    if checkpoint.folder is None or config.embed.layer is None:
        return
    folder = checkpoint.folder
    if checkpoint.is_adapter:
        folder = resolve(*base_of(folder)).folder
    count = None if folder is None else _text_config(folder).get("num_hidden_layers")
    if isinstance(count, int) and config.embed.layer >= count:
        raise no_such_layer(config.embed.layer, count)


def fingerprint_bytes(file: Path) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def local_inputs(config: CurateConfig) -> list[Path]:
    """What is read from this disk."""
    named = (
        config.model,
        config.embed.encoder,
        config.embeddings,
        config.data,
        config.safe,
        config.harmful,
        *config.evaluation,
    )
    return [path for path in map(Path, filter(None, named)) if path.exists()]


def plan_curation(prepared: Prepared) -> dict[str, object]:
    """Counts are exact; memory and disk are rough, and without a model that is not here yet."""
    config, count = prepared.config, prepared.count
    given = prepared.vectors
    sizes = {name: len(one) for name, one in zip(SETS, _texts(prepared) if given is None else given[:3], strict=True)}
    model, parameters, width = _model(config)
    width = width if given is None else given.data.shape[1]
    parts = len(PARTS) if config.embed.pooling == "auto" else config.embed.pooling.count("+") + 1
    vectors = 4 * width * sum(sizes.values()) * (parts if given is None else 1) if config.on_vectors else 0
    memory = (
        _PROCESS + model + vectors + config.rule.memory(Counts(**sizes, parameters=parameters), config.rule_options)
    )
    return {
        "stage": "curate",
        "method": config.method,
        "model": config.model,
        "examples": sizes,
        "kept": round(config.keep * count),
        "memory_bytes": memory,
        "disk_bytes": 64 * count + (vectors if given is None else 0),
    }


def _model(config: CurateConfig) -> tuple[int, int, int]:
    """Bytes of the model as it is loaded (float32 on a CPU), its parameters, and the width of its states; 0 where it is
    not here."""
    checkpoint = resolve(str(config.model), config.load.revision) if config.loads_model else None
    folder = None if checkpoint is None else checkpoint.folder
    if checkpoint is not None and folder is not None and checkpoint.is_adapter:
        folder = resolve(*base_of(folder)).folder
    if folder is None or not (folder / "config.json").is_file():
        return 0, 0, 0
    entries = tensor_entries(folder, adapter=False).values()
    parameters = sum(math.prod(entry.shape) for entry in entries)
    on_cpu = config.load.device in ("auto", "cpu", "mps")
    each = {"float32": 4, "bfloat16": 2, "float16": 2}.get(config.load.dtype, 4 if on_cpu else None)
    size = sum(entry.size for entry in entries) if each is None else each * parameters
    width = _text_config(folder).get("hidden_size")
    return size, parameters, width if isinstance(width, int) else 0


def _text_config(folder: Path) -> dict[str, object]:
    settings = load_json(folder / "config.json")
    text = settings.get("text_config")
    return dict(text if isinstance(text, dict) else settings)


def _texts(prepared: Prepared) -> tuple[list[Example], list[Example], list[Example]]:
    return prepared.data, prepared.safe, prepared.harmful


def _check_sizes(prepared: Prepared) -> None:
    config, count = prepared.config, prepared.count
    for name, examples in zip(SETS, _texts(prepared), strict=True):
        if len(examples) == 1:
            raise DataError(
                str(getattr(config, name)), seen="one example", expected="at least two: a set, not a point",
                remedy="give more",
            )  # fmt: skip
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
            both = {_words(one.messages) for one in examples} & {_words(one.messages) for one in others}
            if both:
                raise _overlap(str(getattr(config, other)), len(both), str(getattr(config, name)), name, other)
    if prepared.vectors is not None:
        _check_rows_apart(prepared, prepared.vectors)
    unread = [name for name in config.rule.reads if not getattr(prepared, name)]
    if config.evaluation and unread:
        raise RecipeError(
            "evaluation", seen=f"no text of {' and '.join(unread)}",
            expected="texts of anchors to hold against these prompts",
            remedy=f"give {' and '.join(f'--{name}' for name in unread)} too",
        )  # fmt: skip
    for file in config.evaluation:
        prompts = {_words(prompt.messages) for prompt in read_prompts(file)}
        for name, examples in named[1:]:
            _refuse_asked(str(getattr(config, name)), file, examples, prompts)


def _words(messages: tuple[Message, ...]) -> tuple[str, ...]:
    """What is said: a system message, or a space at the end, makes no other example."""
    return tuple(message.content.strip() for message in messages if message.role != "system")


def _check_rows_apart(prepared: Prepared, vectors: Vectors) -> None:
    """Where a text is missing, equal vectors are taken for one example; of two texts the texts decide."""
    named = list(zip(SETS, _texts(prepared), vectors[:3], strict=True))
    for at, (name, examples, rows) in enumerate(named):
        for other, others, more in named[at + 1 :]:
            both = 0 if examples and others else rows_in_both(rows, more)
            if both:
                raise _overlap(f"{prepared.config.embeddings}: {other}", both, name, name, other)


def _overlap(where: str, count: int, place: str, name: str, other: str) -> DataError:
    return DataError(
        where, seen=f"{count} of its examples in {place} too", expected=f"{other} references apart from {name}",
        remedy="take them out of one of the two: an example cannot be weighed against itself",
    )  # fmt: skip


def _refuse_asked(path: str, file: str, examples: Sequence[Example], prompts: Collection[tuple[str, ...]]) -> None:
    asked = sum(_words(one.messages[:-1]) in prompts for one in examples)
    if asked:
        raise DataError(
            path, seen=f"{asked} of its prompts in {file}, which will measure the tune",
            expected="anchors apart from it",
            remedy="take them out: a tune chosen by its own test looks better than it is",
        )  # fmt: skip
