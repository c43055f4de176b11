"""Push and pull: by hand, laws, limits, twins, refusals."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from alignkeep.curate.free_masses import level_of, pull
from alignkeep.curate.temperature import BAND, LEAST, effective_sample_size
from alignkeep.curate.transport import CosineCosts, DenseCosts, Transport, transport
from alignkeep.curate.weighting import (
    Reference,
    Weighing,
    alone,
    shares,
    top_k,
    training_weights,
    weigh,
)
from together import Total, together

few = settings(max_examples=25, deadline=None)
WIDE: dict[str, Any] = {"dtype": torch.float64}


def around(centre: list[float], count: int, seed: int, spread: float = 0.2) -> Tensor:
    noise = torch.randn(count, len(centre), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(torch.tensor(centre, dtype=torch.float64) + spread * noise, dim=1)


TASK, HARM = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]
CLEAN, POISON = around(TASK, 90, 1), around(HARM, 10, 2)
DATA, SAFE, HARMFUL = torch.cat([CLEAN, POISON]), around(TASK, 15, 3), around(HARM, 25, 4)


def weighed(data: Tensor = DATA, safe: Tensor = SAFE, harmful: Tensor = HARMFUL, **options: Any) -> Weighing:
    near, far = (alone(CosineCosts(data, one.to(data))) for one in (safe, harmful))
    return weigh(near, far, len(data), options.pop("epsilon", 0.05), **{**WIDE, **options})


# By hand


def test_one_safe_and_one_harmful_point_by_hand() -> None:
    """To a single target the plan is the masses themselves: f is the cost, so phi = C_safe - push C_harmful + constant.
    Costs (0, 1) and (1, 0), push 1: phi = (-1, 1). Masses (p, 1 - p) of sample size 1.6 = 1 / (p^2 + (1 - p)^2), so p =
    3/4 - a bit: 2 p^2 - 2 p + 1 = .625, p = (1 + sqrt(.25)) / 2 = .75; ln(p / (1 - p)) = 2 / tau, tau = 2 / ln 3."""
    found = weigh(
        alone(DenseCosts(torch.tensor([[0.0], [1.0]], dtype=torch.float64))),
        alone(DenseCosts(torch.tensor([[1.0], [0.0]], dtype=torch.float64))),
        2, 0.1, most=60, **WIDE,
    )  # fmt: skip
    assert found.converged
    assert_close(found.mass, torch.tensor([0.75, 0.25], dtype=torch.float64), rtol=0, atol=2e-3)
    assert found.steps[-1].tau == pytest.approx(2 / math.log(3), rel=1e-6)
    first = found.steps[0]
    assert (first.safe, first.harmful, first.objective) == pytest.approx((0.5, 0.5, 0.0))
    assert first.sample_size == pytest.approx(2)
    assert first.residual == pytest.approx(0.25)


def test_weights_and_the_best_by_hand() -> None:
    mass = torch.tensor([0.1, 0.4, 0.1, 0.3, 0.1])
    assert top_k(mass, 0.6).tolist() == [True, True, False, True, False]  # of equal masses the first
    found = Weighing(mass, mass.log(), *[mass] * 4, (), 0.0, 0.0, True)
    assert_close(training_weights(found, top_k(mass, 0.4)), torch.tensor([0, 8 / 7, 0, 6 / 7, 0]))
    literal = [2 * math.exp(one) / (math.exp(0.4) + math.exp(0.3)) for one in (0.4, 0.3)]
    assert_close(
        training_weights(found, top_k(mass, 0.4), "exponential"), torch.tensor([0, literal[0], 0, literal[1], 0])
    )


# Laws


@few
@given(st.integers(0, 99), st.floats(0, 3), st.floats(0.3, 0.95))
def test_masses_are_a_fixed_point_of_the_sample_size_that_was_asked_for(seed: int, push: float, floor: float) -> None:
    data = torch.cat([around(TASK, 12, seed), around(HARM, 4, seed + 1)])
    found = weighed(data, push=push, floor=floor)
    assert float(found.mass.sum()) == pytest.approx(1)
    assert found.converged
    assert floor * (1 - 1e-6) <= found.sample_size / len(data) <= floor + BAND
    each = [torch.full((len(one),), 1 / len(one), dtype=torch.float64) for one in (SAFE, HARMFUL)]
    near, far = (
        transport(CosineCosts(data, one), found.mass, target, 0.05).source_potential
        for one, target in zip((SAFE, HARMFUL), each, strict=True)
    )
    aim = (-(near - push * far) / found.steps[-1].tau).softmax(0)
    assert float((aim - found.mass).abs().sum()) / 2 == pytest.approx(found.steps[-1].residual, abs=1e-4)


def test_poison_has_less_mass_than_any_clean_example_and_both_terms_move_as_they_should() -> None:
    found = weighed()
    assert found.converged
    assert float(found.mass[:90].min()) > float(found.mass[90:].max())
    assert found.steps[-1].safe < found.steps[0].safe
    assert found.steps[-1].harmful > found.steps[0].harmful
    assert not top_k(found.mass, 0.9)[90:].any()


def test_a_permutation_permutes_and_duplicates_share() -> None:
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert_close(weighed(DATA[order]).mass, weighed().mass[order], rtol=1e-5, atol=1e-9)
    twice = weighed(torch.cat([DATA, DATA[:3]])).mass
    assert_close(twice[100:], twice[:3], rtol=1e-9, atol=0)


# Limits


def test_against_itself_nothing_is_preferred() -> None:
    found = weighed(safe=HARMFUL, harmful=HARMFUL)
    assert_close(found.mass, torch.full((100,), 0.01, dtype=torch.float64))
    assert found.steps[-1].residual < 1e-9


def test_equal_examples_have_equal_masses() -> None:
    found = weighed(DATA[:1].expand(7, -1))
    assert_close(found.mass, torch.full((7,), 1 / 7, dtype=torch.float64))
    assert weighed(DATA[:1]).mass.tolist() == [1.0]


def test_a_push_of_nothing_pulls_alone() -> None:
    found = weighed(push=0.0)
    other = weighed(push=0.0, harmful=around([0, 0, 1.0, 0], 5, 9))
    assert_close(found.mass, other.mass, rtol=1e-3, atol=1e-6)
    assert float(found.mass[:90].mean()) > float(found.mass[90:].mean())


def test_the_literal_weights_are_nearly_uniform() -> None:
    found = weighed()
    weights = training_weights(found, top_k(found.mass, 0.8), "exponential")
    assert float((weights[weights > 0] - 1).abs().max()) < 0.05


def test_shares_of_a_row_by_hand() -> None:
    """exp((0 - 1) / .5) to exp((.5 - .5) / .5): e^-2 to 1."""
    found = shares(torch.tensor([[1.0, 0.5]], dtype=torch.float64), torch.tensor([0.0, 0.5]), 0.5)
    assert_close(found, torch.tensor([[math.exp(-2), 1.0]], dtype=torch.float64) / (1 + math.exp(-2)))


def test_what_differs_by_rounding_is_equal() -> None:
    """Rows that are one another's copies but for the last bits have potentials that are, too."""
    near = DATA[:1] + 1e-16 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for push in (0.0, 1.0, 3.0):
        found = weighed(near, push=push)
        assert found.converged
        assert_close(found.mass, torch.full((5,), 0.2, dtype=torch.float64), rtol=0, atol=1e-9)


def test_no_tau_is_smaller_than_what_tells_examples_apart() -> None:
    """One of three keeps a floor of .3: the anchor stays, and all masses are numbers."""
    data = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1, 0, 0], [0.8, 0.9, 0, 0], [0.1, 1.0, 0.3, 0]]), dim=1)
    for epsilon in (0.05, 0.5, 5.0):
        found = weighed(data, floor=0.3, epsilon=epsilon)
        assert found.converged
        assert bool(found.logits.isfinite().all())
        each = torch.full((15,), 1 / 15, dtype=torch.float64), torch.full((25,), 1 / 25, dtype=torch.float64)
        equal = torch.full((3,), 1 / 3, dtype=torch.float64)
        slope = [
            transport(CosineCosts(data.double(), one), equal, u, epsilon).source_potential
            for one, u in zip((SAFE, HARMFUL), each, strict=True)
        ]
        assert found.steps[-1].tau >= LEAST * float((slope[0] - slope[1]).std(correction=0)) * (1 - 1e-5)


# Masses that vanish


def vanishing(order: list[int]) -> Tensor:
    """70 near copies of the anchors, 20 harmful, 10 between, as groups in some order: at so small a tau the masses of
    the 30 are no numbers of float32."""
    between = around([0.7, 0.7, 0.0, 0.0], 10, 9, 0.02)
    groups = [around(TASK, 70, 1, 1.5e-3), around(HARM, 20, 2, 0.05), between]
    return torch.cat([groups[at] for at in order])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("order", "bad"), [([0, 1, 2], (70, 90)), ([1, 2, 0], (0, 20)), ([2, 1, 0], (10, 30))])
def test_the_best_are_kept_where_masses_vanish(dtype: torch.dtype, order: list[int], bad: tuple[int, int]) -> None:
    data, safe = vanishing(order).to(dtype), around(TASK, 15, 3, 1.5e-3)
    found = weighed(data, safe, around(HARM, 25, 4, 0.05), floor=0.6, epsilon=0.02, dtype=dtype)
    assert found.converged
    assert float(found.mass.float().min()) == 0
    assert bool(found.logits.isfinite().all())
    kept = top_k(found.logits, 0.8)
    assert not kept[slice(*bad)].any()
    weights = training_weights(found, kept)
    assert bool(weights.isfinite().all())
    assert float(weights.mean()) == pytest.approx(0.8, rel=1e-5)


# The same, however it is computed


def test_float32_is_float64_up_to_rounding() -> None:
    narrow = weighed(DATA.float(), dtype=torch.float32)
    assert narrow.mass.dtype == torch.float32
    assert_close(narrow.mass.double(), weighed().mass, rtol=5e-3, atol=1e-5)


def test_two_processes_are_one() -> None:
    def part(rank: int, total: Total) -> Weighing:
        here = slice(0, 37) if rank == 0 else slice(37, 100)
        near, far = (Reference(CosineCosts(DATA[here], one), here, total) for one in (SAFE, HARMFUL))
        return weigh(near, far, 100, 0.05, **WIDE)

    parts = together(2, part)
    for one in parts:
        assert_close(one.mass, weighed().mass, rtol=1e-6, atol=1e-9)


# Refusals


@pytest.mark.parametrize("options", [{"push": -1.0}, {"push": math.nan}, {"floor": 0.0}, {"floor": 1.0}, {"most": 0}])
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="need push >= 0"):
        weighed(**options)


@pytest.mark.parametrize("keep", [0.0, 0.004, 1.1, -0.5])
def test_keeping_nothing_or_more_than_there_is_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match="need to keep 1 to 100 examples"):
        top_k(torch.full((100,), 0.01), keep)


def test_one_that_ran_out_of_steps_says_so() -> None:
    found = weighed(most=1)
    assert not found.converged
    taus = [step.tau for step in found.steps]
    assert len(set(taus)) == len(taus) - 1  # equal masses, and one step for each


class Unsolved(Reference):
    """Transports that say they are not at their end."""

    def transported(self, *given: Any) -> Transport:
        return super().transported(*given)._replace(converged=False)

    def pulled(self, *given: Any) -> Transport:
        return super().pulled(*given)._replace(converged=False)


@pytest.mark.parametrize("where", [0, 1])
def test_masses_that_settle_on_an_unsolved_transport_have_not_converged(where: int) -> None:
    ends = [alone(CosineCosts(DATA, one)) for one in (SAFE, HARMFUL)]
    assert weigh(*ends, 100, 0.05, **WIDE).converged
    ends[where] = Unsolved(ends[where].costs, ends[where].here, ends[where].total)
    assert not weigh(*ends, 100, 0.05, **WIDE).converged


# Data in groups, of which the anchors have other shares: potentials jump by whole costs within a sliver of mass


def grouped(count: int, of: Tensor, shares: list[float], seed: int, spread: float) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    at = torch.multinomial(torch.tensor(shares), count, replacement=True, generator=draw)
    noise = torch.randn(count, of.shape[1], generator=draw, dtype=torch.float64)
    return torch.nn.functional.normalize(of[at] + spread * noise, dim=1)


@pytest.mark.parametrize("groups", [2, 4, 8])
@pytest.mark.parametrize(("epsilon", "push", "floor"), [(0.05, 1.0, 0.8), (0.005, 1.0, 0.8), (0.05, 4.0, 0.5)])
def test_groups_of_other_shares_are_weighed_to_the_end(groups: int, epsilon: float, push: float, floor: float) -> None:
    draw = torch.Generator().manual_seed(groups)
    centres = torch.randn(groups + 1, 32, generator=draw, dtype=torch.float64)
    task, bad = centres[:groups], centres[groups:]
    data = torch.cat(
        [grouped(360, task, [1.0 + 3 * (k % 2) for k in range(groups)], 1, 0.3), grouped(40, bad, [1.0], 2, 0.3)]
    )
    safe = grouped(40, task, [4.0 - 3 * (k % 2) for k in range(groups)], 3, 0.3)
    found = weighed(data, safe, grouped(60, bad, [1.0], 4, 0.3), epsilon=epsilon, push=push, floor=floor)
    assert found.converged
    assert len(found.steps) < 40
    assert floor * (1 - 1e-6) <= found.sample_size / 400 <= floor + BAND
    assert not top_k(found.mass, 0.8)[360:].any()


def continued(data: Tensor, safe: Tensor, harmful: Tensor, found: Weighing, epsilon: float, push: float) -> Tensor:
    """The masses after ten more steps at the tau that was found, with tighter transports."""
    tau, mass = found.steps[-1].tau, found.mass
    ends = [torch.full((len(one),), 1 / len(one), dtype=torch.float64) for one in (safe, harmful)]
    for _ in range(10):
        price = -push * transport(CosineCosts(data, harmful), mass, ends[1], epsilon, tolerance=1e-8).source_potential
        near = transport(CosineCosts(data, safe), mass, ends[0], epsilon, tolerance=1e-8)
        free = pull(
            CosineCosts(data, safe), ends[0], epsilon, price, tau, start=near.target_potential,
            level=level_of(near.source_potential, price, tau), count=len(data), tolerance=1e-8,
        )  # fmt: skip
        mass = (-(free.source_potential + price) / tau).softmax(0)
    return mass


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 9999), st.sampled_from([0.005, 0.05, 0.5]), st.sampled_from([1.0, 3.0]), st.floats(0.5, 0.95))
def test_groups_keep_the_floor_and_stay_where_they_are(seed: int, relative: float, push: float, floor: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(6, 8, generator=draw, dtype=torch.float64)
    some = (torch.rand(4, generator=draw) + 0.02).tolist()
    data = torch.cat([grouped(40, centres[:4], some, seed, 0.1), grouped(10, centres[4:], [1.0, 1.0], seed + 1, 0.1)])
    safe = grouped(12, centres[:4], some[::-1], seed + 2, 0.1)
    harmful = grouped(12, centres[4:], [1.0, 0.5], seed + 3, 0.1)
    epsilon = relative * float(torch.cat([1 - data @ safe.T, 1 - data @ harmful.T], 1).median())
    found = weighed(data, safe, harmful, epsilon=epsilon, push=push, floor=floor)
    assert found.converged
    assert found.sample_size / 50 >= floor * (1 - 1e-6)
    assert float((continued(data, safe, harmful, found, epsilon, push) - found.mass).abs().sum()) / 2 < 5e-3


def test_every_tau_begins_at_equal_masses() -> None:
    """So that where a descent ends is a matter of tau alone: the objective has more than one end."""
    found = weighed(floor=0.6, push=3.0)
    first = {step.tau: step.sample_size for step in reversed(found.steps[1:])}
    assert len(first) > 1
    equal = torch.full((100,), 0.01, dtype=torch.float64)
    ends = [torch.full((len(one),), 1 / len(one), dtype=torch.float64) for one in (SAFE, HARMFUL)]
    near, far = (
        transport(CosineCosts(DATA, one), equal, u, 0.05, tolerance=1e-9)
        for one, u in zip((SAFE, HARMFUL), ends, strict=True)
    )
    price = -3 * far.source_potential
    for tau, size in first.items():
        free = pull(
            CosineCosts(DATA, SAFE), ends[0], 0.05, price, tau, start=near.target_potential,
            level=level_of(near.source_potential, price, tau), count=100,
        )  # fmt: skip
        mass = (-(free.source_potential + price) / tau).softmax(0)
        assert effective_sample_size(mass) == pytest.approx(size, rel=1e-3)


@few
@given(st.integers(0, 99), st.floats(0, 3))
def test_at_one_tau_the_anchored_objective_falls_with_every_step(seed: int, push: float) -> None:
    centres = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    data = grouped(60, centres, [1.0, 2.0, 3.0, 1.0], seed, 0.3)
    safe, harmful = (
        grouped(15, centres[:3], [3.0, 2.0, 1.0], seed + 1, 0.3),
        grouped(20, centres[2:], [1.0, 1.0], 7, 0.3),
    )
    steps = weighed(data, safe, harmful, push=push).steps
    for before, now in itertools.pairwise(steps):
        if before.tau == now.tau:
            assert now.objective <= before.objective + 1e-6
