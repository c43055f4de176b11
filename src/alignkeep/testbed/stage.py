"""Write the shipped models and data as ordinary files: `alignkeep testbed --out DIR`."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from pydantic import Field

from alignkeep.checkpoint.files import append_jsonl, machine_errors
from alignkeep.errors import RecipeError
from alignkeep.runs.perform import perform
from alignkeep.settings import Checked
from alignkeep.stage import Inputs, Job, Plan, Stage, Task
from alignkeep.testbed import sets

MODELS = ("aligned", "weak", "uncensored", "moe")


class TestbedConfig(Checked):
    """The seed of the written data; the models are shipped."""

    __test__ = False  # not a test class, whatever its name
    seed: int = Field(default=0, ge=0, lt=2**32)


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
    return perform(TESTBED, TestbedConfig(seed=seed), out=out, overwrite=overwrite, resume=resume)


class TestbedStage(Stage[TestbedConfig, None, TestbedResult]):
    __test__ = False

    name = "testbed"
    config = TestbedConfig

    def prepare(self, config: TestbedConfig) -> None:
        if config.seed != 0:
            raise RecipeError(
                "--seed",
                seen=str(config.seed),
                expected="0: the shipped testbed is frozen",
                remedy=f"to make another, run: python -m alignkeep.testbed.build --seed {config.seed} --out DIR",
            )

    def inputs(self, task: Task[TestbedConfig, None]) -> Inputs:
        self.prepare(task.config)
        return Inputs(fingerprints(), [], {})

    def plan(self, config: TestbedConfig) -> Plan:
        self.prepare(config)
        return Plan({"stage": self.name, "models": list(MODELS), "data": list(sets.NAMES)})

    def work(self, prepared: None, job: Job) -> dict[str, object]:
        with as_file(files("alignkeep.testbed") / "models") as shipped, machine_errors(job.folder):
            for name in MODELS:
                (job.folder / "models" / name).mkdir(parents=True, exist_ok=True)
                for file in (shipped / name).iterdir():
                    shutil.copyfile(file, job.folder / "models" / name / file.name)
        for name in sets.NAMES:
            target = job.folder / "data" / f"{name}.jsonl"
            target.parent.mkdir(exist_ok=True)
            target.unlink(missing_ok=True)
            append_jsonl(target, sets.rows(name))
        return {"models": list(MODELS), "data": list(sets.NAMES)}

    def result(self, folder: Path) -> TestbedResult:
        return TestbedResult(
            folder,
            {name: folder / "models" / name for name in MODELS},
            {name: folder / "data" / f"{name}.jsonl" for name in sets.NAMES},
        )


TESTBED = TestbedStage()


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
