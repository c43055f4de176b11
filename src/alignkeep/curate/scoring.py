"""From sets to masses, weights and the kept: what a method looks at is made, and its scores are made a choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.curate import planting
from alignkeep.curate.config import CurateConfig
from alignkeep.curate.method import Given, Products, Scores, Sets, Weighing
from alignkeep.curate.prepare import Prepared
from alignkeep.curate.text import whole
from alignkeep.curate.vectors import Vectors, checked, made_vectors, whitened_vectors
from alignkeep.errors import NoEffectError, RecipeError
from alignkeep.models.processes import Processes
from alignkeep.objects import faults_of
from alignkeep.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from alignkeep.models.loading import LoadedModel

_SAME = 1e-5  # of the scores' size: a spread that is rounding (chosen; cosines are of float32)
_NOT_WEIGHED = {"tau": None, "epsilon": None, "push": None, "residual": None, "iterations": 0, "converged": True}


@dataclass(frozen=True, eq=False)
class Choice:
    """Stage 1 masses that sum to 1, training weights of mean 1 over the kept, and what they rest on: how near an
    example is to safe and to harmful data, larger being nearer; vectors (as they are looked at, and `raw`) and
    weighing where the method has them. `facts` go into summary.json."""

    mass: Tensor
    weights: Tensor
    kept: Tensor
    safe: Tensor | None
    harmful: Tensor | None
    facts: dict[str, object]
    vectors: Vectors | None = None
    raw: Vectors | None = None
    weighing: Weighing | None = None


def choose(
    prepared: Prepared, loaded: LoadedModel | None, store: Path, processes: Processes, progress: Progress
) -> Choice:
    """What the configured method chooses, with the model where it looks into one. `store` keeps vectors until the stage
    is done."""
    config, options = prepared.config, prepared.config.rule_options
    seen, raw, told = None, None, dict[str, object]()
    if config.on_vectors:
        raw, seen, options, told = _vectors(prepared, loaded, store, processes, progress)
    texts = gradients = None
    if config.rule.needs == "texts":
        texts = Sets(*([whole(one) for one in some] for some in (prepared.data, prepared.safe, prepared.harmful)))
    elif config.rule.needs == "gradients":
        assert loaded is not None
        gradients = _products(prepared, loaded, progress)
    given = Given(
        prepared.count, config.seed, None if seen is None else Sets(*seen[:3]), texts, gradients,
        config.load.device, processes, progress,
    )  # fmt: skip
    where = f"method {config.method}"
    with faults_of(config.rule, where, "its score()", expected="Scores", remedy="mend the method"):
        scores = config.rule.score(given, options)
    _check(config.method, scores, given.count)
    return replace(_chosen(config, scores, given.count, told), vectors=seen, raw=raw)


def _vectors(
    prepared: Prepared, loaded: LoadedModel | None, store: Path, processes: Processes, progress: Progress
) -> tuple[Vectors, Vectors, Any, dict[str, object]]:
    """The vectors, what is looked at of them, the options of the method, and what chose both where plants did."""
    config = prepared.config
    if prepared.vectors is not None:
        seen = whitened_vectors(prepared.vectors) if config.embed.whiten else prepared.vectors
        return prepared.vectors, seen, config.rule_options, {}
    sets = {"data": prepared.data, "safe": prepared.safe, "harmful": prepared.harmful}
    how: Any = {"store": store, "processes": processes, "progress": progress}
    if config.embed.pooling != "auto":
        made = made_vectors(config, loaded, sets, config.embed.pooling, **how)
        raw = checked(**made.vectors, where="embeddings")._replace(truncated=made.truncated)
        return raw, whitened_vectors(raw) if config.embed.whiten else raw, config.rule_options, {}
    planted = planting.plants_of(config, prepared.data, prepared.harmful)
    made = made_vectors(config, loaded, {**sets, "planted": planted.examples}, "+".join(planting.PARTS), **how)
    best, told = planting.try_vectors(config, made, planted, processes, progress)
    raw, seen = (planting.vectors_of(made, best.pooling, whiten) for whiten in (False, best.whiten))
    return raw, seen, best.options, {"embed": told}


def _chosen(config: CurateConfig, scores: Scores, count: int, told: Mapping[str, object]) -> Choice:
    """The share that is kept by the method's scores. Where it weighs, masses and weights are its own; else the kept
    weigh alike and the others have no mass."""
    from alignkeep.curate.weighting import top_k

    kept = top_k(scores.value, config.keep)
    number = int(kept.sum())
    facts: dict[str, object] = {"ess": float(number), **_NOT_WEIGHED, **scores.facts, **told}
    mass, weights = kept.double() / number, kept.double()
    if scores.weighing is not None:
        mass, weights = scores.weighing.mass, scores.weighing.weights(kept)
    return Choice(mass, weights, kept, scores.safe, scores.harmful, facts, weighing=scores.weighing)


def _check(method: str, scores: Scores, count: int) -> None:
    """Raises RecipeError for what are no scores, NoEffectError where they tell nothing apart."""
    named = {"value": scores.value, "safe": scores.safe, "harmful": scores.harmful}
    if scores.weighing is not None:
        named["mass"] = scores.weighing.mass
    for name, values in named.items():
        if values is not None and (values.shape != (count,) or bool(values.isnan().any())):
            raise RecipeError(
                f"method {method}: score", seen=f"{name} of shape {tuple(values.shape)}, or not a number in it",
                expected=f"{count} numbers, one for every example", remedy="mend the method",
            )  # fmt: skip
    size = float(scores.value.abs().max())
    if scores.safe is not None and scores.harmful is not None:
        size = float(scores.safe.abs().max() + scores.harmful.abs().max())
    if scores.weighing is None and float(scores.value.max() - scores.value.min()) <= _SAME * size:
        raise NoEffectError(
            "curate", seen=f"the same score by {method} for every example", expected="examples that differ",
            remedy="check --safe and --harmful",
        )  # fmt: skip


def _products(prepared: Prepared, loaded: LoadedModel, progress: Progress) -> Products:
    from alignkeep.models.gradients import gradient_products, mean_gradient

    config = prepared.config
    how: Any = {
        "batch_size": config.embed.batch_size, "max_length": config.embed.max_length, "too_long": "cut",
        "progress": progress,
    }  # fmt: skip
    references: Sequence[Any] = (config.safe, prepared.safe), (config.harmful, prepared.harmful)
    means = [mean_gradient(loaded, examples, what=f"{path}, example", **how) for path, examples in references]
    products = gradient_products(loaded, prepared.data, means, what=f"{config.data}, example", **how)
    return Products(products[:, 0], products[:, 1])
