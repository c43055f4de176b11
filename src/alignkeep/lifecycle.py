"""A whole tune as one readable function: curate -> train -> align -> merge -> inject -> evaluate -> report. The stages
work; this is their order.

Every stage has its own folder below `out` and knows by the fingerprints of its inputs whether it is finished, so that
the same command after a kill continues, and after a change redoes the changed stage and what follows from it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from alignkeep import citations
from alignkeep.checkpoint.files import jsonable
from alignkeep.checkpoint.folders import RECORD_NAME, claim_folder, leads, release_folder
from alignkeep.checkpoint.records import Record, identity_of
from alignkeep.composition import (
    alignment_of,
    base_of,
    curation_of,
    evaluation_of,
    injection_of,
    makes_a_model,
    merge_of,
    tune_of,
    tunes,
)
from alignkeep.progress import Progress
from alignkeep.recipe import TESTBED, Recipe
from alignkeep.report.config import ReportConfig
from alignkeep.types import Scorecard


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
    if recipe.curate is not None:
        folders.append(_curate(recipe, out / "curate", resume, progress))
    if recipe.train is not None:
        from alignkeep.train import stage as training

        _check_later_stages(recipe)
        model = out / "train"
        training.train(tune_of(recipe, out / "curate"), out=model, overwrite=True, resume=resume, progress=progress)
        folders.append(model)
    if recipe.align is not None:
        from alignkeep.align import stage as aligning

        _check_later_stages(recipe)
        config = alignment_of(recipe, model)
        model = out / "align"
        aligning.align(config, out=model, overwrite=True, resume=resume, progress=progress)
        folders.append(model)
    if not leads():  # of the processes that trained together, one goes on
        return RunResult(out, model, None, None)
    if recipe.merge is not None:
        from alignkeep.merge import stage as merging

        config = merge_of(recipe, model)
        model = out / "merge"
        merging.merge(config, out=model, overwrite=True, resume=resume, progress=progress)
        folders.append(model)
    if recipe.inject is not None:
        from alignkeep.inject import stage as injecting

        config = injection_of(recipe, model)
        model = out / "inject"
        injecting.inject(config, out=model, overwrite=True, resume=resume, progress=progress)
        folders.append(model)
    if recipe.evaluate is not None:
        from alignkeep.evaluate import stage as evaluation

        card = evaluation.evaluate(
            evaluation_of(recipe, model), out=out / "evaluate", overwrite=True, resume=resume, progress=progress
        )
        folders.append(out / "evaluate")
    page = None if card is None else report_on(out, recipe.report or ReportConfig(), "run", identity, folders, began)
    return RunResult(out, model, card, page)


def _curate(recipe: Recipe, out: Path, resume: bool, progress: Progress | None) -> Path:
    """The weights of the examples, and the page that says why. A mistake in what comes after is found before."""
    from alignkeep.curate import stage as curating
    from alignkeep.report.curations import write_explanation

    if recipe.train is not None:
        from alignkeep.train import stage as training

        training.plan(recipe.train)
    _check_later_stages(recipe)
    result = curating.curate(curation_of(recipe), out=out, overwrite=True, resume=resume, progress=progress)
    if leads():
        write_explanation(result.folder)
    return result.folder


def verify(
    folder: Path,
    *,
    files_only: bool = False,
    verify_key: Path | None = None,
    sign_key: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Prove a merged or injected folder: every byte is what its manifest says, record and manifest agree, and the
    inputs give the same again. `proven` and `not_proven` say what that was.

    `files_only` leaves the inputs aside; `verify_key` demands a signature by the owner of that public key, `sign_key`
    puts one into the folder once all is proven. Raises DataError where there is no manifest, CheckpointError naming the
    first thing that is not so, or the input that is not there to make the folder again.
    """
    from alignkeep.checkpoint.manifest import Manifest, check_manifest

    if verify_key is not None or sign_key is not None:
        from alignkeep.checkpoint import signature

        private = None if sign_key is None else signature.private_key(sign_key)
        if verify_key is not None:
            signature.check_signature(folder, verify_key)
    else:
        private = None
    manifest = Manifest.read(folder)
    check_manifest(folder, manifest)
    proven = ["every byte is what the manifest says, and nothing is there besides", "record and manifest agree"]
    open_ones = ["versions, seconds and notes in the record"]
    if manifest.operation == "inject":
        from alignkeep.inject import stage
    else:
        from alignkeep.merge import stage
    again: dict[str, object] = {"inputs": "not looked at", "made_again": False}
    if files_only:
        open_ones.append("that the inputs give this: they were not looked at")
    else:
        made = stage.verify(folder, manifest)
        again, proven, open_ones = dict(again | made.facts), proven + made.proven, open_ones + made.not_proven
    if verify_key is None:
        open_ones.append("who made the folder: no signature was asked for (--verify-key)")
    else:
        proven.append(f"signed by the owner of {verify_key}")
    if private is not None:
        again["signature"] = private(folder)
    told = {"folder": folder, "operation": manifest.operation, **manifest.counts, "files": "unchanged", **again}
    return {**told, "proven": proven, "not_proven": open_ones}


def plan(recipe: Recipe) -> dict[str, object]:
    """What `run` would do, and what it would take where the inputs are there to be looked at. Touches nothing."""
    stages: dict[str, object] = {}
    if recipe.curate is not None:
        from alignkeep.curate import stage as curating

        curation = curation_of(recipe)
        stages["curate"] = _settings(recipe.curate) if _uses_testbed(curation) else curating.plan(curation)
    if recipe.train is not None:
        from alignkeep.train import stage as training

        stages["train"] = _settings(recipe.train) if _uses_testbed(recipe.train) else training.plan(recipe.train)
    if recipe.align is not None:
        stages["align"] = _settings(recipe.align) if _uses_testbed(recipe.align) else _check_alignment(recipe)
    if recipe.merge is not None:
        stages["merge"] = _settings(recipe.merge) if _uses_testbed(recipe.merge) else _check_merge(recipe)
    if recipe.inject is not None:
        stages["inject"] = _settings(recipe.inject) if _uses_testbed(recipe.inject) else _check_injection(recipe)
    if recipe.evaluate is not None:
        in_testbed = _uses_testbed(recipe.evaluate)
        stages["evaluate"] = _settings(recipe.evaluate) if in_testbed else _check_evaluation(recipe)
        stages["report"] = _settings(recipe.report or ReportConfig())
    return {"name": recipe.name, "model": recipe.model, "seed": recipe.seed, "stages": stages}


def methods_of(recipe: Recipe) -> tuple[str, ...]:
    """Names of the methods that the recipe's stages use, as `citations` knows them."""
    names: list[str] = []
    if recipe.curate is not None:
        names += citations.methods_of("curate", recipe.curate.model_dump())
    if recipe.train is not None:
        names += citations.methods_of("train", recipe.train.model_dump())
    if recipe.align is not None:
        names += citations.methods_of("align", recipe.align.model_dump())
    if recipe.merge is not None:
        names += citations.methods_of("merge", recipe.merge.model_dump())
    if recipe.inject is not None:
        names += citations.methods_of("inject", recipe.inject.model_dump())
    if recipe.evaluate is not None:
        from alignkeep.evaluate.attacks import select_attacks

        config = recipe.evaluate.model_dump()
        if makes_a_model(recipe):
            config["base"] = recipe.model
        attacks = [f"attack_success.{attack.name}" for attack in select_attacks(recipe.evaluate.attacks)]
        names += citations.methods_of("evaluate", config, ["over_refusal", *attacks])
    return tuple(dict.fromkeys(names))


def _check_later_stages(recipe: Recipe) -> None:
    """A mistake in what comes after the tune is found before the tune is spent."""
    if recipe.align is not None:
        _check_alignment(recipe)
    if recipe.merge is not None:
        _check_merge(recipe)
    if recipe.inject is not None:
        _check_injection(recipe)
    if recipe.evaluate is not None:
        _check_evaluation(recipe)


def _check_alignment(recipe: Recipe) -> dict[str, object]:
    """The alignment's plan. Where the tune is yet to be made, the base stands in for it."""
    from alignkeep.align import stage as aligning

    return aligning.plan(alignment_of(recipe, None))


def _check_merge(recipe: Recipe) -> dict[str, object]:
    """The merge's plan. Where the tune is yet to be made, the base stands in for it."""
    from alignkeep.merge import stage as merging

    if not tunes(recipe):
        return merging.plan(merge_of(recipe, None))
    assert recipe.merge is not None
    form = recipe.merge.form
    plan = merging.plan(merge_of(recipe, Path(base_of(recipe))).model_copy(update={"form": "model"}))
    return {**plan, "tuned": ["what the stage before it makes"], "form": form}


def _check_injection(recipe: Recipe) -> dict[str, object]:
    """The injection's plan. Where the model is yet to be made, the base stands in for it."""
    from alignkeep.inject import stage as injecting

    if not tunes(recipe) and recipe.merge is None:
        return injecting.plan(injection_of(recipe, None))
    return injecting.plan(injection_of(recipe, Path(base_of(recipe))))


def _check_evaluation(recipe: Recipe) -> dict[str, object]:
    """The evaluation's plan. Where the model is yet to be made, the base stands in for it."""
    from alignkeep.evaluate import stage as evaluation

    assert recipe.evaluate is not None
    if not makes_a_model(recipe):
        return evaluation.plan(recipe.evaluate)
    return evaluation.plan(evaluation_of(recipe, Path(base_of(recipe))))


def report_on(
    out: Path, config: ReportConfig, stage: str, identity: str, folders: Sequence[Path], began: float
) -> Path:
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
    return f'"{TESTBED}' in config.model_dump_json()


def _settings(config: BaseModel) -> Mapping[str, object]:
    return config.model_dump(exclude_defaults=True)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
