"""What so many prompts can show, and p-values of a family: by hand, laws, twins, refusals."""

from __future__ import annotations

import itertools
import math
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from alignkeep.cli.tables import scorecard_summary
from alignkeep.evaluate.plan import can_show
from alignkeep.judging.drift import corrected, detectable
from alignkeep.judging.power import (
    POWER,
    detectable_by,
    detectable_change,
    detectable_within,
    paired_power,
    prompts_to_detect,
    reach,
)
from alignkeep.judging.statistics import LEVEL, holm, is_found, mcnemar, wilson
from alignkeep.types import Estimate, PairedTest, Scorecard

p_values = st.lists(st.floats(0, 1), max_size=12).map(np.array)


def made(p_value: float, low: float, high: float, p_holm: float | None = None) -> PairedTest:
    return PairedTest("harm_refusal.theft", Estimate((low + high) / 2, low, high, 100), p_value, 1, 9, p_holm)


def test_six_prompts_that_all_fall_are_the_fewest_that_show_anything():
    """d = 5: p = 2/32 > 0.05; d = 6: p = 2/64 < 0.05. So n = 6 needs all six: power = fall^6."""
    assert paired_power(5, 1.0, 0.0) == 0.0
    assert paired_power(6, 1.0, 0.0) == pytest.approx(1.0)
    assert paired_power(6, 0.9, 0.0) == pytest.approx(0.9**6)
    assert detectable_change(5) is None
    assert detectable_change(6) == pytest.approx(POWER ** (1 / 6), abs=2e-4)


def test_power_of_one_way_changes_is_a_binomial_tail():
    """Nothing moves up: found exactly where six or more fall, P(Binomial(n, fall) >= 6)."""
    for n, fall in ((50, 0.2), (200, 0.04), (1000, 0.01)):
        assert paired_power(n, fall, 0.0) == pytest.approx(1 - stats.binom.cdf(5, n, fall))


@pytest.mark.parametrize(("n", "down", "up"), [(12, 0.5, 0.1), (30, 0.3, 0.05), (18, 0.2, 0.2)])
def test_power_is_the_plain_sum_over_all_tables(n: int, down: float, up: float):
    """Every count of falls and rises, its trinomial probability, and the test itself."""
    total = 0.0
    for fell, rose in itertools.product(range(n + 1), repeat=2):
        if fell + rose > n:
            continue
        base = np.array([True] * fell + [False] * (n - fell))
        model = np.array([False] * fell + [True] * rose + [False] * (n - fell - rose))
        if mcnemar(model, base).p_value < LEVEL and fell > rose:
            total += stats.multinomial.pmf([fell, rose, n - fell - rose], n, [down, up, 1 - down - up])
    assert paired_power(n, down, up) == pytest.approx(total, abs=1e-9)


def test_power_is_how_often_simulated_evaluations_find_the_fall():
    draws, found = np.random.default_rng(0).multinomial(150, [0.09, 0.02, 0.89], size=2000), 0
    for fell, rose, _ in draws:
        found += fell > rose and stats.binomtest(int(rose), int(fell + rose), 0.5).pvalue < LEVEL
    assert wilson(found, 2000, 0.999).low <= paired_power(150, 0.09, 0.02) <= wilson(found, 2000, 0.999).high


def test_with_nothing_to_find_a_fall_is_found_no_oftener_than_half_the_level():
    for n, share in itertools.product((0, 1, 10, 100, 1000), (0.0, 0.01, 0.2, 0.5)):
        assert 0 <= paired_power(n, share, share) <= LEVEL / 2


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3000), st.floats(0, 1))
def test_the_change_that_is_said_to_be_found_is_found_and_a_smaller_one_is_not(n: int, discordance: float):
    change = detectable_change(n, discordance)
    if change is None:
        assert n < 6 or paired_power(n, 1.0, 0.0) < POWER
        return

    def power(fall: float) -> float:
        moved = max(discordance, fall)
        return paired_power(n, (moved + fall) / 2, (moved - fall) / 2)

    assert 0 < change <= 1
    assert power(change) >= POWER - 1e-9
    assert power(max(change - 2e-4, 0)) < POWER


def test_more_prompts_show_less_and_noise_hides_more():
    changes = [detectable_change(n) or 1 for n in (10, 50, 200, 1000, 10_000)]
    assert changes == sorted(changes, reverse=True)
    noisy = [detectable_change(400, share) or 1 for share in (0, 0.05, 0.1, 0.3, 1.0)]
    assert noisy == sorted(noisy)


def test_the_large_sample_formula_is_near():
    """Miettinen 1968: n change^2 = (1.96 sqrt(d) + 0.84 sqrt(d - change^2))^2 with d the discordance."""
    change = detectable_change(20_000, 0.1)
    assert change is not None
    wanted = (1.959964 * math.sqrt(0.1) + 0.841621 * math.sqrt(0.1 - change**2)) ** 2
    assert 20_000 * change**2 == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize(("change", "discordance"), [(0.02, 0.0), (0.02, 0.05), (0.1, 0.3), (1.0, 0.0)])
def test_so_many_prompts_show_a_change_and_clearly_fewer_do_not(change: float, discordance: float):
    n = prompts_to_detect(change, discordance)
    assert n is not None
    assert (detectable_change(n, discordance) or 1) <= change + 2e-4
    assert (detectable_change(int(0.9 * n), discordance) or 2) > change


def test_a_change_that_a_million_prompts_do_not_show_and_one_that_is_none():
    assert prompts_to_detect(1e-6, 0.5) is None
    for change in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match=r"\(0, 1\]"):
            prompts_to_detect(change)


def test_what_a_test_would_have_shown_follows_from_its_prompts_and_those_that_differ():
    test = PairedTest("harm_refusal", Estimate(0.0, -0.03, 0.03, 200), 1.0, 5, 5)
    assert detectable_by(test) == detectable_change(200, 0.05)
    assert detectable_by(PairedTest("x", Estimate(math.nan, -1, 1, 0), math.nan, 0, 0)) is None
    assert detectable(test) == detectable_by(test)


def test_shares_go_by_the_width_of_their_interval():
    """Half a width of 1.959964 standard errors of 0.01: (1.959964 + 0.841621) * 0.01."""
    pooled = PairedTest("attack_success", Estimate(0.0, -0.01959964, 0.01959964, 50), 0.9, 3, 4)
    assert detectable(pooled) == pytest.approx(0.02801585)
    assert detectable_within(Estimate(0.0, -1, 1, 1)) is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 500_000))
def test_no_rate_on_so_many_prompts_is_known_worse_than_its_reach(pairs: int):
    n = 2 * pairs  # a half of them is a rate of one half
    half = reach(n)
    assert half == pytest.approx((wilson(n // 2, n).high - wilson(n // 2, n).low) / 2, rel=0.02)
    assert (wilson(n // 5, n).high - wilson(n // 5, n).low) / 2 <= half + 1e-9


def test_holm_by_hand():
    """Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.5; each no less than those before."""
    assert holm(np.array([0.03, 0.01, 0.5, 0.02])) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm(np.array([0.9, math.nan, 0.4])) == pytest.approx([0.9, math.nan, 0.8], nan_ok=True)
    assert holm(np.array([])).size == 0


@settings(max_examples=60, deadline=None)
@given(p_values, st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(given_p: np.ndarray, level: float):
    """The twin: go through the sorted p-values, stop at the first above level / (m - k + 1)."""
    rejected = set()
    for step, index in enumerate(np.argsort(given_p, kind="stable")):
        if given_p[index] * (given_p.size - step) > level:
            break
        rejected.add(int(index))
    assert {index for index, p in enumerate(holm(given_p)) if p <= level} == rejected


@settings(max_examples=60, deadline=None)
@given(p_values)
def test_holm_lies_between_the_p_value_and_bonferronis_and_keeps_the_order(given_p: np.ndarray):
    found = holm(given_p)
    assert (found >= given_p).all()
    assert (found <= np.minimum(given_p * given_p.size, 1)).all()
    assert (np.diff(found[np.argsort(given_p, kind="stable")]) >= 0).all()


def test_categories_and_attacks_are_two_families_and_whole_metrics_none():
    names = ("harm_refusal", "harm_refusal.a", "harm_refusal.b", "attack_success.x", "attack_success")
    tests = {name: PairedTest(name, Estimate(0, -0.1, 0.1, 50), 0.03, 0, 6) for name in names}
    found = corrected(tests)
    assert {name: test.p_holm for name, test in found.items()} == {
        "harm_refusal": None, "harm_refusal.a": 0.06, "harm_refusal.b": 0.06,
        "attack_success.x": 0.03, "attack_success": None,
    }  # fmt: skip


def test_a_difference_is_found_by_interval_and_corrected_p_value_together():
    assert is_found(made(0.01, -0.2, -0.01))
    assert not is_found(made(0.01, -0.2, 0.01))
    assert not is_found(made(0.06, -0.2, -0.01))
    assert not is_found(made(0.01, -0.2, -0.01, p_holm=0.08))
    assert is_found(made(math.nan, -0.2, -0.01))


def test_the_terminal_says_beside_no_difference_what_would_have_been_seen():
    rate = Estimate(0.9, 0.8, 0.95, 100)
    tests = {
        "benign_compliance": PairedTest("benign_compliance", Estimate(0, -0.08, 0.08, 100), 1.0, 0, 0),
        "over_refusal": PairedTest("over_refusal", Estimate(0.2, 0.1, 0.3, 100), 0.001, 20, 0),
        "task_accuracy": PairedTest("task_accuracy", Estimate(0.5, -0.3, 0.9, 4), 0.5, 2, 0),
    }
    console = Console(width=200, record=True, file=StringIO())
    scorecard_summary(Scorecard("tuned", "base", "s", dict.fromkeys(tests, rate), tests), Path("out"))(console)
    lines = {line.split(":")[0]: line for line in console.export_text().splitlines() if "model - base" in line}
    assert lines["benign_compliance"].endswith(
        "(no difference found; these prompts show 7.8 points or more, power 80 %)"
    )
    assert lines["over_refusal"].endswith("n = 100")
    assert lines["task_accuracy"].endswith("(so few prompts can show no change)")


def test_a_plan_says_what_its_prompts_can_show():
    """P(Binomial(200, x) >= 6) = 0.8 at x = 0.0392: 3.9 points."""
    said = can_show(200, paired=True)
    assert "a change under 3.9 points cannot be seen" in said
    assert "6.9 points or better" in said
    assert "would show 2" in said
    assert "no change can be shown" in can_show(5, paired=True)
    assert "change" not in can_show(200, paired=False)
