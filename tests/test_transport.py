"""Entropic optimal transport: by hand, laws, limits, twins, refusals."""

from __future__ import annotations

import itertools
import math
from functools import partial
from itertools import pairwise
from typing import Any

import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp
from torch import Tensor
from torch.testing import assert_close

from alignkeep.curate.transport import CosineCosts, Costs, DenseCosts, Transport, transport
from together import Total, together

exact = partial(torch.tensor, dtype=torch.float64)
tight = partial(transport, tolerance=1e-10)
few = settings(max_examples=30, deadline=None)
EPSILONS = (1e-4, 0.02, 0.3, 1e2)


def problem(n: int, m: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Costs in [0, 2], and weights of which those of the sources differ."""
    draw = torch.Generator().manual_seed(seed)
    costs = 2 * torch.rand(n, m, generator=draw, dtype=torch.float64)
    source = torch.rand(n, generator=draw, dtype=torch.float64) + 0.1
    return costs, source / source.sum(), torch.full((m,), 1 / m, dtype=torch.float64)


def vectors(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    found = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(found, dim=1).to(dtype)


def plan_of(costs: Tensor, source: Tensor, target: Tensor, epsilon: float, found: Any) -> Tensor:
    inside = (found.source_potential[:, None] + found.target_potential - costs) / epsilon
    return source[:, None] * target * inside.exp()


# By hand


def test_between_two_points_the_value_is_their_cost() -> None:
    for epsilon in EPSILONS:
        found = transport(DenseCosts(exact([[0.7]])), exact([1.0]), exact([1.0]), epsilon)
        assert found.value == pytest.approx(0.7, abs=1e-12)
        assert found.converged
        assert float(found.source_potential) == pytest.approx(0, abs=1e-12)  # centred


def test_one_source_and_one_target_by_hand() -> None:
    """To one target everything goes: the value is the mean cost, .25 x 1 + .75 x 2, and f the cost above it. From one
    source the plan is the target itself, and its entropy relative to it 0."""
    found = transport(DenseCosts(exact([[1.0], [2.0]])), exact([0.25, 0.75]), exact([1.0]), 0.1)
    assert found.value == pytest.approx(1.75, abs=1e-12)
    assert_close(found.source_potential, exact([-0.75, 0.25]))
    found = transport(DenseCosts(exact([[1.0, 2.0]])), exact([1.0]), exact([0.5, 0.5]), 0.1)
    assert found.value == pytest.approx(1.5, abs=1e-9)


def test_two_by_two_by_hand() -> None:
    """Costs 0 on the diagonal, 1 beside it, uniform weights: by symmetry T = (p, 1 - p; 1 - p, p) / 2 with p = 1 / (1 +
    exp(-1 / eps)), and the value 1 - p + eps (p ln 2p + (1 - p) ln 2(1 - p))."""
    costs, half = exact([[0.0, 1.0], [1.0, 0.0]]), exact([0.5, 0.5])
    for epsilon in (0.1, 0.5, 3.0):
        p = 1 / (1 + math.exp(-1 / epsilon))
        value = 1 - p + epsilon * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
        found = tight(DenseCosts(costs), half, half, epsilon)
        assert found.value == pytest.approx(value, abs=1e-12)
        assert_close(plan_of(costs, half, half, epsilon, found), exact([[p, 1 - p], [1 - p, p]]) / 2)


# Laws

drawn = st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(0, 999))


@few
@given(drawn, st.sampled_from(EPSILONS))
def test_marginals_are_the_weights_and_the_gradient_is_centred(sizes: tuple[int, int, int], epsilon: float) -> None:
    costs, source, target = problem(*sizes)
    found = transport(DenseCosts(costs), source, target, epsilon, tolerance=1e-8)
    plan = plan_of(costs, source, target, epsilon, found)
    assert found.converged
    assert_close(plan.sum(1), source, rtol=1e-6, atol=1e-12)
    assert float((plan.sum(0) - target).abs().sum()) <= 1.1e-8
    assert float(source @ found.source_potential) == pytest.approx(0, abs=1e-10)
    assert found.value >= -1e-9


@few
@given(drawn, st.floats(-5, 5), st.floats(0.1, 10))
def test_a_constant_moves_the_value_and_a_factor_scales_it(
    sizes: tuple[int, int, int], constant: float, factor: float
) -> None:
    costs, source, target = problem(*sizes)
    found = tight(DenseCosts(costs), source, target, 0.2)
    moved = tight(DenseCosts(costs + constant), source, target, 0.2)
    scaled = tight(DenseCosts(factor * costs), source, target, 0.2 * factor)
    assert moved.value == pytest.approx(found.value + constant, abs=1e-8)
    assert scaled.value == pytest.approx(factor * found.value, rel=1e-8, abs=1e-9)
    assert_close(moved.source_potential, found.source_potential, rtol=1e-6, atol=1e-7)
    assert_close(scaled.source_potential, factor * found.source_potential, rtol=1e-6, atol=1e-7)


@few
@given(drawn)
def test_a_permutation_of_the_sources_permutes_the_gradient(sizes: tuple[int, int, int]) -> None:
    costs, source, target = problem(*sizes)
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(1))
    found, other = (
        tight(DenseCosts(one), two, target, 0.1) for one, two in ((costs, source), (costs[order], source[order]))
    )
    assert_close(other.source_potential, found.source_potential[order], rtol=1e-6, atol=1e-8)


def test_a_source_without_weight_has_a_gradient_and_changes_nothing() -> None:
    costs, source, target = problem(6, 4)
    more = tight(DenseCosts(torch.cat([costs, costs[:1] + 1])), torch.cat([source, exact([0.0])]), target, 0.1)
    found = tight(DenseCosts(costs), source, target, 0.1)
    assert more.value == pytest.approx(found.value, abs=1e-10)
    assert_close(more.source_potential[:-1], found.source_potential, rtol=1e-6, atol=1e-8)
    assert float(more.source_potential[-1]) == pytest.approx(float(found.source_potential[0]) + 1, abs=1e-8)


# Limits


def test_at_a_small_epsilon_it_is_the_best_assignment() -> None:
    costs, _, _ = problem(20, 20, seed=3)
    each = torch.full((20,), 0.05, dtype=torch.float64)
    rows, columns = linear_sum_assignment(costs.numpy())
    found = transport(DenseCosts(costs), each, each, 1e-4)
    assert found.converged
    assert found.value == pytest.approx(float(costs[rows, columns].mean()), abs=1e-3)
    plan = plan_of(costs, each, each, 1e-4, found)
    assert plan.argmax(1).tolist() == columns.tolist()


def test_at_a_large_epsilon_everything_goes_everywhere() -> None:
    costs, source, target = problem(7, 5)
    found = transport(DenseCosts(costs), source, target, 1e4)
    assert found.value == pytest.approx(float(source @ costs @ target), abs=1e-3)


def test_equal_sets_cost_almost_nothing_and_equal_points_all_the_same() -> None:
    points, each = vectors(12, 1), torch.full((12,), 1 / 12, dtype=torch.float64)
    assert transport(CosineCosts(points, points), each, each, 1e-4).value == pytest.approx(0, abs=1e-3)
    same = points[:1].expand(12, -1)
    found = transport(CosineCosts(same, same[:3]), each, torch.full((3,), 1 / 3, dtype=torch.float64), 0.1)
    assert found.converged
    assert not found.source_potential.abs().max() > 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sources", [2, 6, 60])
def test_small_problems_are_solved_at_every_small_epsilon(sources: int, dtype: torch.dtype) -> None:
    """Where a step that halves the error lowers the dual, the next one may go back for ever; where hardly any mass is
    on the move the curvature vanishes, and steps with it."""
    for seed, targets, epsilon in itertools.product((*range(10), 11, 51), (2, 4), (1e-4, 1e-3, 0.02)):
        costs, source, target = problem(sources, targets, seed)
        found = transport(DenseCosts(costs.to(dtype)), source.to(dtype), target.to(dtype), epsilon)
        assert found.converged, (seed, targets, epsilon, found.error)


@pytest.mark.parametrize("seed", [700, 758])
def test_where_no_mass_is_on_the_move_steps_are_still_taken(seed: int) -> None:
    """All shares are 0 or 1, to the bit, and so is the curvature."""
    costs, source, target = problem(2, 2, seed)
    assert transport(DenseCosts(costs), source, target, 1e-4, tolerance=1e-8).converged


def test_weights_count_as_parts_of_their_sum() -> None:
    """As they are when a dtype has rounded them."""
    costs, source, target = problem(30, 7)
    found, expected = (transport(DenseCosts(costs), c * source, c * target, 0.1) for c in (1.01, 1.0))
    assert found.value == pytest.approx(expected.value, abs=1e-12)
    assert_close(found.source_potential, expected.source_potential, rtol=0, atol=1e-12)
    assert_close(found.target_potential, expected.target_potential, rtol=0, atol=1e-12)
    assert found.error == pytest.approx(expected.error, abs=1e-12)


def test_far_groups_of_other_sizes_are_still_solved() -> None:
    """Weight has to cross between groups that are a thousand epsilons apart: sweeps alone need millions."""
    costs = exact([[0.0, 1.0], [1e-4, 1.0], [1.0, 0.0]])
    found = transport(DenseCosts(costs), exact([0.3, 0.4, 0.3]), exact([0.5, 0.5]), 1e-3, tolerance=1e-9)
    assert found.converged
    assert found.passes < 200
    assert found.value == pytest.approx(0.2 * 1.0 + 0.2 * 1e-4, abs=5e-3)


# Independent twins


def swept(costs: Tensor, source: Tensor, target: Tensor, epsilon: float, sweeps: int = 1500) -> tuple[float, Any]:
    """Log-domain sweeps in NumPy."""
    c, a, b = (one.numpy() for one in (costs, source, target))
    f, g = 0 * a, 0 * b
    logs: Any = logsumexp
    for _ in range(sweeps):
        f = -epsilon * logs((g - c) / epsilon, b=b, axis=1)
        g = -epsilon * logs((f[:, None] - c) / epsilon, b=a[:, None], axis=0)
    return float(f @ a + g @ b), f - f @ a


@pytest.mark.parametrize("epsilon", [0.02, 0.3, 5.0])
def test_it_is_what_log_domain_sweeps_end_in(epsilon: float) -> None:
    costs, source, target = problem(15, 6)
    found = tight(DenseCosts(costs), source, target, epsilon)
    value, gradient = swept(costs, source, target, epsilon)
    assert found.value == pytest.approx(value, abs=1e-9)
    assert_close(found.source_potential, torch.from_numpy(gradient), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_value_and_gradient_are_pots_of_the_kl_regularised_problem(epsilon: float) -> None:
    costs, source, target = problem(15, 6)
    weights = source.clone().requires_grad_()
    theirs = ot.solve(costs, weights, target, reg=epsilon, reg_type="KL", grad="autodiff", max_iter=20000, tol=1e-12)
    theirs.value.backward()
    gradient = weights.grad
    assert gradient is not None
    found = tight(DenseCosts(costs), source, target, epsilon)
    assert found.value == pytest.approx(theirs.value.item(), abs=1e-8)
    assert_close(found.source_potential, gradient - source @ gradient, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_finite_differences() -> None:
    costs, source, target = problem(8, 5)
    gradient = tight(DenseCosts(costs), source, target, 0.1).source_potential
    for one, other in pairwise(range(8)):
        moved = torch.zeros(8, dtype=torch.float64)
        moved[one], moved[other] = 1e-5, -1e-5
        ends = [tight(DenseCosts(costs), source + sign * moved, target, 0.1).value for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / 2e-5
        assert slope == pytest.approx(float(gradient[one] - gradient[other]), rel=1e-4, abs=1e-6)


# The same answer, however it is computed


@pytest.mark.parametrize("rows", [1, 7, 40, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_size_of_block_changes_the_answer(rows: int, dtype: torch.dtype) -> None:
    left, right = vectors(40, 1, dtype), vectors(9, 2, dtype)
    source, target = torch.full((40,), 1 / 40, dtype=dtype), torch.full((9,), 1 / 9, dtype=dtype)
    whole = transport(DenseCosts(1 - left @ right.mT), source, target, 0.05)
    for costs in (CosineCosts(left, right, rows), DenseCosts(1 - left @ right.mT, rows)):
        found = transport(costs, source, target, 0.05)
        assert found.value == pytest.approx(whole.value, abs=1e-5)
        assert_close(found.source_potential, whole.source_potential, rtol=0, atol=1e-5)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_float32_is_float64_up_to_its_rounding(epsilon: float) -> None:
    costs, source, target = problem(60, 10)
    found = transport(DenseCosts(costs.float()), source.float(), target.float(), epsilon)
    wide = transport(DenseCosts(costs), source, target, epsilon)
    assert found.converged
    assert found.source_potential.dtype == torch.float32
    assert found.value == pytest.approx(wide.value, rel=1e-5, abs=1e-5)
    assert_close(found.source_potential.double(), wide.source_potential, rtol=1e-3, atol=2e-3 * max(epsilon, 0.01))


@pytest.mark.parametrize("epsilon", [1e2, 1e4, 1e6])
def test_at_a_large_epsilon_float32_loses_neither_value_nor_potentials(epsilon: float) -> None:
    """At 1e6 epsilon times what weights of float32 are off 1 by, or times the rounding of a logarithm, is 0.1."""
    costs, source, target = problem(60, 13)
    found = transport(DenseCosts(costs.float()), source.float(), target.float(), epsilon)
    wide = transport(DenseCosts(costs), source, target, epsilon)
    assert found.value == pytest.approx(wide.value, abs=2e-5)
    assert_close(found.source_potential.double(), wide.source_potential, rtol=0, atol=2e-5)


def test_from_a_near_solution_it_takes_fewer_passes_to_the_same_answer() -> None:
    costs, source, target = problem(80, 12)
    cold = transport(DenseCosts(costs), source, target, 0.02, tolerance=1e-8)
    other = source * torch.linspace(0.8, 1.2, 80, dtype=torch.float64)
    other = other / other.sum()
    afresh = transport(DenseCosts(costs), other, target, 0.02, tolerance=1e-8)
    warm = transport(DenseCosts(costs), other, target, 0.02, tolerance=1e-8, start=cold.target_potential)
    assert warm.passes < afresh.passes
    assert warm.value == pytest.approx(afresh.value, abs=1e-8)
    assert_close(warm.source_potential, afresh.source_potential, rtol=1e-5, atol=1e-7)


def test_two_processes_are_one() -> None:
    costs, source, target = problem(31, 7)
    whole = transport(DenseCosts(costs), source, target, 0.05)

    def half(rank: int, total: Total) -> Transport:
        mine = slice(0, 11) if rank == 0 else slice(11, 31)
        return transport(DenseCosts(costs[mine]), source[mine], target, 0.05, total=total)

    parts = together(2, half)
    assert [part.passes for part in parts] == [whole.passes] * 2
    assert_close(torch.cat([part.source_potential for part in parts]), whole.source_potential)
    assert parts[0].value == parts[1].value == pytest.approx(whole.value, abs=1e-12)


# What it says of itself, and refuses


def test_one_that_ran_out_of_passes_says_so() -> None:
    costs, source, target = problem(30, 8)
    found = transport(DenseCosts(costs), source, target, 0.01, most=5, tolerance=1e-9)
    assert not found.converged
    assert found.error > 1e-9


class Unfinished:
    shape = (1, 2)

    def blocks(self) -> Any:
        yield slice(0, 1), torch.tensor([[1.0, 2.0]])


def test_costs_are_whatever_gives_blocks() -> None:
    costs: Costs = Unfinished()
    assert transport(costs, torch.ones(1), torch.full((2,), 0.5), 0.1).value == pytest.approx(1.5, abs=1e-4)


@pytest.mark.parametrize(
    ("source", "target", "epsilon"),
    [
        ([0.5, 0.5], [0.5, 0.5], 0.0), ([0.5, 0.5], [0.5, 0.5], math.nan), ([0.5, 0.5], [0.5, 0.5], math.inf),
        ([1.5, -0.5], [0.5, 0.5], 0.1), ([0.5, 0.5], [1.0, 0.0], 0.1),
    ],
)  # fmt: skip
def test_what_is_no_problem_is_refused(source: list[float], target: list[float], epsilon: float) -> None:
    with pytest.raises(ValueError, match="need epsilon > 0"):
        transport(DenseCosts(torch.zeros(2, 2)), torch.tensor(source), torch.tensor(target), epsilon)
