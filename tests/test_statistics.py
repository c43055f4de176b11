"""Rates, intervals and paired comparisons: by hand, laws, limits, twins, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from alignkeep.judging import statistics
from alignkeep.judging.statistics import (
    PairCounts,
    count_pairs,
    mcnemar,
    mean_interval,
    paired_bootstrap,
    paired_difference,
    sign_flip_test,
    wilson,
)

counts = st.integers(0, 60)
tables = st.builds(PairCounts, counts, counts, counts, counts)


def answers_of(table: PairCounts) -> tuple[np.ndarray, np.ndarray]:
    both, model, base, neither = table
    return (
        np.array([True] * (both + model) + [False] * (base + neither)),
        np.array([True] * both + [False] * model + [True] * base + [False] * neither),
    )


def test_wilson_by_hand():
    """5 of 10 with z = 1.959964: centre 0.5, half width z / (1 + z^2/10) * sqrt(0.25/10 + z^2/400) = 0.263407."""
    found = wilson(5, 10)
    assert (found.value, found.n) == (0.5, 10)
    assert found.low == pytest.approx(0.236593, abs=1e-6)
    assert found.high == pytest.approx(0.763407, abs=1e-6)


def test_wilson_agrees_with_newcombes_published_examples():
    """Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    for successes, n, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
                                    (1, 29, 0.0061, 0.1718)]:  # fmt: skip
        found = wilson(successes, n)
        assert found.low == pytest.approx(low, abs=5e-5)
        assert found.high == pytest.approx(high, abs=5e-5)


def test_nothing_asked_is_unknown_within_all_of_zero_to_one():
    found = wilson(0, 0)
    assert math.isnan(found.value)
    assert (found.low, found.high, found.n) == (0.0, 1.0, 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10**6))
def test_wilson_limits_are_exact_at_the_edges(n):
    assert (wilson(0, n).value, wilson(0, n).low) == (0.0, 0.0)
    assert (wilson(n, n).value, wilson(n, n).high) == (1.0, 1.0)
    assert wilson(0, n).high < 1.0
    assert wilson(n, n).low > 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(0.5, 0.999))
def test_wilson_holds_the_rate_inside_zero_to_one(n, share, confidence):
    found = wilson(round(share * n), n, confidence)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 500), st.integers(0, 499))
def test_wilson_rises_with_the_successes_and_tightens_with_n(n, successes):
    successes = min(successes, n - 1)
    fewer, more = wilson(successes, n), wilson(successes + 1, n)
    assert fewer.low <= more.low
    assert fewer.high <= more.high
    larger = wilson(successes * 10, n * 10)
    assert larger.high - larger.low < fewer.high - fewer.low


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2000), st.floats(0, 1))
def test_wilson_is_the_closed_form(n, share):
    """Wilson 1927: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    z, successes = 1.959963984540054, round(share * n)
    p = successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = wilson(successes, n)
    assert found.low == pytest.approx((centre - half) / (1 + z * z / n), abs=1e-9)
    assert found.high == pytest.approx((centre + half) / (1 + z * z / n), abs=1e-9)


def test_pairs_are_counted_by_hand():
    model, base = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 0], bool)
    assert count_pairs(model, base) == PairCounts(both=1, only_model=2, only_base=1, neither=1)


def test_mcnemar_by_hand():
    """8 discordant pairs, 1 to the model: p = 2 (C(8,0) + C(8,1)) / 2^8 = 18/256; difference (1 - 7)/20."""
    found = mcnemar(*answers_of(PairCounts(5, 1, 7, 7)), name="harm_refusal")
    assert found.p_value == pytest.approx(18 / 256)
    assert (found.name, found.only_model, found.only_base) == ("harm_refusal", 1, 7)
    assert found.difference.value == pytest.approx(-0.3)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Two culture media, Armitage and Berry; Altman et al., Statistics with Confidence (2000), ch. 6.
        (PairCounts(20, 12, 2, 16), 0.056, 0.329),
        # Airway hyper-responsiveness, Bentur et al. 2009; Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014).
        (PairCounts(1, 1, 7, 12), -0.507, -0.026),
    ],
)
def test_the_paired_difference_agrees_with_published_intervals_of_newcombes_method_10(table, low, high):
    found = paired_difference(table)
    assert found.low == pytest.approx(low, abs=5e-4)
    assert found.high == pytest.approx(high, abs=5e-4)


def test_the_exact_p_value_agrees_with_the_published_one():
    """12 against 2 discordant: P = 0.0129 (Liddell's exact test, two sided, in the same example)."""
    assert mcnemar(*answers_of(PairCounts(20, 12, 2, 16))).p_value == pytest.approx(0.0129, abs=5e-5)


@settings(max_examples=40, deadline=None)
@given(tables)
def test_swapping_model_and_base_turns_the_sign(table):
    model, base = answers_of(table)
    there, back = mcnemar(model, base), mcnemar(base, model)
    if sum(table) == 0:
        assert math.isnan(there.difference.value)
        assert math.isnan(there.p_value)
        assert (there.difference.low, there.difference.high) == (-1.0, 1.0)
        return
    assert there.difference.value == pytest.approx(-back.difference.value)
    assert there.difference.low == pytest.approx(-back.difference.high, abs=1e-12)
    assert there.difference.high == pytest.approx(-back.difference.low, abs=1e-12)
    assert there.p_value == pytest.approx(back.p_value)
    assert (there.only_model, there.only_base) == (back.only_base, back.only_model)


@settings(max_examples=40, deadline=None)
@given(tables)
def test_the_difference_lies_in_its_interval_inside_minus_one_to_one(table):
    found = paired_difference(table)
    if found.n:
        assert -1.0 <= found.low <= found.value <= found.high <= 1.0
        assert found.high > found.low


@settings(max_examples=40, deadline=None)
@given(tables)
def test_the_order_of_the_prompts_does_not_matter(table):
    model, base = answers_of(table)
    order = np.random.default_rng(0).permutation(sum(table))
    assert count_pairs(model[order], base[order]) == table


@settings(max_examples=40, deadline=None)
@given(tables)
def test_mcnemar_is_a_plain_loop_over_coin_flips(table):
    model, base = answers_of(table)
    flips = [bool(m) for m, b in zip(model, base, strict=True) if m != b]
    found = mcnemar(model, base).p_value
    if len(model) == 0:
        assert math.isnan(found)
        return
    tail = min(sum(flips), len(flips) - sum(flips))
    one_side = sum(math.comb(len(flips), k) for k in range(tail + 1)) / 2 ** len(flips)
    assert found == pytest.approx(min(1.0, 2 * one_side))


def test_equal_answers_are_no_difference_but_not_certainty():
    model = np.ones(20, bool)
    found = mcnemar(model, model)
    assert found.p_value == 1.0
    assert found.difference.value == 0.0
    assert found.difference.low < 0.0 < found.difference.high


def test_one_prompt_says_next_to_nothing():
    found = mcnemar(np.array([True]), np.array([False]))
    assert (found.p_value, found.difference.value) == (1.0, 1.0)
    assert found.difference.low < 0.0


def test_answers_to_different_prompts_are_refused():
    with pytest.raises(ValueError, match="equal shapes"):
        mcnemar(np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(ValueError, match="one shape"):
        paired_bootstrap(np.ones(3), np.ones(4), seed=0)
    with pytest.raises(ValueError, match="one shape"):
        paired_bootstrap(np.ones((2, 2, 2)), np.ones((2, 2, 2)), seed=0)


def test_newcombes_interval_covers_the_truth_about_as_often_as_it_says():
    """400 draws of 40 pairs with a true difference of 0.2: 95 % give or take 3.3 points (three standard errors)."""
    draws = np.random.default_rng(7).multinomial(40, [0.3, 0.3, 0.1, 0.3], size=400)
    found = [paired_difference(PairCounts(*map(int, table))) for table in draws]
    hits = sum(interval.low <= 0.2 <= interval.high for interval in found)
    assert hits / 400 == pytest.approx(0.95, abs=0.033)


def test_the_bootstrap_is_near_the_normal_interval_of_many_prompts():
    """Central limit: mean -+ 1.96 sd / sqrt(n)."""
    draws = np.random.default_rng(1)
    model, base = draws.normal(0.3, 1.0, 1000), draws.normal(0.0, 1.0, 1000)
    gap = model - base
    found = paired_bootstrap(model, base, seed=0, bounds=(-math.inf, math.inf))
    half = 1.96 * gap.std() / math.sqrt(1000)
    assert found.value == pytest.approx(gap.mean())
    assert found.low == pytest.approx(gap.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(gap.mean() + half, abs=0.15 * half)


def test_the_bootstrap_agrees_with_scipys():
    draws = np.random.default_rng(2)
    gap = draws.choice([-1.0, 0.0, 0.0, 1.0, 1.0], size=200)
    ours = paired_bootstrap(gap, np.zeros(200), seed=0, resamples=5000)
    theirs = stats.bootstrap((gap,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(3))
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.02)


def test_the_bootstrap_interval_shrinks_with_the_prompts():
    draws = np.random.default_rng(4).choice([-1.0, 0.0, 1.0], size=1600)
    widths = []
    for n in (25, 100, 400, 1600):
        found = paired_bootstrap(draws[:n], np.zeros(n), seed=0)
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] / widths[-1] == pytest.approx(8, rel=0.4)


def test_two_levels_count_the_luck_of_the_seeds():
    """Every prompt alike, seeds far apart: over prompts alone the interval is a point, over seeds it is wide."""
    apart = np.repeat(np.array([[0.0], [0.4], [0.8], [1.0]]), 50, axis=1)
    found = paired_bootstrap(apart, np.zeros_like(apart), seed=0)
    assert found.value == pytest.approx(0.55)
    assert found.high - found.low > 0.5
    flat = paired_bootstrap(apart.mean(0), np.zeros(50), seed=0)
    assert flat.high - flat.low == pytest.approx(0.0, abs=1e-12)


def test_one_seed_is_the_same_as_no_seed_axis():
    model, base = np.random.default_rng(5).random((2, 40))
    assert paired_bootstrap(model[None], base[None], seed=3) == paired_bootstrap(model, base, seed=3)


def test_the_bootstrap_draws_seeds_and_prompts_like_a_plain_loop():
    """The twin draws indices one by one; only the distribution can agree, so the quantiles are compared."""
    gap = np.random.default_rng(6).normal(0.1, 0.5, (5, 30))
    ours = paired_bootstrap(gap, np.zeros_like(gap), seed=0, resamples=6000, bounds=(-9.0, 9.0))
    draws = np.random.default_rng(8)
    means = [gap[draws.integers(0, 5, 5)][:, draws.integers(0, 30, 30)].mean() for _ in range(6000)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert ours.low == pytest.approx(low, abs=0.03)
    assert ours.high == pytest.approx(high, abs=0.03)


def test_memory_blocks_do_not_change_the_result(monkeypatch):
    model, base = np.random.default_rng(9).random((2, 3, 50))
    whole = paired_bootstrap(model, base, seed=1, resamples=300)
    p_value = sign_flip_test(model[0] - base[0], seed=1, draws=999)
    monkeypatch.setattr(statistics, "_BLOCK", 137)
    assert paired_bootstrap(model, base, seed=1, resamples=300) == whole
    assert sign_flip_test(model[0] - base[0], seed=1, draws=999) == p_value


def test_the_same_seed_gives_the_same_interval_and_another_another():
    model, base = np.random.default_rng(10).random((2, 50))
    assert paired_bootstrap(model, base, seed=1) == paired_bootstrap(model, base, seed=1)
    assert paired_bootstrap(model, base, seed=1) != paired_bootstrap(model, base, seed=2)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_bootstrap_holds_its_value_and_swaps_with_the_sign(n, seeds, seed):
    model, base = np.random.default_rng(seed).integers(0, 2, (2, seeds, n)).astype(float)
    there = paired_bootstrap(model, base, seed=seed, resamples=200)
    back = paired_bootstrap(base, model, seed=seed, resamples=200)
    assert -1.0 <= there.low <= there.value <= there.high <= 1.0
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.n == n


def test_no_prompt_and_one_prompt_say_nothing_about_luck():
    nothing = paired_bootstrap(np.zeros(0), np.zeros(0), seed=0)
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high, nothing.n) == (-1.0, 1.0, 0)
    one = paired_bootstrap(np.ones(1), np.zeros(1), seed=0)
    assert (one.value, one.low, one.high, one.n) == (1.0, -1.0, 1.0, 1)


def test_the_sign_flip_test_estimates_mcnemars_exact_p_value():
    model, base = answers_of(PairCounts(20, 12, 2, 16))
    found = sign_flip_test(model.astype(float) - base.astype(float), seed=0, draws=40_000)
    assert found == pytest.approx(0.0129, abs=0.003)


def test_the_sign_flip_test_by_hand():
    """Gaps 1, 1, 1: only +++ and --- are as far from 0, so p tends to 2/8."""
    assert sign_flip_test(np.ones(3), seed=0, draws=40_000) == pytest.approx(0.25, abs=0.01)


def test_the_sign_flip_test_at_its_limits():
    assert sign_flip_test(np.zeros(5), seed=0) == 1.0
    assert math.isnan(sign_flip_test(np.zeros(0), seed=0))
    assert sign_flip_test(np.ones(50), seed=0) == pytest.approx(1e-4)


def test_the_mean_over_seeds_by_hand():
    """0.2, 0.4, 0.6: mean 0.4, sd 0.2, t(2, 0.975) = 4.302653, half width 4.302653 * 0.2 / sqrt(3) = 0.496828."""
    found = mean_interval(np.array([0.2, 0.4, 0.6]), bounds=(-9.0, 9.0))
    assert found.value == pytest.approx(0.4)
    assert found.low == pytest.approx(0.4 - 0.496828, abs=1e-6)
    assert found.high == pytest.approx(0.4 + 0.496828, abs=1e-6)
    assert mean_interval(np.array([0.2, 0.4, 0.6])).low == 0.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_the_mean_over_seeds_is_scipys_t_interval_cut_to_its_bounds(values):
    found = mean_interval(np.array(values))
    assert found.low <= found.value + 1e-12
    assert found.value <= found.high + 1e-12
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    if spread > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=spread)
        assert found.low == pytest.approx(max(0.0, low), abs=1e-9)
        assert found.high == pytest.approx(min(1.0, high), abs=1e-9)


def test_no_seed_one_seed_and_equal_seeds():
    assert math.isnan(mean_interval(np.zeros(0)).value)
    one = mean_interval(np.array([0.7]))
    assert (one.value, one.low, one.high, one.n) == (0.7, 0.0, 1.0, 1)
    alike = mean_interval(np.array([0.5, 0.5, 0.5]))
    assert (alike.value, alike.low, alike.high, alike.n) == (0.5, 0.5, 0.5, 3)
