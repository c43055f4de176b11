"""The rules that pick a weight, and the front: by hand, laws, limits, a plain twin, refusals."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkeep.judging.statistics import wilson
from alignkeep.merge.select import gain_kept, nearest_trade, pareto_front, pick_gain, pick_safe, pick_task
from alignkeep.types import Trade

N = 20
COUNTS = st.lists(st.tuples(st.integers(0, N), st.integers(0, N)), min_size=1, max_size=12)


def trade(weight, task, refusal, n=N) -> Trade:
    """Right answers and refusals out of n; None is unknown."""
    counts = {"task_accuracy": task, "harm_refusal": refusal}
    metrics = {name: wilson(0, 0) if count is None else wilson(count, n) for name, count in counts.items()}
    return Trade(weight, metrics)


def trades_of(counts) -> list[Trade]:
    return [trade(index / 16, *pair) for index, pair in enumerate(counts)]


# Tasks 0 5 9 14 14 12, refusals 19 19 18 17 12 15 of 20.
LINE = [trade(w, t, r) for w, t, r in zip(
    (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), (0, 5, 9, 14, 14, 12), (19, 19, 18, 17, 12, 15), strict=True
)]  # fmt: skip
BASE = LINE[0].metrics


def test_the_best_task_score_wins_and_of_equal_ones_the_smaller_weight():
    """0.6 and 0.8 both have 14 of 20."""
    pick = pick_task(LINE, BASE)
    assert (pick.trade, pick.admitted) == (LINE[3], (0.6, 0.8))
    assert pick.base is BASE


def test_the_largest_weight_within_the_margin_is_safe_even_behind_one_that_is_not():
    """Base 19 of 20. A margin of 0.05 allows 18, 0.1 allows 17, 0.2 allows 15: 1.0, although 0.8 has 12."""
    assert [pick_safe(LINE, BASE, margin).trade for margin in (0.0, 0.05, 0.1, 0.2, 1.0)] == [
        LINE[1], LINE[2], LINE[3], LINE[5], LINE[5],
    ]  # fmt: skip
    assert pick_safe(LINE, BASE, 0.2).admitted == (0.0, 0.2, 0.4, 0.6, 1.0)


def test_the_front_is_what_no_other_weight_beats():
    """0.2 beats 0 (more task, the same refusal), 0.6 beats 0.8 and 1; 0.2, 0.4, 0.6 each give up one for the other."""
    assert pareto_front(LINE) == (0.2, 0.4, 0.6)


def test_the_nearest_keeps_most_refusal_then_most_of_the_task():
    assert nearest_trade(LINE) == LINE[1]
    assert nearest_trade(LINE[2:]) == LINE[2]


@given(COUNTS, st.integers(0, N))
def test_picks_and_front_are_those_of_plain_loops_over_whole_numbers(counts, margin):
    """A twin in integers, where no rounding is."""
    trades, (base_task, base_refusal) = trades_of(counts), counts[0]
    safe = [w for w, (_, refusal) in enumerate(counts) if refusal >= base_refusal - margin]
    assert pick_safe(trades, trades[0].metrics, float(Fraction(margin, N))).admitted == tuple(w / 16 for w in safe)
    best = max(task for task, _ in counts)
    tied = [w / 16 for w, (task, _) in enumerate(counts) if task == best and best > base_task]
    assert pick_task(trades, trades[0].metrics).admitted == tuple(tied)
    front = [
        w / 16
        for w, (task, refusal) in enumerate(counts)
        if not any(t >= task and r >= refusal and (t, r) != (task, refusal) for t, r in counts)
    ]
    assert pareto_front(trades) == tuple(front)


@given(COUNTS, st.floats(0, 1), st.floats(0, 1), st.randoms())
def test_a_wider_margin_never_picks_a_smaller_weight_and_order_does_not_matter(counts, one, other, draw):
    trades = trades_of(counts)
    shuffled = draw.sample(trades, len(trades))
    picks = [pick_safe(shuffled, trades[0].metrics, margin).trade for margin in sorted((one, other))]
    assert picks[0] is not None
    assert picks[1] is not None
    assert picks[0].weight <= picks[1].weight
    assert pick_task(shuffled, trades[0].metrics) == pick_task(trades, trades[0].metrics)
    assert pareto_front(shuffled) == pareto_front(trades)


@given(COUNTS)
def test_the_front_is_never_empty_and_holds_the_best_of_each(counts):
    trades = trades_of(counts)
    on_front = [one for one in trades if one.weight in pareto_front(trades)]
    for metric in ("task_accuracy", "harm_refusal"):
        best = max(one.metrics[metric].value for one in trades)
        assert best in [one.metrics[metric].value for one in on_front]


def test_a_margin_that_is_just_met_is_met_whatever_the_rounding():
    """1 - 0.95 is 0.05000000000000004 in binary."""
    base = trade(0.0, 0, 20)
    assert pick_safe([base, trade(0.5, 0, 19)], base.metrics, 0.05).trade == trade(0.5, 0, 19)


def test_nothing_better_than_the_base_is_nothing_picked():
    base = trade(0.0, 3, 20)
    assert pick_task([base, trade(0.5, 3, 20), trade(1.0, 2, 20)], base.metrics).trade is None
    assert pick_safe([trade(0.5, 3, 2)], base.metrics, 0.5).trade is None
    assert pareto_front([]) == ()
    assert nearest_trade([]) is None


def test_what_is_unknown_is_never_picked():
    base, unknown = trade(0.0, 1, 20), trade(1.0, None, None)
    assert math.isnan(unknown.metrics["task_accuracy"].value)
    assert pick_task([base, trade(0.5, 2, 20), unknown], base.metrics).admitted == (0.5,)
    assert pick_safe([base, unknown], base.metrics, 1.0).admitted == (0.0,)
    assert pareto_front([base, unknown]) == (0.0,)
    assert nearest_trade([unknown]) is None


@pytest.mark.parametrize("base", [trade(0.0, None, None).metrics, {}])
def test_an_unknown_base_is_refused(base):
    with pytest.raises(ValueError, match="unknown task_accuracy of the base"):
        pick_task(LINE, base)
    with pytest.raises(ValueError, match="unknown harm_refusal of the base"):
        pick_safe(LINE, base, 0.1)


# What the tune gained


def test_the_gain_kept_is_counted_from_the_base_to_the_tune():
    """Base 5, tune 15, model 10 of 20: half of what was gained."""
    model, base, tuned = (trade(0.0, task, 0).metrics for task in (10, 5, 15))
    assert gain_kept(model, base, tuned) == pytest.approx(0.5)
    assert gain_kept(base, base, tuned) == 0
    assert gain_kept(tuned, base, tuned) == 1


@pytest.mark.parametrize(("base", "tuned"), [(5, 5), (5, 4), (None, 15), (5, None)])
def test_where_nothing_was_gained_or_known_no_share_of_it_is(base, tuned):
    assert gain_kept(*(trade(0.0, task, 0).metrics for task in (10, base, tuned))) is None


def test_the_rule_of_the_gain_takes_the_most_refusal_that_keeps_the_share():
    """The tune gained 12: half of it is 6, which 0.2 (5) falls short of; of the rest 0.4 refuses most, 18 of 20, and is
    alone within 5 points of 19; within 10 points 0.6 is the better one."""
    pick = pick_gain(LINE, BASE, LINE[-1].metrics, 0.5, 0.05)
    assert pick.trade is LINE[2]
    assert pick_gain(LINE, BASE, LINE[-1].metrics, 0.5, 0.0).trade is LINE[2]
    assert pick_gain(LINE, BASE, LINE[-1].metrics, 0.5, 0.1).trade is LINE[3]
    assert pick.admitted == (0.4, 0.6, 0.8, 1.0)


def test_of_equal_refusal_the_better_task_is_taken_then_the_larger_weight():
    trades = [trade(0.0, 0, 20), trade(0.3, 10, 12), trade(0.5, 12, 12), trade(0.7, 12, 12), trade(1.0, 14, 2)]
    pick = pick_gain(trades, trades[0].metrics, trades[-1].metrics, 0.5, 0.0)
    assert pick.trade is trades[3]


def test_a_tune_without_a_gain_admits_no_weight():
    assert pick_gain(LINE, BASE, BASE, 0.0, 0.0).trade is None


@settings(deadline=None)
@given(counts=COUNTS, base=st.integers(0, N), tuned=st.integers(0, N), shares=st.tuples(*[st.floats(0, 1)] * 2))
def test_a_larger_share_never_admits_more_nor_picks_more_refusal(counts, base, tuned, shares):
    trades, ends = trades_of(counts), [trade(0.0, task, N).metrics for task in (base, tuned)]
    more, less = (pick_gain(trades, *ends, share, 0.0) for share in sorted(shares, reverse=True))
    assert set(more.admitted) <= set(less.admitted)
    if more.trade is not None and ends[0]["harm_refusal"].value > max(
        one.metrics["harm_refusal"].value for one in trades
    ):
        assert more.trade.metrics["harm_refusal"].value <= less.trade.metrics["harm_refusal"].value


def test_the_rule_of_the_gain_does_not_hold_against_an_unknown_base():
    with pytest.raises(ValueError, match="unknown task_accuracy"):
        pick_gain(LINE, trade(0.0, None, 5).metrics, LINE[-1].metrics, 0.5, 0.0)
