"""Pull alone, with the masses free: by hand, laws, limits, a twin that searches the masses, two processes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from alignkeep.curate.free_masses import _Free, level_of, pull
from alignkeep.curate.transport import CosineCosts, DenseCosts, Transport, transport
from together import Total, together

few = settings(max_examples=25, deadline=None)


def drawn(seed: int, n: int, m: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(n, m, generator=draw, dtype=torch.float64), torch.randn(n, generator=draw, dtype=torch.float64)


def even(count: int) -> Tensor:
    return torch.full((count,), 1 / count, dtype=torch.float64)


def pulled(costs: Tensor, price: Tensor, epsilon: float, tau: float, **options: Any) -> tuple[Transport, Tensor]:
    """The transport, and its masses."""
    n, m = costs.shape
    first = transport(DenseCosts(costs), even(n), even(m), epsilon)
    found = pull(
        DenseCosts(costs), even(m), epsilon, price, tau, start=first.target_potential,
        level=level_of(first.source_potential, price, tau), count=n, **options,
    )  # fmt: skip
    return found, (-(found.source_potential + price) / tau).softmax(0)


def objective(costs: Tensor, mass: Tensor, price: Tensor, epsilon: float, tau: float) -> float:
    value = transport(DenseCosts(costs), mass, even(costs.shape[1]), epsilon, tolerance=1e-10).value
    return value + float(mass @ price) + tau * float(torch.xlogy(mass, mass * len(mass)).sum())


def test_to_a_single_reference_by_hand() -> None:
    """f is the cost up to a constant: w ~ exp(-(C + price) / tau), here exp(0) to exp(-(1 - 0.5) / 0.5)."""
    costs, price = torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.tensor([0.0, -0.5], dtype=torch.float64)
    found, mass = pulled(costs, price, 0.1, 0.5)
    assert found.converged
    assert_close(mass, torch.tensor([math.e, 1.0], dtype=torch.float64) / (1 + math.e))
    assert found.value == pytest.approx(float(mass[1]))


def test_two_groups_and_two_references_by_hand() -> None:
    """Each example lies on one reference and far from the other, at a cost of 100 eps: whatever the prices say, the
    masses are a half each but for the leak e^-100. Along a transport's slope this has no solution."""
    costs = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    price = torch.tensor([0.0, 0.0, 0.3], dtype=torch.float64)
    found, mass = pulled(costs, price, 0.01, 0.2)
    assert found.converged
    assert_close(mass, torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64), rtol=0, atol=1e-4)


@few
@given(st.integers(0, 999), st.floats(0.02, 1), st.floats(0.02, 3))
def test_no_other_masses_do_better(seed: int, epsilon: float, tau: float) -> None:
    costs, price = drawn(seed, 9, 4)
    found, mass = pulled(costs, price, epsilon, tau)
    assert found.converged
    best = objective(costs, mass, price, epsilon, tau)
    draw = torch.Generator().manual_seed(seed)
    for size in (1e-3, 1e-2, 0.3, 2.0):
        other = (mass.log() + size * torch.randn(9, generator=draw, dtype=torch.float64)).softmax(0)
        assert objective(costs, other, price, epsilon, tau) >= best - 1e-6


@few
@given(st.integers(0, 999), st.floats(0.05, 1), st.floats(0.05, 3))
def test_its_potentials_are_those_of_the_transport_between_its_masses(seed: int, epsilon: float, tau: float) -> None:
    costs, price = drawn(seed, 9, 4)
    found, mass = pulled(costs, price, epsilon, tau)
    fixed = transport(DenseCosts(costs), mass, even(4), epsilon, tolerance=1e-9)
    assert found.value == pytest.approx(fixed.value, abs=1e-5)
    assert_close(found.source_potential, fixed.source_potential, rtol=0, atol=2e-4)
    assert float(mass @ found.source_potential) == pytest.approx(0, abs=1e-9)


@few
@given(st.integers(0, 999), st.sampled_from([(0.05, 1.0), (1.0, 0.05), (1.0, 1.0), (0.3, 0.1)]))
@example(103, (1.0, 0.05))
@example(72, (0.3, 0.1))
def test_a_sweep_gains_what_its_error_is_worth(seed: int, strengths: tuple[float, float]) -> None:
    """At least min(eps, tau) KL(u || M): the partition function is concave in exp(g / min(eps, tau))."""
    epsilon, tau = strengths
    costs, price = drawn(seed, 20, 5)
    draw = torch.Generator().manual_seed(seed)
    target = torch.rand(5, generator=draw, dtype=torch.float64) + 0.1
    target, g = target / target.sum(), 0.2 * torch.randn(5, generator=draw, dtype=torch.float64)
    f = -epsilon * ((g - costs) / epsilon + target.log()).logsumexp(1)
    problem = _Free(
        DenseCosts(costs), price, target, 1e-9, lambda vector: vector, price=price, tau=tau,
        level=level_of(f, price, tau), count=20,
    )  # fmt: skip
    look = problem.look(g, epsilon, second=False)
    after = problem.look(problem.swept(look, epsilon), epsilon, second=False)
    worth = min(epsilon, tau) * float((target * (target / look.marginal).log()).sum())
    assert after.value - look.value >= worth * (1 - 1e-9) - 1e-12


@pytest.mark.parametrize(("epsilon", "tau"), [(0.1, 0.5), (0.5, 0.1)])
def test_value_slope_and_curvature_are_those_of_the_dual_by_autograd(epsilon: float, tau: float) -> None:
    costs, price = drawn(7, 8, 4)
    target = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    g = 0.1 * torch.randn(4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def dual(g: Tensor) -> Tensor:
        f = -epsilon * ((g - costs) / epsilon + target.log()).logsumexp(1)
        return g @ target - tau * ((-(f + price) / tau).exp().mean()).log()

    free = _Free(
        DenseCosts(costs), price, target, 1e-9, lambda vector: vector, price=price, tau=tau, level=0.3, count=8
    )
    look = free.look(g, epsilon, second=True)
    assert look.value == pytest.approx(float(dual(g)), abs=1e-12)
    assert_close(target - look.marginal, torch.autograd.functional.jacobian(dual, g), rtol=1e-9, atol=1e-12)
    assert_close(free.curvature(look, epsilon), -torch.autograd.functional.hessian(dual, g), rtol=1e-9, atol=1e-12)


def test_a_large_tau_leaves_the_masses_equal_and_a_constant_price_changes_nothing() -> None:
    costs, price = drawn(3, 12, 5)
    _, mass = pulled(costs, price, 0.1, 1e6)
    assert_close(mass, even(12), rtol=1e-4, atol=0)
    assert_close(pulled(costs, price + 7, 0.1, 0.5)[1], pulled(costs, price, 0.1, 0.5)[1], rtol=1e-4, atol=0)


@pytest.mark.parametrize("tau", [1e-3, 0.05, 1.0, 50.0])
@pytest.mark.parametrize("epsilon", [1e-3, 0.05, 1.0, 100.0])
def test_it_converges_whatever_the_scales(epsilon: float, tau: float) -> None:
    costs, price = drawn(5, 40, 9)
    found, _ = pulled(costs, price, epsilon, tau)
    assert found.converged
    assert found.passes < 300


def test_float32_and_costs_made_in_every_pass_give_the_same() -> None:
    draw = torch.Generator().manual_seed(0)
    data, safe = (
        torch.nn.functional.normalize(torch.randn(n, 8, generator=draw, dtype=torch.float64), dim=1) for n in (50, 7)
    )
    price = torch.randn(50, generator=draw, dtype=torch.float64)
    expected, _ = pulled(1 - data @ safe.mT, price, 0.05, 0.3)
    for kind in (torch.float32, torch.float64):
        costs = CosineCosts(data.to(kind), safe.to(kind), rows=16)
        first = transport(costs, even(50).to(kind), even(7).to(kind), 0.05)
        level = level_of(first.source_potential, price, 0.3)
        found = pull(
            costs, even(7).to(kind), 0.05, price, 0.3, start=first.target_potential, level=level, count=50
        )  # fmt: skip
        assert found.converged
        assert_close(found.source_potential.double(), expected.source_potential, rtol=0, atol=1e-4)


def test_two_processes_are_one() -> None:
    costs, price = drawn(1, 31, 6)
    expected, _ = pulled(costs, price, 0.05, 0.3)
    first = transport(DenseCosts(costs), even(31), even(6), 0.05)
    level = level_of(first.source_potential, price, 0.3)

    def part(rank: int, total: Total) -> Transport:
        here = slice(0, 11) if rank == 0 else slice(11, 31)
        return pull(
            DenseCosts(costs[here]), even(6), 0.05, price[here], 0.3, start=first.target_potential, level=level,
            count=31, total=total,
        )  # fmt: skip

    parts = together(2, part)
    both = torch.cat([one.source_potential for one in parts])
    assert_close(both, expected.source_potential, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("epsilon", "tau"), [(0.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (1.0, math.inf)])
def test_scales_that_make_no_sense_are_refused(epsilon: float, tau: float) -> None:
    costs, price = drawn(0, 4, 2)
    with pytest.raises(ValueError, match="need epsilon > 0 and tau > 0"):
        pull(DenseCosts(costs), even(2), epsilon, price, tau, start=torch.zeros(2), level=0.0, count=4)
