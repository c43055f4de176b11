"""The forgetting law: fitted to what it made itself, to arithmetic, and refused where it cannot be told."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkeep.train.forgetting import SMALLEST, Observation, fit_forgetting

AMOUNTS = [100, 300, 1000, 3000, 10000]
BASE = 0.7


def made(
    exponent: float, laws: dict[str, tuple[float, float]], noise: float = 0.0, seeds: int = 1
) -> list[Observation]:
    """Losses of the law itself, per 1000 examples, with noise in log units."""
    draw = np.random.default_rng(5)
    return [
        Observation(name, n, BASE + (a * (n / 1000) ** exponent + e) * math.exp(noise * draw.standard_normal()))
        for name, (a, e) in laws.items()
        for n in AMOUNTS
        for _ in range(seeds)
    ]


def test_a_pure_power_by_hand() -> None:
    """Excess 0.1, 0.2, 0.4, 0.8, 1.6 at 1, 2, 4, 8, 16: amplitude 0.1, exponent 1, no offset."""
    seen = [Observation("lora", 2**k, BASE + 0.1 * 2**k) for k in range(5)]
    found = fit_forgetting(seen, BASE, unit=1, draws=2)
    assert found.exponent.value == pytest.approx(1, abs=1e-3)
    assert found.amplitude["lora"].value == pytest.approx(0.1, rel=1e-3)
    assert found.offset["lora"].value < 1e-3
    assert found.residual < 1e-4
    assert found.predicted("lora", np.array([32.0])) == pytest.approx([3.2], rel=1e-2)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.3, 1.5), st.floats(0.05, 2), st.floats(0.05, 2), st.floats(0.02, 0.2))
def test_the_law_is_found_in_what_it_made(exponent: float, one: float, two: float, offset: float) -> None:
    found = fit_forgetting(made(exponent, {"a": (one, offset), "b": (two, offset / 2)}), BASE, unit=1000, draws=0)
    assert found.exponent.value == pytest.approx(exponent, rel=0.02)
    assert found.amplitude["a"].value == pytest.approx(one, rel=0.05)
    assert found.amplitude["b"].value == pytest.approx(two, rel=0.05)


@pytest.mark.parametrize("unit", [1, 1e3, 1e6])
def test_the_unit_does_not_change_the_law(unit: float) -> None:
    """Amounts counted in tokens: the amplitude of one token is far below what a bound in nats would allow."""
    exact = [Observation("lora", n, BASE + 0.4 * (n / 1e6) ** 1.2) for n in (1e5, 3e5, 1e6, 3e6, 1e7)]
    found = fit_forgetting(exact, BASE, unit=unit, draws=2)
    assert found.exponent.value == pytest.approx(1.2, abs=5e-3)
    assert found.amplitude["lora"].value == pytest.approx(0.4 * (unit / 1e6) ** 1.2, rel=0.1)
    assert found.amplitude["lora"].low <= found.amplitude["lora"].value <= found.amplitude["lora"].high
    assert found.predicted("lora", np.array([1e6])) == pytest.approx([0.4], rel=0.02)


def test_a_constant_added_to_all_losses_and_another_unit_change_what_they_should_alone() -> None:
    seen = made(0.8, {"a": (0.5, 0.05), "b": (0.1, 0.05)}, noise=0.02)
    found = fit_forgetting(seen, BASE, unit=1000, draws=0)
    higher = fit_forgetting([one._replace(loss=one.loss + 2) for one in seen], BASE + 2, unit=1000, draws=0)
    assert higher.amplitude["a"].value == pytest.approx(found.amplitude["a"].value, rel=1e-4)
    tenfold = fit_forgetting(seen, BASE, unit=10000, draws=0)
    factor = 10**found.exponent.value
    assert tenfold.amplitude["a"].value == pytest.approx(factor * found.amplitude["a"].value, rel=1e-2)
    assert tenfold.amplitude["a"].value / tenfold.amplitude["b"].value == pytest.approx(
        found.amplitude["a"].value / found.amplitude["b"].value, rel=1e-2
    )


def test_intervals_hold_the_truth_widen_with_noise_and_are_points_without() -> None:
    exact = fit_forgetting(made(0.8, {"a": (0.5, 0.05)}, seeds=3), BASE, unit=1000, draws=20)
    assert exact.amplitude["a"].high - exact.amplitude["a"].low < 1e-3
    widths = []
    for noise in (0.05, 0.2):
        found = fit_forgetting(made(0.8, {"a": (0.5, 0.05)}, noise, seeds=4), BASE, unit=1000, draws=30)
        assert found.amplitude["a"].low < 0.5 < found.amplitude["a"].high
        assert found.exponent.low <= found.exponent.value <= found.exponent.high
        widths.append(found.amplitude["a"].high - found.amplitude["a"].low)
    assert widths[1] > 1.5 * widths[0]
    again = fit_forgetting(made(0.8, {"a": (0.5, 0.05)}, 0.2, seeds=4), BASE, unit=1000, draws=30)
    assert again == found


def test_one_wild_seed_hardly_moves_the_fit() -> None:
    seen = made(0.8, {"a": (0.5, 0.05)}, noise=0.02, seeds=5)
    wild = [seen[0]._replace(loss=BASE + 50.0), *seen[1:]]
    calm, moved = (fit_forgetting(some, BASE, unit=1000, draws=0) for some in (seen, wild))
    assert moved.amplitude["a"].value == pytest.approx(calm.amplitude["a"].value, rel=0.15)


def test_a_method_that_forgets_nothing_has_an_excess_of_the_smallest() -> None:
    none = [Observation("kept", amount, BASE - 0.1) for amount in AMOUNTS]
    found = fit_forgetting([*none, *made(0.8, {"a": (0.5, 0.05)})], BASE, unit=1000, draws=0)
    assert found.predicted("kept", np.array(AMOUNTS)) == pytest.approx([SMALLEST] * 5, rel=0.05)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda seen: seen[:4], "at least 5 amounts of every method, got 4 of a"),
        (lambda seen: [seen[0]._replace(amount=0.0), *seen[1:]], "positive amounts"),
        (lambda seen: [seen[0]._replace(loss=math.nan), *seen[1:]], "finite losses"),
        (lambda seen: [], "need observations"),
    ],
)
def test_what_gives_no_law_is_refused(change, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit_forgetting(change(made(0.8, {"a": (0.5, 0.05)})), BASE, unit=1000)
