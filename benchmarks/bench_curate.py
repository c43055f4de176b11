"""One weight step of push and pull beside POT's differentiated Sinkhorn, in one run; then memory and growth with n.

    python benchmarks/bench_curate.py [--examples 10000] [--references 500] [--epsilon 0.05] [--repeats 3]
    python benchmarks/bench_curate.py --memory [--examples 10000,30000,100000] [--references 2000] [--width 768]

A step is the value and the gradient by the masses of OT_eps(P_w, P_s) - OT_eps(P_w, P_h), in float32, both transports
to a marginal error of 1e-5 (sum of absolute deviations). POT's is `ot.solve(reg_type="KL", grad="autodiff")` with the
fewest iterations that reach that error, counted beforehand; it has no way to begin from potentials, so its cold step
is held against ours from nothing and from the potentials of nearly the same masses. Then a whole weighing, to the end.
Targets: >= 10x cold, >= 50x warm; 100,000 x 2,000 at width 768 within 3 GB, cost linear in n.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from statistics import median

import torch

from alignkeep.curate.transport import CosineCosts, DenseCosts, Transport, transport
from alignkeep.curate.weighting import alone, weigh

TOLERANCE = 1e-5
GROUPS = 12


def clouds(counts: list[int], width: int, seed: int = 0) -> list[torch.Tensor]:
    """Vectors of length 1 around the same centres, in other shares in every set."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(GROUPS, width, generator=draw)
    found: list[torch.Tensor] = []
    for count in counts:
        shares = torch.rand(GROUPS, generator=draw) + 0.1
        at = torch.multinomial(shares, count, replacement=True, generator=draw)
        noise = torch.randn(count, width, generator=draw)
        found.append(torch.nn.functional.normalize(centres[at] + 0.5 * noise, dim=1))
    return found


def masses(count: int, scale: float) -> torch.Tensor:
    return (scale * torch.randn(count, generator=torch.Generator().manual_seed(7))).softmax(0)


def uniform(count: int) -> torch.Tensor:
    return torch.full((count,), 1 / count)


def iterations(costs: torch.Tensor, mass: torch.Tensor, epsilon: float) -> int:
    """Sweeps until the target marginal is right, as POT counts them."""
    kernel, target, g = -costs / epsilon, uniform(costs.shape[1]), torch.zeros(costs.shape[1])
    for count in range(1, 5001):
        f = mass.log() - torch.logsumexp(kernel + g, 1)
        sums = torch.logsumexp(kernel + f[:, None], 0)
        if count % 10 == 0 and float(((g + sums).exp() - target).abs().sum()) <= TOLERANCE:
            return count
        g = target.log() - sums
    raise SystemExit("the sweeps do not reach the error")


def pots(costs: list[torch.Tensor], mass: torch.Tensor, epsilon: float, counts: list[int]):
    """Seconds, gradient and marginal error."""
    import ot

    own = mass.clone().requires_grad_(True)
    began = time.perf_counter()
    found = [
        ot.solve(one, own, uniform(one.shape[1]), reg=epsilon, reg_type="KL", grad="autodiff", max_iter=count, tol=0)
        for one, count in zip(costs, counts, strict=True)
    ]
    (found[0].value - found[1].value).backward()
    seconds = time.perf_counter() - began
    errors = [float((one.plan.sum(0) - uniform(one.plan.shape[1])).abs().sum()) for one in found]
    assert own.grad is not None
    return seconds, own.grad - (mass * own.grad).sum(), max(errors)


def ours(costs: list[DenseCosts], mass: torch.Tensor, epsilon: float, before: list[Transport] | None = None):
    """Seconds, gradient, marginal error and the solutions."""
    began = time.perf_counter()
    found = [
        transport(
            one, mass, uniform(one.shape[1]), epsilon, tolerance=TOLERANCE,
            start=None if before is None else before[at].target_potential,
        )
        for at, one in enumerate(costs)
    ]  # fmt: skip
    gradient = found[0].source_potential - found[1].source_potential
    return time.perf_counter() - began, gradient, max(one.error for one in found), found


def compare(count: int, references: int, share: float, repeats: int) -> None:
    import warnings

    warnings.simplefilter("ignore")  # POT's, of iterations that ran out: they are counted
    data, safe, harmful = clouds([count, references, references], 64)
    costs = [1 - data @ one.mT for one in (safe, harmful)]
    epsilon = share * float(torch.cat([one.flatten() for one in costs]).median())
    mass, near = masses(count, 0.5), masses(count, 0.45)  # the next step of the weights
    counts = [iterations(one, near, epsilon) for one in costs]
    dense = [DenseCosts(one) for one in costs]
    rows: list[tuple[float, float, float]] = []
    for _ in range(repeats):
        cold, _, _, found = ours([DenseCosts(one) for one in costs], near, epsilon)
        _, _, _, before = ours(dense, mass, epsilon)
        warm, gradient, error, _ = ours(dense, near, epsilon, before)
        theirs, expected, their_error = pots(costs, near, epsilon, counts)
        rows.append((theirs, cold, warm))
    apart = float((gradient - expected).abs().max() / expected.abs().max())
    theirs, cold, warm = (median(column) for column in zip(*rows, strict=True))
    print(
        f"\n{count} x {references} x 2, epsilon {share:g} of the median: POT {' and '.join(map(str, counts))} "
        f"iterations, error {their_error:.1e}; ours {' and '.join(str(one.passes) for one in found)} passes, "
        f"error {error:.1e}"
    )
    print(f"POT {theirs:.2f} s; cold {cold:.2f} s, warm {warm:.3f} s (medians of {repeats})")
    ratios = [(a / b, a / c) for a, b, c in rows]
    for name, at in (("cold", 0), ("warm", 1)):
        values = sorted(ratio[at] for ratio in ratios)
        print(f"{name}: {median(values):.1f} times as fast [{values[0]:.1f}, {values[-1]:.1f}]")
    print(f"gradients apart by {apart:.1e} of the largest entry", flush=True)


def whole(count: int, references: int, share: float) -> None:
    """All steps of the weights, on the same clouds."""
    data, safe, harmful = clouds([count, references, references], 64)
    costs = [1 - data @ one.mT for one in (safe, harmful)]
    epsilon = share * float(torch.cat([one.flatten() for one in costs]).median())
    began = time.perf_counter()
    found = weigh(alone(DenseCosts(costs[0])), alone(DenseCosts(costs[1])), count, epsilon)
    print(
        f"all of it: {time.perf_counter() - began:.1f} s, {len(found.steps)} steps, "
        f"{sum(step.passes for step in found.steps)} passes, converged {found.converged}, "
        f"effective sample size {found.sample_size / count:.3f}",
        flush=True,
    )


def grow(count: int, references: int, width: int) -> None:
    """In a process of its own: one cold transport with costs made in every pass."""
    data, safe = clouds([count, references], width)
    costs = CosineCosts(data, safe)
    epsilon = 0.05 * float((1 - data[:2000] @ safe.mT).median())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    found = transport(costs, masses(count, 0.5), uniform(references), epsilon)
    facts = {
        "examples": count, "seconds": time.perf_counter() - began, "passes": found.passes, "error": found.error,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "before": before / 2**20,
    }  # fmt: skip
    print(json.dumps(facts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", default="")
    parser.add_argument("--references", type=int)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--epsilon", default="0.05")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        grow(int(chosen.examples), chosen.references, chosen.width)
    elif chosen.memory:
        for count in (chosen.examples or "10000,30000,100000").split(","):
            own = ["--one", "--examples", count, "--references", str(chosen.references or 2000)]
            done = subprocess.run(
                [sys.executable, __file__, *own, "--width", str(chosen.width)],
                capture_output=True,
                text=True,
                check=True,
            )
            facts = json.loads(done.stdout)
            print(
                f"{facts['examples']} examples: {facts['seconds']:.1f} s, {facts['passes']} passes, "
                f"{1e6 * facts['seconds'] / facts['passes'] / facts['examples']:.1f} us a pass and example, error "
                f"{facts['error']:.1e}, peak {facts['peak']:.2f} GiB ({facts['before']:.2f} before it)",
                flush=True,
            )
    else:
        for share in chosen.epsilon.split(","):
            compare(int(chosen.examples or 10000), chosen.references or 500, float(share), chosen.repeats)
            whole(int(chosen.examples or 10000), chosen.references or 500, float(share))


if __name__ == "__main__":
    main()
