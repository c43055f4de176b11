"""Push and pull by optimal transport: the mathematics is in weighting, transport, free_masses and temperature.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from alignkeep.curate.method import Counts, CurationMethod, Given, Reference, Scores, Sets, Weighing
from alignkeep.errors import MachineError, NoEffectError
from alignkeep.settings import Checked

if TYPE_CHECKING:
    from torch import Tensor

    from alignkeep.curate import weighting

_DENSE_BYTES = 1 << 28  # costs to one reference that are kept, with shares as large; else made in every pass (chosen)
_NO_COST, _ALIKE = 1e-6, 1e-4  # a median cost, and a difference of potentials over them, that is rounding (chosen)
_MOVING = 0.02  # of all mass, from one step to the next: a choice that is not made (chosen)
_SAMPLE = 4000  # examples whose costs give the median (chosen)


class SotSettings(Checked):
    """Push and pull (eqs. 6 and 7). `push` is lambda, 0 only pulls. `epsilon` is a share of the median cost, or the
    number itself with `epsilon_is: absolute`. `sample_size` is the share of the examples below which the effective
    sample size may not fall. `weights` is omega: softmax of the logits, exponential of the masses (the paper's, nearly
    uniform), or equal. `precision` is that of the transports; `block` examples at a time are held against the
    references."""

    push: float = Field(default=1.0, ge=0, le=1e3)
    epsilon: float = Field(default=0.05, ge=1e-6, le=1e6)
    epsilon_is: Literal["relative", "absolute"] = "relative"
    sample_size: float = Field(default=0.8, gt=0, lt=1)
    weights: Literal["softmax", "exponential", "equal"] = "softmax"
    precision: Literal["float32", "float64"] = "float32"
    block: int = Field(default=4096, gt=0, le=1_000_000_000)


class PushPull(CurationMethod):
    name = "sot"
    title = "Push-pull weights by optimal transport"
    needs = "vectors"
    options = SotSettings
    works = ("wang2026safeguarding", "cuturi2013sinkhorn", "brauer2017sinkhorn", "yuille2003concave")
    departures = (
        "Masses are kept near the uniform ones, so that their effective sample size does not fall below a share.",
        "The gradient is the dual potential; no iteration is unrolled, and the masses are a fixed point of the "
        "convex-concave procedure in place of the end of gradient steps.",
        "Training weights are a softmax of the logits; the paper's exponential of masses is one option away.",
        "Examples are looked at by the mean over their answers' tokens; the paper's last token is one option away.",
    )

    def weighs(self, options: SotSettings) -> bool:
        return options.weights != "equal"

    def trials(self, options: SotSettings) -> tuple[SotSettings, ...]:
        epsilons = (round(times * options.epsilon, 9) for times in (0.4, 4.0))
        return tuple(options.model_copy(update={"epsilon": epsilon}) for epsilon in epsilons)

    def memory(self, counts: Counts, options: SotSettings) -> int:
        references = max(counts.safe, counts.harmful, 1)
        costs = min(12 * counts.data * references, 3 << 28)
        return costs + 16 * min(counts.data, options.block) * references + 24 * references**2

    def score(self, given: Given, options: SotSettings) -> Scores:
        from alignkeep.curate import weighting

        assert given.vectors is not None
        epsilon = _epsilon(given.vectors, options)
        given.progress.start("steps of the weights", None)
        found = _weighed(given, given.vectors, epsilon, options)
        given.progress.done()
        _check_apart(found, options.push)
        _check_ended(found)

        def weights(kept: Tensor) -> Tensor:
            return weighting.training_weights(found, kept.to(found.mass.device), options.weights).cpu()

        def share(costs: Tensor, reference: Reference) -> Tensor:
            targets = found.harmful_targets if reference == "harmful" else found.safe_targets
            return weighting.shares(costs, targets.cpu(), epsilon)

        return Scores(
            found.logits.cpu(),  # masses of the dtype may be 0, and so alike
            safe=-found.safe_potential.cpu(),
            harmful=-found.harmful_potential.cpu(),
            weighing=Weighing(found.mass.cpu(), weights, share),
            facts=_facts(found, epsilon, options),
        )


def _weighed(given: Given, vectors: Sets[Tensor], epsilon: float, options: SotSettings) -> weighting.Weighing:
    """Push and pull over the vectors; every process holds its part of the rows against the references."""
    import torch

    from alignkeep.curate import weighting
    from alignkeep.models.loading import choose_device

    count, processes = len(vectors.data), given.processes
    device, dtype = choose_device(given.device), getattr(torch, options.precision)
    if device.type == "mps":  # which has no float64
        device = torch.device("cpu")
    here = processes.share(count)
    most = -(-count // processes.count)  # rows of a process: all decide alike
    try:
        sources = vectors.data[here].to(device, dtype)
        references = [
            weighting.Reference(_costs(sources, one.to(device, dtype), options.block, most), here, processes.total)
            for one in (vectors.safe, vectors.harmful)
        ]
        return weighting.weigh(
            references[0], references[1], count, epsilon, push=options.push, floor=options.sample_size, dtype=dtype,
            device=device, after=lambda step: given.progress.advance(1, f"still moving {step.residual:.1e}"),
        )  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise MachineError(
            "sot.block", seen=f"out of memory with {count} examples", expected="room for their costs",
            remedy="lower sot.block, or give --device cpu",
        ) from error  # fmt: skip


def _facts(found: weighting.Weighing, epsilon: float, options: SotSettings) -> dict[str, object]:
    last = found.steps[-1]
    return {
        "ess": found.sample_size, "tau": last.tau, "epsilon": epsilon, "push": options.push,
        "iterations": len(found.steps), "residual": last.residual, "converged": found.converged,
        "marginal_errors": {"safe": found.safe_error, "harmful": found.harmful_error},
        "safe_distance": last.safe, "harmful_distance": last.harmful,
        "steps": [step._asdict() for step in found.steps],
    }  # fmt: skip


def _epsilon(vectors: Sets[Tensor], options: SotSettings) -> float:
    """In the units of the costs."""
    if options.epsilon_is == "absolute":
        return options.epsilon
    median = _median_cost(vectors)
    if median <= _NO_COST:
        raise NoEffectError(
            "sot.epsilon", seen=f"a median cost of {max(median, 0):.1e}: most vectors coincide",
            expected="vectors that differ", remedy="take another embed.layer or embed.pooling, or epsilon_is: absolute",
        )  # fmt: skip
    return options.epsilon * median


def _median_cost(vectors: Sets[Tensor]) -> float:
    """The median of the costs to both references, of some examples by chance where there are many."""
    import torch

    some = vectors.data
    if len(some) > _SAMPLE:
        some = some[torch.randperm(len(some), generator=torch.Generator().manual_seed(0))[:_SAMPLE].to(some.device)]
    return float(torch.cat([(1 - some @ one.mT).flatten() for one in (vectors.safe, vectors.harmful)]).median())


def _costs(sources: Tensor, targets: Tensor, block: int, most: int) -> Any:
    from alignkeep.curate.transport import CosineCosts, DenseCosts

    if most * len(targets) * sources.element_size() <= _DENSE_BYTES:
        return DenseCosts(1 - sources @ targets.mT, block)
    return CosineCosts(sources, targets, block)


def _check_apart(found: weighting.Weighing, push: float) -> None:
    """Raises NoEffectError where no example is nearer to one reference than to the other, but for rounding."""
    safe, harmful = found.safe_potential.double(), found.harmful_potential.double()
    scale = float(safe.std() + push * harmful.std())
    if float((safe - push * harmful).std()) <= _ALIKE * scale:
        raise NoEffectError(
            "curate", seen="safe and harmful references that lie alike to every example",
            expected="references that tell examples apart", remedy="check --safe and --harmful",
        )  # fmt: skip


def _check_ended(found: weighting.Weighing) -> None:
    """Raises NoEffectError for masses that are all equal, which is no choice, and MachineError for some that still
    move or rest on transports that are not solved: all would keep examples by something else than where they lie."""
    last = found.steps[-1]
    if float(found.mass.max()) == float(found.mass.min()):
        raise NoEffectError(
            "curate", seen="equal masses of all examples", expected="some that are larger",
            remedy="lower sot.sample_size, or take references that differ more",
        )  # fmt: skip
    off = max(found.safe_error, found.harmful_error)
    for seen, is_so in (
        (f"masses that still move by {last.residual:.2g} of the whole after {len(found.steps)} steps",
         last.residual > _MOVING),
        (f"a transport that is off by {off:.2g} of the references' marginals", not off <= _MOVING),
    ):  # fmt: skip
        if is_so:
            raise MachineError(
                "curate", seen=seen, expected=f"at most {_MOVING:g}",
                remedy="raise sot.epsilon, or take sot.precision: float64",
            )  # fmt: skip
