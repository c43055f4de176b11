"""A whole tune as one loop over its stages: feed each with what those before made, plan them all, then do them.

Every stage has its own folder below `out` and knows by the fingerprints of its inputs whether it is finished, so that
the same command after a kill continues, and after a change redoes the changed stage and what follows from it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from alignkeep.checkpoint.files import jsonable
from alignkeep.checkpoint.folders import RECORD_NAME, claim_folder, leads, release_folder
from alignkeep.checkpoint.records import Record, identity_of
from alignkeep.citations import Cited
from alignkeep.errors import CheckpointError
from alignkeep.progress import Progress
from alignkeep.recipe import TESTBED, Recipe
from alignkeep.report.config import ReportConfig
from alignkeep.runs.perform import perform
from alignkeep.stage import Made, Stage
from alignkeep.stages import methods_of as methods_of_stage
from alignkeep.stages import stage_named
from alignkeep.types import Scorecard

if TYPE_CHECKING:
    from alignkeep.checkpoint.manifest import MadeAgain, Manifest


@dataclass(frozen=True)
class RunResult:
    """Where a recipe's results lie; what the recipe's stages do not make is None."""

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

    A mistake in any stage is found before the first is begun. A finished stage whose settings and inputs are the same
    is not done again (unless `resume=False`). Raises the stages' errors, and RecipeError where `out` belongs to another
    recipe and `overwrite` is not given.
    """
    began = time.monotonic()
    identity = identity_of("run", {"name": recipe.name}, {})
    out = claim_folder(Path(out), stage="run", identity=identity, overwrite=overwrite)
    try:
        return _done(recipe, out, identity, resume, progress, began)
    finally:
        release_folder(out)


def _done(recipe: Recipe, out: Path, identity: str, resume: bool, progress: Progress | None, began: float) -> RunResult:
    recipe = recipe.with_references(lambda reference: _local(reference, out / "testbed"))
    _check_policy(recipe)
    for step in _foreseen(recipe):
        step.stage.foresee(step.config, step.made)
    made, model, card, folders = _given(recipe), None, None, []
    for stage, config in recipe.steps:
        if not (leads() or stage.together):  # of the processes that trained together, one goes on
            break
        folder = out / stage.name
        result = perform(stage, stage.feed(config, made), out=folder, overwrite=True, resume=resume, progress=progress)
        made = stage.hand_on(config, made, folder)
        model = folder if stage.makes_model else model
        card = result if isinstance(result, Scorecard) else card
        folders.append(folder)
        explain(stage, folder)
    page = None if card is None else report_on(out, recipe.report or ReportConfig(), "run", identity, folders, began)
    return RunResult(out, model, card, page)


def plan(recipe: Recipe) -> dict[str, object]:
    """What `run` would do, and what it would take where the inputs are there to be looked at. Touches nothing."""
    stages: dict[str, object] = {}
    for stage, config, made in _foreseen(recipe):
        in_testbed = _uses_testbed(config) or _uses_testbed(stage.feed(config, made))
        stages[stage.name] = _settings(config) if in_testbed else stage.foresee(config, made).as_json()
    if any(stage.measures for stage, _ in recipe.steps):
        _check_policy(recipe)
        stages["report"] = _settings(recipe.report or ReportConfig())
    return {"name": recipe.name, "model": recipe.model, "seed": recipe.seed, "stages": stages}


def _check_policy(recipe: Recipe) -> None:
    """A policy that cannot be read is known before the first stage, not after the last."""
    from alignkeep.policy.bounds import read_policy

    read_policy((recipe.report or ReportConfig()).policy)


def methods_of(recipe: Recipe) -> tuple[Cited, ...]:
    """Names of the methods that the recipe's stages use, as `citations` knows them."""
    names: list[Cited] = []
    for stage, config, made in _foreseen(recipe):
        # Which revision it is makes no other method, and is not looked for.
        fed = stage.feed(config, replace(made, revision=None))
        names += methods_of_stage(stage.name, fed.model_dump())
    return tuple(dict.fromkeys(names))


class _Step(NamedTuple):
    stage: Stage[Any, Any, Any]
    config: BaseModel
    made: Made


def _given(recipe: Recipe) -> Made:
    """What a recipe has in hand before its first stage."""
    of = [stage.revision_of(config) for stage, config in recipe.steps if stage.makes_model]
    made = Made(recipe.model, of[0] if of else None)
    for stage, config in recipe.steps:
        made = stage.announce(config, made)
    return made


def _foreseen(recipe: Recipe) -> Iterator[_Step]:
    """The stages with what each will have in hand, before any of it is made."""
    made = _given(recipe)
    for stage, config in recipe.steps:
        yield _Step(stage, config, made)
        made = stage.hand_on(config, made, None)


def verify(
    folder: str | Path,
    *,
    files_only: bool = False,
    verify_key: Path | None = None,
    sign_key: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Prove a folder that has a manifest: every byte is what its manifest says, record and manifest agree, and the
    inputs give the same again. `proven` and `not_proven` say what that was.

    `files_only` leaves the inputs aside; `verify_key` demands a signature by the owner of that public key, `sign_key`
    puts one into the folder once all is proven. Raises DataError where there is no manifest, CheckpointError naming the
    first thing that is not so, or the input that is not there to make the folder again.
    """
    from alignkeep.checkpoint.manifest import Manifest, check_manifest

    folder, private = Path(folder), None
    if verify_key is not None or sign_key is not None:
        from alignkeep.checkpoint import signature

        private = None if sign_key is None else signature.private_key(sign_key)
        if verify_key is not None:
            signature.check_signature(folder, verify_key)
    manifest = Manifest.read(folder)
    check_manifest(folder, manifest)
    proven = ["every byte is what the manifest says, and nothing is there besides", "record and manifest agree"]
    open_ones = ["versions, seconds and notes in the record"]
    again: dict[str, object] = {"inputs": "not looked at", "made_again": False}
    if files_only:
        open_ones.append("that the inputs give this: they were not looked at")
    else:
        made = _made_again(folder, manifest)
        again, proven, open_ones = dict(again | made.facts), proven + made.proven, open_ones + made.not_proven
    if verify_key is None:
        open_ones.append("who made the folder: no signature was asked for (--verify-key)")
    else:
        proven.append(f"signed by the owner of {verify_key}")
    if private is not None:
        again["signature"] = private(folder)
    told = {"folder": folder, "operation": manifest.operation, **manifest.counts, "files": "unchanged", **again}
    return {**told, "proven": proven, "not_proven": open_ones}


def _made_again(folder: Path, manifest: Manifest) -> MadeAgain:
    stage = stage_named(manifest.operation)
    made = None if stage is None else stage.verify(folder, manifest)
    if made is None:
        raise CheckpointError(
            f"{folder / 'manifest.json'}: operation",
            seen=manifest.operation,
            expected="a stage that can make its output again",
            remedy="verify it with the version that made it",
        )
    return made


def explain(stage: Stage[Any, Any, Any], folder: Path) -> None:
    """The page of its own that a finished folder is worth, beside its files, where there is one."""
    if leads():
        stage.explain(folder)


def report_on(
    out: Path, config: ReportConfig, stage: str, identity: str, folders: Sequence[Path], began: float
) -> Path:
    """Record the run and write its page, unless both are there and nothing below them has changed."""
    from alignkeep.report import stage as reporting

    page = out / reporting.PAGE_NAME
    inputs = {folder.relative_to(out).as_posix(): _digest(folder / RECORD_NAME) for folder in folders}
    if config.policy != ReportConfig.model_fields["policy"].default:
        inputs["policy"] = _digest(Path(config.policy))
    settings = {**config.model_dump(), "folders": [name for name in inputs if name != "policy"]}
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
    reporting.report(
        folders, out=page, card=config.card, title=config.title, full_answers=config.full_answers, policy=config.policy
    )
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
