"""Rates with intervals, and two models compared on the same prompts.

Sources
    Wilson, Probable inference, JASA 22 (1927): the interval of one rate.
    McNemar, Psychometrika 12 (1947), in its exact binomial form: the test of two rates on the same prompts.
    Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired data,
    Statistics in Medicine 17 (1998) 2635-2650, method 10: the interval of their difference.
    Efron, Annals of Statistics 7 (1979): the percentile bootstrap. Owen, The pigeonhole bootstrap, Annals of Applied
    Statistics 1 (2007): resampling seeds and prompts independently when every seed saw every prompt.
    Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).

Symbols
    n11, n10, n01, n00   prompts on which both, only the model, only the base, neither did it
    phi                  Newcombe's correlation of the two answers, shrunk by n/2 towards 0 when it is positive
    S, n                 seeds, prompts

An interval never leaves the range the quantity can take, and where nothing is known it is that whole range.
"""

# SciPy brings no type stubs:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from alignkeep.types import Estimate, PairedTest

RATE = (0.0, 1.0)
DIFFERENCE = (-1.0, 1.0)
LEVEL = 0.05
# Numbers drawn at a time by the bootstrap: 32 MB of float64 (chosen; the result does not depend on it).
_BLOCK = 4_000_000


class PairCounts(NamedTuple):
    """The fourfold table of two yes/no answers to the same prompts; the four counts add up to n."""

    both: int
    only_model: int
    only_base: int
    neither: int


def wilson(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """A rate with Wilson's score interval. It lies in [0, 1], holds the rate, and is exactly 0 (1) at the edge when
    nothing (everything) succeeded. n = 0 is unknown: NaN within [0, 1].
    """
    if n == 0:
        return Estimate(math.nan, *RATE, 0)
    rate = successes / n
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    low = 0.0 if successes == 0 else min(max(float(interval.low), 0.0), rate)
    high = 1.0 if successes == n else max(min(float(interval.high), 1.0), rate)
    return Estimate(rate, low, high, n)


def count_pairs(model: Bool[np.ndarray, " n"], base: Bool[np.ndarray, " n"]) -> PairCounts:
    """The fourfold table. Raises ValueError when the two are not equally long: they are not the same prompts."""
    if model.shape != base.shape:
        raise ValueError(f"paired answers need equal shapes, got {model.shape} and {base.shape}")
    model, base = model.astype(bool), base.astype(bool)
    both, only_model, only_base = (model & base).sum(), (model & ~base).sum(), (~model & base).sum()
    return PairCounts(int(both), int(only_model), int(only_base), int((~model & ~base).sum()))


def mcnemar(
    model: Bool[np.ndarray, " n"], base: Bool[np.ndarray, " n"], *, name: str = "difference", confidence: float = 0.95
) -> PairedTest:
    """Did the two models do it equally often on the same prompts? `difference` is the model's rate minus the base's.

    The p-value is exact: given the prompts on which they differ, heads or tails. No such prompt means p = 1; no prompt
    at all means an unknown difference and p = NaN. Swapping the two turns the sign of the difference and its interval.
    """
    table = count_pairs(model, base)
    discordant = table.only_model + table.only_base
    if sum(table) == 0:
        p_value = math.nan
    elif discordant == 0:
        p_value = 1.0
    else:
        p_value = float(stats.binomtest(table.only_model, discordant, 0.5).pvalue)
    return PairedTest(name, paired_difference(table, confidence), p_value, table.only_model, table.only_base)


def paired_difference(table: PairCounts, confidence: float = 0.95) -> Estimate:
    """Rate of the model minus rate of the base, with Newcombe's interval (method 10): Wilson's two intervals joined
    with the correlation of the pairs. It lies in [-1, 1] and holds the difference. No pairs: NaN within [-1, 1].
    """
    n = sum(table)
    if n == 0:
        return Estimate(math.nan, *DIFFERENCE, 0)
    model = wilson(table.both + table.only_model, n, confidence)
    base = wilson(table.both + table.only_base, n, confidence)
    difference = (table.only_model - table.only_base) / n
    phi = _correlation(table)
    down = _joined(model.value - model.low, base.high - base.value, phi)
    up = _joined(model.high - model.value, base.value - base.low, phi)
    return Estimate(difference, max(difference - down, -1.0), min(difference + up, 1.0), n)


def is_found(test: PairedTest) -> bool:
    """Whether the paired difference is more than chance: its interval excludes 0 *and* the test agrees, corrected for
    its family where it has one. The two can differ by a hair, and then nothing is claimed."""
    excludes = test.difference.low > 0 or test.difference.high < 0
    return excludes and (math.isnan(test.p_corrected) or test.p_corrected < LEVEL)


def holm(p_values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Holm's adjusted p-values of a family of m tests, in its order: below `level` for at most `level` of families in
    which no difference is real.

    The k-th smallest is multiplied by m - k + 1, then by no less than those before it were, cut at 1: never below the
    p-value, nor above Bonferroni's. NaN (nothing tested) stays NaN and does not count into m.
    """
    adjusted = np.full(p_values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    steps = p_values[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def paired_bootstrap(
    model: Float[np.ndarray, "*seeds n"],
    base: Float[np.ndarray, "*seeds n"],
    *,
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
    bounds: tuple[float, float] = DIFFERENCE,
) -> Estimate:
    """Mean of model minus base over the same prompts, with a percentile bootstrap interval.

    Given (n,) it draws prompts; given (S, n) it draws seeds and prompts, each independently, so that both are counted
    as luck. Equal differences give an interval of width 0 (use `mcnemar` for yes/no answers, which does not); one
    prompt tells nothing of its own luck and gives all of `bounds`. Swapping model and base turns the sign.
    Raises ValueError when the shapes differ or are neither (n,) nor (S, n).
    """
    if model.shape != base.shape or model.ndim not in (1, 2):
        raise ValueError(f"paired values need one shape, (n,) or (S, n), got {model.shape} and {base.shape}")
    difference = np.atleast_2d(np.asarray(model, np.float64) - np.asarray(base, np.float64))
    seeds, n = difference.shape
    if difference.size == 0:
        return Estimate(math.nan, *bounds, 0)
    value = float(difference.mean())
    if n == 1:
        return Estimate(value, *bounds, 1)
    over_seeds, over_prompts = np.random.default_rng(seed).spawn(2)
    means = np.empty(resamples)
    block = max(1, _BLOCK // (n + seeds))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        prompt_draws = over_prompts.multinomial(n, np.full(n, 1 / n), size=size)
        seed_draws = over_seeds.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        means[start : start + size] = ((seed_draws @ difference) * prompt_draws).sum(1) / difference.size
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(value, max(bounds[0], min(float(low), value)), min(bounds[1], max(float(high), value)), n)


def sign_flip_test(gaps: Float[np.ndarray, " n"], *, seed: int, draws: int = 9999) -> float:
    """Two-sided p-value of mean gap 0: were the models alike, each prompt's gap would as likely point either way.

    The observed signs count as one draw, so p lies in [1/(draws + 1), 1]; no gap but 0 gives 1. With gaps of -1, 0, 1
    it estimates McNemar's exact p-value. No prompt at all gives NaN.
    """
    if gaps.size == 0:
        return math.nan
    gaps = gaps[gaps != 0]
    if gaps.size == 0:
        return 1.0
    observed = abs(float(gaps.sum())) * (1 - 1e-12)
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // gaps.size)
    hits = 0
    for start in range(0, draws, block):
        signs = generator.integers(0, 2, size=(min(block, draws - start), gaps.size)) * 2.0 - 1.0
        hits += int((np.abs(signs @ gaps) >= observed).sum())
    return (hits + 1) / (draws + 1)


def mean_interval(
    values: Float[np.ndarray, " S"], *, confidence: float = 0.95, bounds: tuple[float, float] = RATE
) -> Estimate:
    """Mean over seeds with Student's t interval, cut to `bounds` (the range one value can take).

    n is the number of seeds. One seed says nothing about its spread and gives all of `bounds`; none gives NaN. Equal
    values give an interval of width 0.
    """
    values = np.asarray(values, np.float64)
    if values.size == 0:
        return Estimate(math.nan, *bounds, 0)
    value = float(values.mean())
    if values.size == 1:
        return Estimate(value, *bounds, 1)
    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    reach = float(stats.t.ppf((1 + confidence) / 2, values.size - 1)) * error
    return Estimate(value, max(bounds[0], value - reach), min(bounds[1], value + reach), values.size)


def _correlation(table: PairCounts) -> float:
    """Newcombe's phi with his continuity correction; 0 when a margin is empty."""
    n11, n10, n01, n00 = table
    margins = (n11 + n10) * (n01 + n00) * (n11 + n01) * (n10 + n00)
    if margins == 0:
        return 0.0
    product = n11 * n00 - n10 * n01
    if product > 0:
        product = max(product - sum(table) / 2, 0)
    return product / math.sqrt(margins)


def _joined(one: float, other: float, phi: float) -> float:
    """sqrt(one^2 - 2 phi one other + other^2), which rounding must not push below 0."""
    return math.sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))
