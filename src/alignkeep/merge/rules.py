"""From the words of a config to the method of every tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from alignkeep.errors import NoEffectError, RecipeError
from alignkeep.merge.config import INTERPOLATIONS, SPACED, MergeConfig, MethodOptions
from alignkeep.merge.methods import Linear, Mapped, Method, ModelStock, NuSlerp, Slerp, Subspace, TaskVectors
from alignkeep.merge.spaces import Space
from alignkeep.merge.sparsify import Magnitude, Outliers, Random, RankedRandom

Rule = Callable[[str], Method]

_TIES_DENSITY = 0.2  # the paper's: the largest 20 % of a task vector (Yadav et al., section 4)
_DARE_DENSITY = 0.5
_BREADCRUMBS_DENSITY = 0.9


def check_method(config: MergeConfig) -> None:
    """The method can be had for so many models, and every setting it is given means something to it."""
    count, method = len(config.tuned), config.method
    if method in INTERPOLATIONS and not 0 <= config.weight <= 1:
        raise _refused("weight", f"{config.weight:g}", f"a number in [0, 1]: {method} interpolates", "correct it")
    if method in ("slerp", "nuslerp", *SPACED) and count != 1:
        raise _refused("tuned", f"{count} tuned models", f"one, for {method}", "merge them one after the other")
    if method == "model_stock":
        if count < 2:
            raise _refused("tuned", "one tuned model", "two or more, for model_stock", "take --method linear")
        if "weight" in config.model_fields_set or config.sweep is not None:
            raise _refused("weight", "a weight for model_stock", "none: it finds its own", "drop --weight and --sweep")
    _check_data(config)
    given = config.options.model_fields_set
    unused = sorted(given - _OPTIONS.get(method, set()))
    if unused:
        meant = ", ".join(sorted(_OPTIONS.get(method, set()))) or "none"
        raise _refused(f"options.{unused[0]}", f"a setting that {method} does not use", f"{meant}", "drop it")
    epsilon, density = config.options.epsilon, _density(config.options, _DARE_DENSITY)
    if density == 0:
        raise NoEffectError("options.density", seen="0, which keeps nothing of the tune", expected="a share above 0",
                            remedy="raise it, or ask for the base with weight 0")  # fmt: skip
    if method in ("della", "della_linear") and 0 < density < 1 and not epsilon <= density <= 1 - epsilon:
        raise _refused("options.epsilon", f"{epsilon:g} around a density of {density:g}",
                       "density - epsilon and density + epsilon within [0, 1]", "choose a smaller epsilon")  # fmt: skip


def rule_of(config: MergeConfig, weight: float, spaces: Mapping[str, Space] | None = None) -> Rule:
    """The same method for every tensor, with this weight of the tuned models.

    `spaces` by tensor name are for fisher and alignment_subspace; what has none there is merged linearly.
    """
    method = _method_of(config, weight, len(config.tuned))
    spaced = _spaced(config.method, weight, spaces or {})
    return lambda name: spaced.get(name, method)


def _spaced(method: str, weight: float, spaces: Mapping[str, Space]) -> Mapping[str, Method]:
    """The methods that differ from tensor to tensor."""
    if method == "alignment_subspace":
        return {name: Subspace(weight, one.alignment.vectors, one.input_axis) for name, one in spaces.items()}
    if method != "fisher" or not spaces:
        return {}
    from alignkeep.subspace.balance import balance

    tuning = {name: one.tuning for name, one in spaces.items() if one.tuning is not None}
    maps = balance({name: one.alignment for name, one in spaces.items()}, tuning or None, weight)
    return {name: Mapped(weight, *maps[name], one.input_axis) for name, one in spaces.items()}


def _check_data(config: MergeConfig) -> None:
    """Data is given where it is used, and only there."""
    method = config.method
    if (method in SPACED) != (config.alignment_data is not None):
        seen = f"{method} {'without' if config.alignment_data is None else 'with'} alignment data"
        raise _refused("alignment_data", seen, "it for fisher and alignment_subspace, and only there", "mend that")
    if config.tuning_data is not None and method != "fisher":
        raise _refused("tuning_data", f"{method} with tuning data", "it for fisher only", "drop it")


def _method_of(config: MergeConfig, weight: float, count: int) -> Method:
    options, seed = config.options, config.seed
    kept, even = _density(options, _DARE_DENSITY), (1 / count,) * count
    rescale = None if options.rescale == "none" else options.rescale or "probability"
    consensus = "sum" if config.method in ("ties", "dare_ties", "della", "breadcrumbs_ties") else None
    match config.method:
        case "linear" | "fisher" | "alignment_subspace":
            return Linear((1 - weight, *(weight / count,) * count))
        case "slerp":
            return Slerp(weight)
        case "nuslerp":
            return NuSlerp(weight)
        case "model_stock":
            return ModelStock()
        case "task_arithmetic":
            return TaskVectors((1.0,) * count, (None,) * count, scale=weight)
        case "ties":
            sparse = (Magnitude(_density(options, _TIES_DENSITY)),) * count
            return TaskVectors((1.0,) * count, sparse, consensus=consensus, normalize=True, scale=weight)
        case "dare" | "dare_ties":
            sparse = (Random(kept, rescale, seed),) * count
            return TaskVectors(even, sparse, consensus=consensus, scale=weight)
        case "della" | "della_linear":
            sparse = (RankedRandom(kept, options.epsilon, rescale, seed),) * count
            return TaskVectors(even, sparse, consensus=consensus, normalize=consensus is not None, scale=weight)
        case "breadcrumbs" | "breadcrumbs_ties":
            sparse = (Outliers(_density(options, _BREADCRUMBS_DENSITY), options.gamma),) * count
            return TaskVectors((1.0,) * count, sparse, consensus=consensus, scale=weight)


_OPTIONS: dict[str, set[str]] = {
    "ties": {"density"},
    "dare": {"density", "rescale"},
    "dare_ties": {"density", "rescale"},
    "della": {"density", "epsilon", "rescale"},
    "della_linear": {"density", "epsilon", "rescale"},
    "breadcrumbs": {"density", "gamma"},
    "breadcrumbs_ties": {"density", "gamma"},
    "fisher": {"most", "examples"},
    "alignment_subspace": {"share", "most", "examples"},
}


def _density(options: MethodOptions, usual: float) -> float:
    return usual if options.density is None else options.density


def _refused(where: str, seen: str, expected: str, remedy: str) -> RecipeError:
    return RecipeError(where, seen=seen, expected=expected, remedy=remedy)
