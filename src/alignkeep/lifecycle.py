"""A whole tune as one readable function: train -> evaluate -> report. The stages do the work; this is their order.

Every stage has its own folder below `out` and knows by the fingerprints of its inputs whether it is finished, so that
the same command after a kill continues, and after a change redoes the changed stage and what follows from it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from alignkeep import citations
from alignkeep.checkpoint.files import jsonable
from alignkeep.checkpoint.folders import RECORD_NAME, claim_folder, leads, release_folder
from alignkeep.checkpoint.records import Record, identity_of
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.models.config import GenerationConfig, LoadConfig
from alignkeep.progress import Progress
from alignkeep.recipe import TESTBED, Recipe
from alignkeep.report.config import ReportConfig
from alignkeep.train.config import TrainConfig
from alignkeep.types import Scorecard

DEMO_TUNES = ("poisoned", "benign_drift")


class DemoConfig(BaseModel):
    """The demo has one wish: how it is seeded; `device` says where it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0, lt=2**32)
    device: str = "auto"


@dataclass(frozen=True)
class RunResult:
    """Where a recipe's results lie; a stage that the recipe does not have is None."""

    folder: Path
    model: Path | None
    scorecard: Scorecard | None
    page: Path | None

    def as_json(self) -> dict[str, object]:
        card = None if self.scorecard is None else self.scorecard.as_json()
        return {"folder": self.folder, "model": self.model, "scorecard": card, "page": self.page}


@dataclass(frozen=True)
class DemoResult:
    """Scorecards of the base and of every tune, and the page that compares them."""

    folder: Path
    scorecards: dict[str, Scorecard]
    page: Path

    def as_json(self) -> dict[str, object]:
        cards = {name: card.as_json() for name, card in self.scorecards.items()}
        return {"folder": self.folder, "scorecards": cards, "page": self.page}


def run(
    recipe: Recipe, *, out: str | Path, overwrite: bool = False, resume: bool = True, progress: Progress | None = None
) -> RunResult:
    """Do what the recipe says, each stage in `out/STAGE`, the page in `out/report.html`.

    A finished stage whose settings and inputs are the same is not done again (unless `resume=False`). Raises the
    stages' errors, and RecipeError where `out` belongs to another recipe and `overwrite` is not given.
    """
    began = time.monotonic()
    identity = identity_of("run", {"name": recipe.name}, {})
    out = claim_folder(Path(out), stage="run", identity=identity, overwrite=overwrite)
    try:
        return _stages(recipe, out, identity, resume, progress, began)
    finally:
        release_folder(out)


def _stages(
    recipe: Recipe, out: Path, identity: str, resume: bool, progress: Progress | None, began: float
) -> RunResult:
    recipe = recipe.with_references(lambda reference: _local(reference, out / "testbed"))
    model, card, folders = None, None, []
    if recipe.train is not None:
        from alignkeep.train import stage as training

        if recipe.evaluate is not None:
            _check_evaluation(recipe)
        model = out / "train"
        training.train(recipe.train, out=model, overwrite=True, resume=resume, progress=progress)
        folders.append(model)
    if recipe.evaluate is not None and leads():  # of the processes that trained together, one asks
        from alignkeep.evaluate import stage as evaluation

        card = evaluation.evaluate(
            _evaluation(recipe, model), out=out / "evaluate", overwrite=True, resume=resume, progress=progress
        )
        folders.append(out / "evaluate")
    page = None if card is None else _report(out, recipe.report or ReportConfig(), "run", identity, folders, began)
    return RunResult(out, model, card, page)


def demo(
    config: DemoConfig | None = None,
    *,
    out: str | Path,
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
) -> DemoResult:
    """Tune the tiny aligned model on harmful and on harmless data, measure all three models, write one page.

    Needs no network and no accelerator. Resumes as `run` does.
    """
    from alignkeep.evaluate import stage as evaluation
    from alignkeep.testbed import stage as shipped
    from alignkeep.train import stage as training

    began = time.monotonic()
    config = config or DemoConfig()
    identity = identity_of("demo", config.model_dump(), {})
    out = claim_folder(Path(out), stage="demo", identity=identity, overwrite=overwrite)
    world = shipped.testbed(out=out / "testbed", overwrite=True, resume=resume)
    base = str(world.models["aligned"])
    asked = _demo_evaluation(config, base, str(world.data["task_test"]))
    cards = {
        "base": evaluation.evaluate(asked, out=out / "base", overwrite=True, resume=resume, progress=progress),
    }
    folders = [out / "base"]
    for name in DEMO_TUNES:
        tune = _demo_tune(config, base, str(world.data[name]))
        tuned, folder = out / name / "train", out / name / "evaluate"
        training.train(tune, out=tuned, overwrite=True, resume=resume, progress=progress)
        compared = asked.model_copy(update={"model": str(tuned), "base": base, "base_answers": str(out / "base")})
        cards[name] = evaluation.evaluate(compared, out=folder, overwrite=True, resume=resume, progress=progress)
        folders += [tuned, folder]
    page = _report(out, ReportConfig(title="alignkeep demo"), "demo", identity, folders, began)
    return DemoResult(out, cards, page)


def plan(recipe: Recipe) -> dict[str, object]:
    """What `run` would do, and what it would take where the inputs are there to be looked at. Touches nothing."""
    stages: dict[str, object] = {}
    if recipe.train is not None:
        from alignkeep.train import stage as training

        stages["train"] = _settings(recipe.train) if _uses_testbed(recipe.train) else training.plan(recipe.train)
    if recipe.evaluate is not None:
        in_testbed = _uses_testbed(recipe.evaluate)
        stages["evaluate"] = _settings(recipe.evaluate) if in_testbed else _check_evaluation(recipe)
        stages["report"] = _settings(recipe.report or ReportConfig())
    return {"name": recipe.name, "model": recipe.model, "seed": recipe.seed, "stages": stages}


def plan_demo(config: DemoConfig) -> dict[str, object]:
    """What `demo` would do. Touches nothing."""
    stages = ["testbed", "evaluate base", *(f"train and evaluate {name}" for name in DEMO_TUNES), "report"]
    return {"demo": stages, **config.model_dump()}


def methods_of(recipe: Recipe) -> tuple[str, ...]:
    """Names of the methods that the recipe's stages use, as `citations` knows them."""
    names: list[str] = []
    if recipe.train is not None:
        names += citations.methods_of("train", recipe.train.model_dump())
    if recipe.evaluate is not None:
        from alignkeep.evaluate.attacks import select_attacks

        config = recipe.evaluate.model_dump()
        if recipe.train is not None:
            config["base"] = recipe.model
        attacks = [f"attack_success.{attack.name}" for attack in select_attacks(recipe.evaluate.attacks)]
        names += citations.methods_of("evaluate", config, ["over_refusal", *attacks])
    return tuple(dict.fromkeys(names))


def _evaluation(recipe: Recipe, tuned: Path | None) -> EvaluateConfig:
    """The recipe's evaluation of the tuned model against its base, or of the model itself where nothing is tuned."""
    assert recipe.evaluate is not None
    if tuned is None or recipe.train is None:
        return recipe.evaluate
    load = recipe.evaluate.load.model_copy(update={"revision": None})  # a revision is the base's, not the tune's
    base = recipe.evaluate.base or _at_revision(recipe.model, recipe.train.load.revision)
    return recipe.evaluate.model_copy(update={"model": str(tuned), "base": base, "load": load})


def _check_evaluation(recipe: Recipe) -> dict[str, object]:
    """The evaluation's plan; a mistake in it is found here, before a tune is spent. The base stands in for the tune."""
    from alignkeep.evaluate import stage as evaluation

    assert recipe.evaluate is not None
    if recipe.train is None:
        return evaluation.plan(recipe.evaluate)
    base = _at_revision(recipe.model, recipe.train.load.revision)
    return evaluation.plan(_evaluation(recipe, Path(base)))


def _at_revision(model: str, revision: str | None) -> str:
    """The folder of a hub model's revision, which is what was tuned; a model without a revision as it is."""
    if revision is None:
        return model
    from alignkeep.models.folders import localise, resolve

    return str(localise(resolve(model, revision)).folder)


def _demo_tune(config: DemoConfig, base: str, data: str) -> TrainConfig:
    """The plain LoRA of docs/testbed.md: it learns the task, and nothing guards the refusals."""
    return TrainConfig(
        model=base, data=data, method="lora", epochs=3, learning_rate=1e-3, seed=config.seed,
        load=LoadConfig(device=config.device),
    )  # fmt: skip


def _demo_evaluation(config: DemoConfig, base: str, task: str) -> EvaluateConfig:
    return EvaluateConfig(
        model=base, suite="testbed", task=task, seed=config.seed, load=LoadConfig(device=config.device),
        generation=GenerationConfig(max_new_tokens=48, batch_size=256),
    )  # fmt: skip


def _report(out: Path, config: ReportConfig, stage: str, identity: str, folders: Sequence[Path], began: float) -> Path:
    """Record the run and write its page, unless both are there and nothing below them has changed."""
    from alignkeep.report import stage as reporting

    page = out / reporting.PAGE_NAME
    inputs = {folder.relative_to(out).as_posix(): _digest(folder / RECORD_NAME) for folder in folders}
    settings = {**config.model_dump(), "folders": list(inputs)}
    record = Record(
        stage=stage, identity=identity, config=settings, inputs=inputs, seed=0, seconds=time.monotonic() - began,
        result={"page": page.name},
    )  # fmt: skip
    if page.exists() and (out / RECORD_NAME).exists():
        old = Record.read(out)
        if (old.inputs, old.config, old.versions) == (inputs, jsonable(settings), record.versions):
            return page
    page.unlink(missing_ok=True)
    record.write(out)
    reporting.report(folders, out=page, card=config.card, title=config.title, full_answers=config.full_answers)
    return page


def _local(reference: str, folder: Path) -> str:
    """A `testbed:NAME` reference as a path below `folder`, where it is written; any other reference as it is."""
    if not reference.startswith(TESTBED):
        return reference
    from alignkeep.testbed.stage import materialise

    return str(materialise(reference.removeprefix(TESTBED), folder))


def _uses_testbed(config: BaseModel) -> bool:
    return any(isinstance(value, str) and value.startswith(TESTBED) for value in config.model_dump().values())


def _settings(config: BaseModel) -> Mapping[str, object]:
    return config.model_dump(exclude_defaults=True)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
