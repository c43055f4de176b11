"""From sets to masses, weights and the kept, by every method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.curate.config import ON_VECTORS, CurateConfig
from alignkeep.curate.prepare import Prepared
from alignkeep.curate.text import BUCKETS, hashed_ngrams, whole
from alignkeep.curate.vectors import Vectors, made_vectors
from alignkeep.errors import MachineError, NoEffectError
from alignkeep.models.processes import Processes
from alignkeep.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from alignkeep.curate.baselines import Scores
    from alignkeep.curate.weighting import Weighing
    from alignkeep.models.loading import LoadedModel

_DENSE_BYTES = 1 << 28  # costs to one reference that are kept, with shares as large; else made in every pass (chosen)
_NO_COST, _ALIKE = 1e-6, 1e-4  # a median cost, and a difference of potentials over them, that is rounding (chosen)
_MOVING = 0.02  # of all mass, from one step to the next: a choice that is not made (chosen)
_SAME = 1e-5  # of the scores' size: a spread that is rounding (chosen; cosines are of float32)
_SAMPLE = 4000  # examples whose costs give the median (chosen)


@dataclass(frozen=True, eq=False)
class Choice:
    """Stage 1 masses that sum to 1, training weights of mean 1 over the kept, and what they rest on: how near an
    example is to safe and to harmful data, larger being nearer; vectors and weighing where the method has them. `facts`
    go into summary.json."""

    mass: Tensor
    weights: Tensor
    kept: Tensor
    safe: Tensor | None
    harmful: Tensor | None
    facts: dict[str, object]
    epsilon: float | None = None
    vectors: Vectors | None = None
    weighing: Weighing | None = None


def choose(
    prepared: Prepared, loaded: LoadedModel | None, store: Path, processes: Processes, progress: Progress
) -> Choice:
    """What the configured method chooses, with the model where it looks into one. `store` keeps vectors until the stage
    is done."""
    config = prepared.config
    if config.method in ON_VECTORS:
        vectors = prepared.vectors or _embedded(prepared, loaded, store, processes, progress)
        if config.method == "sot":
            return by_transport(config, vectors, processes, progress)
        return _by_scores(config, _mean_cosine(vectors), vectors)
    return _by_scores(config, _unembedded(prepared, loaded, progress), None)


def by_transport(config: CurateConfig, vectors: Vectors, processes: Processes, progress: Progress) -> Choice:
    """Push and pull over the vectors; every process holds its part of the rows against the references."""
    import torch

    from alignkeep.curate import weighting
    from alignkeep.models.loading import choose_device

    sot, count = config.sot, len(vectors.data)
    device, dtype = choose_device(config.load.device), getattr(torch, sot.precision)
    if device.type == "mps":  # which has no float64
        device = torch.device("cpu")
    epsilon = _epsilon(config, vectors)
    here = processes.share(count)
    most = -(-count // processes.count)  # rows of a process: all decide alike
    progress.start("steps of the weights", None)
    try:
        sources = vectors.data[here].to(device, dtype)
        references = [
            weighting.Reference(_costs(sources, one.to(device, dtype), sot.block, most), here, processes.total)
            for one in (vectors.safe, vectors.harmful)
        ]
        found = weighting.weigh(
            references[0], references[1], count, epsilon, push=sot.push, floor=sot.sample_size, dtype=dtype,
            device=device, after=lambda step: progress.advance(1, f"still moving {step.residual:.1e}"),
        )  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise MachineError(
            "sot.block", seen=f"out of memory with {count} examples", expected="room for their costs",
            remedy="lower sot.block, or give --device cpu",
        ) from error  # fmt: skip
    progress.done()
    _check_apart(found, sot.push)
    _check_ended(found)
    kept = weighting.top_k(found.logits, config.keep)  # masses of the dtype may be 0, and so alike
    last = found.steps[-1]
    facts: dict[str, object] = {
        "ess": found.sample_size, "tau": last.tau, "epsilon": epsilon, "push": sot.push,
        "iterations": len(found.steps), "residual": last.residual, "converged": found.converged,
        "marginal_errors": {"safe": found.safe_error, "harmful": found.harmful_error},
        "safe_distance": last.safe, "harmful_distance": last.harmful,
        "steps": [step._asdict() for step in found.steps],
    }  # fmt: skip
    return Choice(
        mass=found.mass.cpu(), weights=weighting.training_weights(found, kept, sot.weights).cpu(), kept=kept.cpu(),
        safe=-found.safe_potential.cpu(), harmful=-found.harmful_potential.cpu(), facts=facts, epsilon=epsilon,
        vectors=vectors, weighing=found,
    )  # fmt: skip


def _embedded(
    prepared: Prepared, loaded: LoadedModel | None, store: Path, processes: Processes, progress: Progress
) -> Vectors:
    config = prepared.config
    sets = prepared.data, prepared.safe, prepared.harmful
    return made_vectors(config, loaded, sets, store, processes, progress)


def _epsilon(config: CurateConfig, vectors: Vectors) -> float:
    """In the units of the costs."""
    if config.sot.epsilon_is == "absolute":
        return config.sot.epsilon
    median = _median_cost(vectors)
    if median <= _NO_COST:
        raise NoEffectError(
            "sot.epsilon", seen=f"a median cost of {max(median, 0):.1e}: most vectors coincide",
            expected="vectors that differ", remedy="take another embed.layer or embed.pooling, or epsilon_is: absolute",
        )  # fmt: skip
    return config.sot.epsilon * median


def _check_apart(found: Weighing, push: float) -> None:
    """Raises NoEffectError where no example is nearer to one reference than to the other, but for rounding."""
    safe, harmful = found.safe_potential.double(), found.harmful_potential.double()
    scale = float(safe.std() + push * harmful.std())
    if float((safe - push * harmful).std()) <= _ALIKE * scale:
        raise NoEffectError(
            "curate", seen="safe and harmful references that lie alike to every example",
            expected="references that tell examples apart", remedy="check --safe and --harmful",
        )  # fmt: skip


def _check_ended(found: Weighing) -> None:
    """Raises NoEffectError for masses that are all equal, which is no choice, and MachineError for some that still
    move or rest on transports that are not solved: all would keep examples by something else than where they lie."""
    last = found.steps[-1]
    if float(found.mass.max()) == float(found.mass.min()):
        raise NoEffectError(
            "curate", seen="equal masses of all examples", expected="some that are larger",
            remedy="lower sot.sample_size, or take references that differ more",
        )  # fmt: skip
    if last.residual > _MOVING:
        raise MachineError(
            "curate", seen=f"masses that still move by {last.residual:.2g} of the whole after {len(found.steps)} steps",
            expected=f"at most {_MOVING:g}", remedy="raise sot.epsilon, or take sot.precision: float64",
        )  # fmt: skip
    off = max(found.safe_error, found.harmful_error)
    if not off <= _MOVING:
        raise MachineError(
            "curate", seen=f"a transport that is off by {off:.2g} of the references' marginals",
            expected=f"at most {_MOVING:g}", remedy="raise sot.epsilon, or take sot.precision: float64",
        )  # fmt: skip


def _costs(sources: Tensor, targets: Tensor, block: int, most: int) -> Any:
    from alignkeep.curate.transport import CosineCosts, DenseCosts

    if most * len(targets) * sources.element_size() <= _DENSE_BYTES:
        return DenseCosts(1 - sources @ targets.mT, block)
    return CosineCosts(sources, targets, block)


def _median_cost(vectors: Vectors) -> float:
    """The median of the costs to both references, of some examples by chance where there are many."""
    import torch

    some = vectors.data
    if len(some) > _SAMPLE:
        some = some[torch.randperm(len(some), generator=torch.Generator().manual_seed(0))[:_SAMPLE].to(some.device)]
    return float(torch.cat([(1 - some @ one.mT).flatten() for one in (vectors.safe, vectors.harmful)]).median())


def _mean_cosine(vectors: Vectors) -> Scores:
    from alignkeep.curate.baselines import mean_cosine

    return mean_cosine(vectors.data, vectors.safe, vectors.harmful)


def _unembedded(prepared: Prepared, loaded: LoadedModel | None, progress: Progress) -> Scores:
    from alignkeep.curate import baselines

    config = prepared.config
    if config.method == "random":
        return baselines.by_chance(prepared.count, config.seed)
    if config.method == "dsir":
        data, safe = ([hashed_ngrams(whole(one)) for one in some] for some in (prepared.data, prepared.safe))
        return baselines.importance_ratio(data, safe, BUCKETS)
    from alignkeep.models.gradients import gradient_products, mean_gradient

    assert loaded is not None
    how: Any = {
        "batch_size": config.embed.batch_size, "max_length": config.embed.max_length, "too_long": "cut",
        "progress": progress,
    }  # fmt: skip
    references = (config.safe, prepared.safe), (config.harmful, prepared.harmful)
    means = [mean_gradient(loaded, examples, what=f"{path}, example", **how) for path, examples in references]
    products = gradient_products(loaded, prepared.data, means, what=f"{config.data}, example", **how)
    return baselines.bidirectional(products[:, 0], products[:, 1])


def _by_scores(config: CurateConfig, scores: Scores, vectors: Vectors | None) -> Choice:
    """The best are kept and weigh alike; the others have no mass."""
    from alignkeep.curate.weighting import top_k

    size = float(scores.value.abs().max())
    if scores.safe is not None and scores.harmful is not None:
        size = float(scores.safe.abs().max() + scores.harmful.abs().max())
    if float(scores.value.max() - scores.value.min()) <= _SAME * size:
        raise NoEffectError(
            "curate", seen=f"the same score by {config.method} for every example", expected="examples that differ",
            remedy="check --safe and --harmful",
        )  # fmt: skip
    kept = top_k(scores.value, config.keep)
    count = int(kept.sum())
    facts: dict[str, object] = {"tau": None, "epsilon": None, "push": None, "residual": None}
    facts |= {"ess": float(count), "iterations": 0, "converged": True}
    return Choice(
        mass=kept.double() / count, weights=kept.double(), kept=kept, safe=scores.safe, harmful=scores.harmful,
        facts=facts, vectors=vectors,
    )  # fmt: skip
