"""What the stages of a recipe hand to each other, as each stage's own settings."""

from __future__ import annotations

from pathlib import Path

from alignkeep.align.config import AlignConfig
from alignkeep.curate.config import CurateConfig
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.inject.config import InjectConfig
from alignkeep.merge.config import MergeConfig
from alignkeep.recipe import Recipe
from alignkeep.train.config import TrainConfig


def curation_of(recipe: Recipe) -> CurateConfig:
    """The recipe's curation, whose anchors may not repeat the task questions of the evaluation either."""
    assert recipe.curate is not None
    task = None if recipe.evaluate is None else recipe.evaluate.task
    if task is None or task in recipe.curate.evaluation:
        return recipe.curate
    return recipe.curate.model_copy(update={"evaluation": (*recipe.curate.evaluation, task)})


def tune_of(recipe: Recipe, curated: Path) -> TrainConfig:
    """The recipe's tune, on the weights of its curation where it has one."""
    assert recipe.train is not None
    return recipe.train if recipe.curate is None else recipe.train.model_copy(update={"weights": str(curated)})


def alignment_of(recipe: Recipe, tuned: Path | None) -> AlignConfig:
    """The recipe's alignment, of its own tune where it has one."""
    assert recipe.align is not None
    if tuned is None:
        return recipe.align
    load = recipe.align.load.model_copy(update={"revision": None})  # a revision is the base's, not the tune's
    return recipe.align.model_copy(update={"model": str(tuned), "load": load})


def tunes(recipe: Recipe) -> bool:
    """Whether the recipe makes a tuned model, which a merge then takes."""
    return recipe.train is not None or recipe.align is not None


def merge_of(recipe: Recipe, tuned: Path | None) -> MergeConfig:
    """The recipe's merge of its own tune, or of the models it names."""
    assert recipe.merge is not None
    if tuned is None:
        return recipe.merge
    return recipe.merge.model_copy(update={"base": base_of(recipe), "tuned": (str(tuned),)})


def injection_of(recipe: Recipe, tuned: Path | None) -> InjectConfig:
    """The recipe's injection into what came out so far, with the direction of the base and silent on the tune's data
    unless told otherwise; or into the model itself where nothing came before."""
    assert recipe.inject is not None
    config = recipe.inject
    if tuned is None:
        return config
    load = config.load.model_copy(update={"revision": None})  # a revision is the base's, not the tune's
    source = config.direction.source or (None if config.direction.system_prompt else base_of(recipe))
    general = config.general or (None if recipe.train is None else recipe.train.data)
    direction = config.direction.model_copy(update={"source": source})
    return config.model_copy(update={"model": str(tuned), "direction": direction, "general": general, "load": load})


def makes_a_model(recipe: Recipe) -> bool:
    return any(stage is not None for stage in (recipe.train, recipe.align, recipe.merge, recipe.inject))


def evaluation_of(recipe: Recipe, tuned: Path | None) -> EvaluateConfig:
    """The recipe's evaluation of what came out against its base, or of the model itself where nothing did."""
    assert recipe.evaluate is not None
    if tuned is None:
        return recipe.evaluate
    load = recipe.evaluate.load.model_copy(update={"revision": None})  # a revision is the base's, not the tune's
    base = recipe.evaluate.base or base_of(recipe)
    return recipe.evaluate.model_copy(update={"model": str(tuned), "base": base, "load": load})


def base_of(recipe: Recipe) -> str:
    """The recipe's model, at the revision that was tuned or merged."""
    stage = recipe.train or recipe.merge or recipe.inject
    return _at_revision(recipe.model, None if stage is None else stage.load.revision)


def _at_revision(model: str, revision: str | None) -> str:
    """The folder of a hub model's revision, which is what was tuned; a model without a revision as it is."""
    if revision is None:
        return model
    from alignkeep.models.folders import localise, resolve

    return str(localise(resolve(model, revision)).folder)
