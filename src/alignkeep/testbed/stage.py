"""Write the shipped models and data as ordinary files: `alignkeep testbed --out DIR`."""

from __future__ import annotations

import hashlib
import shutil
import time
from contextlib import closing
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from alignkeep.checkpoint.files import append_jsonl, machine_errors
from alignkeep.checkpoint.folders import OutputFolder
from alignkeep.checkpoint.records import Record, identity_of
from alignkeep.errors import RecipeError
from alignkeep.testbed import sets

MODELS = ("aligned", "weak", "uncensored", "moe")


@dataclass(frozen=True, slots=True)
class TestbedResult:
    """Where everything is: `models[name]` is a model folder, `data[name]` a `.jsonl` file."""

    __test__ = False  # not a test class, whatever its name

    folder: Path
    models: dict[str, Path]
    data: dict[str, Path]


def testbed(*, out: Path, seed: int = 0, overwrite: bool = False, resume: bool = True) -> TestbedResult:
    """Write `out/models/NAME` and `out/data/NAME.jsonl`; the same bytes every time.

    Raises RecipeError for a seed other than 0: the testbed is shipped, not made here.
    """
    if seed != 0:
        raise RecipeError(
            "--seed",
            seen=str(seed),
            expected="0: the shipped testbed is frozen",
            remedy=f"to make another, run: python -m alignkeep.testbed.build --seed {seed} --out DIR",
        )
    started = time.monotonic()
    folder = OutputFolder.open(
        out, stage="testbed", identity=identity_of("testbed", {}, fingerprints()), overwrite=overwrite, resume=resume
    )
    with closing(folder):
        if not folder.finished:
            with as_file(files("alignkeep.testbed") / "models") as shipped, machine_errors(folder.out):
                for name in MODELS:
                    (folder.work / "models" / name).mkdir(parents=True, exist_ok=True)
                    for file in (shipped / name).iterdir():
                        shutil.copyfile(file, folder.work / "models" / name / file.name)
            for name in sets.NAMES:
                target = folder.work / "data" / f"{name}.jsonl"
                target.parent.mkdir(exist_ok=True)
                target.unlink(missing_ok=True)
                append_jsonl(target, sets.rows(name))
            result = {"models": list(MODELS), "data": list(sets.NAMES)}
            folder.finish(
                Record("testbed", folder.identity, {}, fingerprints(), seed, time.monotonic() - started, result)
            )
    return _result(folder.out)


def materialise(reference: str, folder: Path) -> Path:
    """The local path of `models/NAME` or `data/NAME`, written under `folder` if it is not there yet.

    Raises RecipeError for a name that the testbed does not have.
    """
    known = [f"models/{name}" for name in MODELS] + [f"data/{name}" for name in sets.NAMES]
    if reference not in known:
        raise RecipeError(
            f"testbed:{reference}",
            seen=f"no such part of the testbed: {reference}",
            expected="one of " + ", ".join(known),
            remedy="correct the name",
        )
    made = testbed(out=folder)
    kind, name = reference.split("/")
    return made.models[name] if kind == "models" else made.data[name]


def fingerprints() -> dict[str, str]:
    """SHA-256 of every shipped model's weights and of every data set's text: what the published numbers rest on."""
    found = {}
    root = files("alignkeep.testbed") / "models"
    for name in MODELS:
        found[f"models/{name}"] = hashlib.sha256((root / name / "model.safetensors").read_bytes()).hexdigest()
    for name in sets.NAMES:
        found[f"data/{name}"] = hashlib.sha256(repr(sets.rows(name)).encode()).hexdigest()
    return found


def _result(out: Path) -> TestbedResult:
    return TestbedResult(
        out,
        {name: out / "models" / name for name in MODELS},
        {name: out / "data" / f"{name}.jsonl" for name in sets.NAMES},
    )
