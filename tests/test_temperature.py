"""The smallest tau for a sample size: by hand, laws, leaps and flats."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkeep.curate.temperature import BAND, FloorSearch, effective_sample_size, temperature

few = settings(max_examples=100, deadline=None)


def found(share_of: Callable[[float], float], floor: float, start: float = 1.0, least: float = 1e-6) -> list[float]:
    """The tau that are tried, the last of which is the answer; `share_of` is asked for each of them."""
    search, tried = FloorSearch(floor, least, start), list[float]()
    while True:
        tried.append(search.tau)
        if search.ends(share_of(search.tau)):
            return tried
        assert len(tried) < 60


def test_sample_sizes_by_hand() -> None:
    assert effective_sample_size(torch.tensor([0.5, 0.25, 0.25])) == pytest.approx(1 / 0.375)
    assert effective_sample_size(torch.full((7,), 1 / 7)) == pytest.approx(7)


@few
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30), st.floats(0.05, 0.95))
def test_the_temperature_is_the_smallest_that_keeps_the_sample_size(values: list[float], floor: float) -> None:
    """Or the smallest there is, where as many examples are equally good (or differ by nothing to speak of)."""
    slope = torch.tensor(values, dtype=torch.float64)
    tau, spread = temperature(slope, floor), float(slope.std(correction=0))
    assert effective_sample_size((-slope / tau).softmax(0)) >= floor * len(values) * (1 - 1e-6)
    if spread > 0 and tau > 1.01 * spread * math.exp(-20):
        assert effective_sample_size((-slope / (0.99 * tau)).softmax(0)) < floor * len(values)


def test_of_examples_that_are_equally_good_the_smallest_temperature_chooses() -> None:
    """Two of three are enough for a floor of a half: their sample size is 2."""
    for second in (0.0, 1e-52):
        slope = torch.tensor([0.0, 1.0, second], dtype=torch.float64)
        tau = temperature(slope, 0.5)
        assert tau == pytest.approx(float(slope.std(correction=0)) * math.exp(-20))
        assert effective_sample_size((-slope / tau).softmax(0)) == pytest.approx(2)


def test_where_the_variance_is_the_inverse_square_of_tau_the_second_guess_is_right() -> None:
    """Share 1 / (1 + tau^-2) = .8 at tau = 2; the band's middle, .801, at .801 / .199 = tau^2."""
    tried = found(lambda tau: 1 / (1 + tau**-2), 0.8)
    assert tried == [1.0, pytest.approx((0.801 / 0.199) ** 0.5)]


@few
@given(st.floats(0.05, 0.99), st.floats(0.2, 6), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_of_a_sample_size_that_grows_the_band_is_found(floor: float, power: float, scale: float, start: float) -> None:
    tried = found(lambda tau: 1 / (1 + (tau / scale) ** -power), floor, start, least=1e-30)
    share = 1 / (1 + (tried[-1] / scale) ** -power)
    assert floor * (1 - 1e-6) <= share <= floor + BAND
    assert len(set(tried)) == len(tried)


@few
@given(st.floats(0.3, 0.9), st.floats(1e-2, 1e2), st.floats(1e-2, 1e2), st.floats(0.0, 0.1))
def test_at_a_leap_the_upper_side_is_taken(floor: float, leap: float, start: float, slope: float) -> None:
    """The share leaps over the floor, and hardly changes elsewhere."""

    def share_of(tau: float) -> float:
        return floor + (0.05 if tau >= leap else -0.05) + slope * (math.atan(math.log(tau / leap)) / math.pi) * 0.5

    tried = found(share_of, floor, start)
    assert leap <= tried[-1] <= leap * 1.005


def test_where_the_smallest_tau_has_more_than_the_floor_it_is_the_answer() -> None:
    assert found(lambda tau: 0.9, 0.5, start=1e-9, least=0.25) == [0.25]
    tried = found(lambda tau: 0.9, 0.5, start=100.0, least=0.25)
    assert tried[-1] == 0.25
    assert len(tried) < 8  # what does not change is left in long steps


@few
@given(st.floats(0.5, 8), st.randoms(use_true_random=False))
def test_where_the_floor_is_kept_by_chance_it_is_kept_in_the_end(start: float, luck: Random) -> None:
    """As where the end of a descent hangs on rounding: an upper side may fall below the floor when it is seen again."""
    shares: list[float] = []

    def share_of(tau: float) -> float:
        shares.append(0.9 if tau > 3 or (tau > 2 and luck.random() < 0.5) else 0.1)
        return shares[-1]

    assert 2 < found(share_of, 0.5, start)[-1] < 3.02
    assert shares[-1] == 0.9
