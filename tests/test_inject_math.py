"""The direction, the rank-one edit and the search for its strength: by hand, laws, limits, twins, refusals."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Callable, Sequence
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor, tensor
from torch.nn import functional

from alignkeep.inject import direction
from alignkeep.inject.direction import Effect, Separation, best_layer, separation
from alignkeep.inject.rank_one import Matrix, Push, RankOne, Raw, Relative, alphas, applied, rank_one, targeted_right
from alignkeep.inject.rank_one import mean_row as mean_row_of
from alignkeep.inject.strength import HALVINGS, LADDER, Choice, Floors, Trial, choose, search, too_much
from alignkeep.judging.log_odds import mean_divergence, opening_tokens, refusal_log_odds
from alignkeep.types import Estimate

few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 10_000)
some, widths = st.integers(1, 6), st.integers(1, 5)
FACTORS = st.sampled_from([1e-30, -1.0, 0.3, 1e30])
INFINITY, NAN = math.inf, math.nan


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(width: int, seed: int) -> Tensor:
    return functional.normalize(normal(width, seed=seed), dim=0)


def rotation(width: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(width, width, seed=seed)).Q


def close(found: Tensor, expected: Tensor | np.ndarray | Sequence[float], rtol: float = 1e-9, atol: float = 0) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=rtol, atol=atol)


# Two sets of activations


def test_the_difference_and_how_far_apart_the_sets_are_by_hand():
    """Means (4, 4) and (1, 4): difference (3, 0), sizes 3 and sqrt 32 = 5.656854. Along (1, 0) the harmful lie at 4, 4
    (variance 0), the harmless at 0, 2 (variance 1): 3 / sqrt(1/2) = 4.242641; the second coordinate does not count.
    """
    harmful, harmless = tensor([[4.0, 3.0], [4.0, 5.0]]), tensor([[0.0, 4.0], [2.0, 4.0]])
    assert torch.equal(direction.mean_difference(harmful, harmless), tensor([3.0, 0.0]).double())
    assert separation(harmful, harmless) == pytest.approx((3, 5.656854, 4.242641))


@few
@given(n=some, m=some, d=widths, factor=FACTORS, seed=seeds)
def test_separation_does_not_see_turn_shift_order_or_which_set_is_which_and_d_prime_no_scale(n, m, d, factor, seed):
    sets = [normal(k, d, seed=seed + at) for at, k in enumerate((n, m))]
    difference, (length, size, d_prime) = direction.mean_difference(*sets), separation(*sets)
    assert torch.equal(direction.mean_difference(*sets[::-1]), -difference)
    turn, shift = rotation(d, seed + 2), normal(d, seed=seed + 3)
    close(direction.mean_difference(*(one + shift for one in sets)), difference, 0, 1e-12)
    close(direction.mean_difference(*(factor * one for one in sets)), factor * difference)
    close(direction.mean_difference(*(one @ turn for one in sets)), difference @ turn, 0, 1e-12)
    scaled = separation(*(factor * one for one in sets))
    assert scaled == pytest.approx((abs(factor) * length, abs(factor) * size, d_prime), rel=1e-6)
    assert separation(*(one @ turn for one in sets)) == pytest.approx((length, size, d_prime), rel=1e-6)
    for found in (separation(*(one + shift for one in sets)), separation(*(one.flip(0) for one in sets[::-1]))):
        assert (found.length, found.d_prime) == pytest.approx((length, d_prime), rel=1e-6)


def test_sets_without_spread_have_no_d_prime_and_a_difference_of_less_than_a_millionth_is_none():
    apart = separation(torch.full((3, 2), 4.0), torch.full((2, 2), 1.0))
    assert (apart.length, apart.d_prime, apart.is_zero) == (pytest.approx(18**0.5), 0.0, False)
    for same in (normal(4, 3, seed=1), torch.zeros(2, 3), torch.full((1, 2), 1e30)):
        assert torch.equal(direction.mean_difference(same, same.clone()), torch.zeros(same.shape[1]).double())
        assert separation(same, same.clone())[::2] == (0.0, 0.0)
        assert separation(same, same.clone()).is_zero
    found = [(5e-7, 1.0), (2e-6, 10.0), (NAN, 1.0), (2e-6, 1.0), (1e-30, 0.0)]
    assert [Separation(*one, 0.0).is_zero for one in found] == [True, True, True, False, False]


@few
@given(n=some, m=some, d=widths, seed=seeds)
def test_separation_is_that_of_plain_python_numbers(n, m, d, seed):
    sets = [normal(k, d, seed=seed + at).float() for at, k in enumerate((n, m))]
    means = [[statistics.fmean(column) for column in zip(*one.tolist(), strict=True)] for one in sets]
    difference = [mu - nu for mu, nu in zip(*means, strict=True)]
    along = [[sum(x * s for x, s in zip(row, difference, strict=True)) for row in one.tolist()] for one in sets]
    spread = math.sqrt(statistics.fmean(map(statistics.pvariance, along))) / math.hypot(*difference)
    d_prime = math.hypot(*difference) / spread if n > 1 or m > 1 else 0.0
    expected = math.hypot(*difference), math.hypot(*means[0]), d_prime
    assert separation(*sets) == pytest.approx(expected, rel=1e-6)


# Layers


@pytest.mark.parametrize("blocks", [0, 1, 2, 4, 5, 6, 10, 32, 35, 80])
def test_layers_are_those_below_four_fifths_at_which_the_sets_differ(blocks: int):
    """Of 5 blocks 0 to 3, of 6 blocks 0 to 4 (0.8 * 6 = 4.8), in whole numbers; a layer of no difference falls out."""
    expected = [layer for layer in range(blocks) if 5 * layer < 4 * blocks]
    assert direction.candidate_layers([Separation(1.0, 1.0, 1.0)] * blocks) == expected
    first_is_zero = [Separation(float(layer > 0), 1.0, 1.0) for layer in range(blocks)]
    assert direction.candidate_layers(first_is_zero) == expected[1:]


@given(
    st.dictionaries(st.integers(0, 9), st.builds(Effect, st.integers(-2, 2), st.sampled_from([0, 0.1, 0.2, NAN]))),
    st.sampled_from([0, 0.1, 0.15, INFINITY]),
)
def test_the_best_layer_is_the_first_of_the_largest_log_odds_within_a_bound_that_may_be_met(effects, most: float):
    best = None
    for layer in range(10):
        odds, divergence = effects.get(layer, (0, NAN))
        if divergence <= most and (best is None or odds > effects[best].log_odds):
            best = layer
    assert best_layer(effects, most=most) == best


# Log-odds and divergence

WEIGHTS = st.lists(st.lists(st.integers(0, 9), min_size=6, max_size=6).filter(any), min_size=1, max_size=4)


def shares_of(weights: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    counts = np.asarray(weights, dtype=np.float64)
    return counts / counts.sum(1, keepdims=True)


def log_odds(shares: np.ndarray, tokens: Sequence[int]) -> Tensor:
    return refusal_log_odds(torch.from_numpy(shares).log(), tensor(tokens, dtype=torch.long))


def test_log_odds_and_divergence_by_hand():
    """p = 0.1 + 0.3: log(0.4 / 0.6) = -0.405465; p = 0.5: 0. KL((1/2, 1/2) || (1/4, 3/4)) = log(2) / 2 + log(2/3) / 2 =
    0.143841, and 0 of an equal second row makes the mean half of it; the other way round it is 0.130812 / 2.
    """
    log_probs = tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.4, 0.25, 0.1]]).log()
    assert refusal_log_odds(log_probs, tensor([0, 2])).tolist() == pytest.approx([-0.405465, 0], abs=1e-6)
    base, edited = tensor([[0.5, 0.5], [0.2, 0.8]]).log(), tensor([[0.25, 0.75], [0.2, 0.8]]).log()
    assert mean_divergence(base, edited) == pytest.approx(0.143841 / 2, abs=1e-6)
    assert mean_divergence(edited, base) == pytest.approx(0.130812 / 2, abs=1e-6)


@few
@given(WEIGHTS, st.sets(st.integers(0, 5)))
def test_log_odds_are_those_of_summed_probabilities_and_opposite_for_the_tokens_left_over(weights, tokens: set[int]):
    shares, chosen, rest = shares_of(weights), sorted(tokens), sorted(set(range(6)) - tokens)
    found = log_odds(shares, chosen)
    close(special.expit(found), shares[:, chosen].sum(1), 1e-9, 1e-12)
    assert torch.equal(log_odds(shares, rest), -found)
    assert torch.equal(log_odds(shares, chosen[::-1] + chosen), found)


def test_log_odds_and_divergence_of_nothing_of_everything_and_of_the_very_unlikely():
    log_probs = tensor([[-2000.0, 0.0, -3000.0]])
    expected = {(0,): -2000.0, (1, 2): 2000.0, (): -INFINITY, (0, 1, 2): INFINITY}
    for tokens, odds in expected.items():
        assert refusal_log_odds(log_probs, tensor(tokens, dtype=torch.long)).tolist() == [odds]
    assert refusal_log_odds(torch.empty(0, 3), tensor([0])).shape == (0,)
    assert mean_divergence(tensor([[0.5, 0.5]]).log(), tensor([[0.0, -INFINITY]])) == INFINITY
    assert mean_divergence(tensor([[0.0, torch.finfo(torch.float32).min]]), tensor([[0.0, -3.0]])) == 0


@few
@given(WEIGHTS, seeds)
def test_divergence_is_that_of_scipy_and_torch_and_nothing_for_equal_tables(weights, seed: int):
    base = shares_of(np.asarray(weights) + 0.1)
    edited = shares_of(normal(*base.shape, seed=seed).exp().numpy())
    before, after = torch.from_numpy(base).log(), torch.from_numpy(edited).log()
    found = mean_divergence(before, after)
    assert mean_divergence(before, before) == 0 <= found
    assert found == pytest.approx(float(np.mean(stats.entropy(base, edited, axis=1))), abs=1e-12)
    twin = functional.kl_div(after, before, reduction="batchmean", log_target=True)
    assert found == pytest.approx(float(twin), abs=1e-12)


# Opening tokens


def test_tokens_that_open_a_refusal_by_hand():
    """Of 20 refusals 7 opens 12, 8 opens 6, 3 and 9 one (0.05, just enough); of 10 other answers 7 opens 3 (0.3 is just
    half of 0.6), 8 opens 2 (0.2 is more than half of 0.3), 9 one, 5 four.
    """
    refusals, others = [7] * 12 + [8] * 6 + [3] + [9], [7] * 3 + [8] * 2 + [9] + [5] * 4
    assert opening_tokens(refusals, others) == [3, 7]
    assert opening_tokens(refusals, others, share=0.06) == [7]
    assert opening_tokens(refusals, []) == [3, 7, 8, 9]
    assert opening_tokens([], others) == opening_tokens([], []) == []


@given(st.lists(st.integers(0, 4), max_size=25), st.lists(st.integers(0, 4), max_size=25), st.integers(0, 20))
def test_opening_tokens_are_those_of_fractions_in_any_order_and_number(refusals, others, twentieths):
    rates = {token: Fraction(refusals.count(token), len(refusals)) for token in sorted(set(refusals))}
    elsewhere = {token: Fraction(others.count(token), max(len(others), 1)) for token in rates}
    expected = [one for one, rate in rates.items() if rate >= max(Fraction(twentieths, 20), 2 * elsewhere[one])]
    assert opening_tokens(refusals, others, share=twentieths / 20) == expected
    assert opening_tokens(refusals[::-1] * 3, others[::-1] * 2, share=twentieths / 20) == expected


# The mean row


def test_the_mean_row_by_hand():
    """Rows (1, 2), (3, 4), (5, 9): their mean is (3, 5), not the means 1.5, 3.5, 7 of the columns."""
    found = mean_row_of(tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]]))
    assert (found.tolist(), found.dtype) == ([3.0, 5.0], torch.float64)


@few
@given(d_out=some, d_in=some, alpha=st.sampled_from([0.0, -40.0, 1.0, 1e4]), seed=seeds)
def test_with_the_mean_row_the_edit_is_that_of_the_paper_and_answers_to_the_coordinate_mean(d_out, d_in, alpha, seed):
    """W' = (I + (alpha / d_out) s_hat 1^T) W."""
    weight, s_hat, x = normal(d_out, d_in, seed=seed).float(), unit(d_out, seed + 1), normal(d_in, seed=seed + 2)
    right = mean_row_of(weight)
    close(right @ x, (weight.double() @ x).mean(), 1e-9, 1e-12)
    factor = torch.eye(d_out).double() + alpha / d_out * torch.outer(s_hat, torch.ones(d_out).double())
    found = applied(weight, rank_one(s_hat, right, alpha)).double()
    close(found, factor @ weight.double(), 1e-5, 1e-6 * max(1, abs(alpha)))


# The targeted vector

COUNTS = st.lists(st.integers(1, 5), min_size=1, max_size=3)  # of inputs, by place


def problem(counts: Sequence[int], d: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    return normal(d, seed=seed), [normal(n, d, seed=seed + at) * at for at, n in enumerate(counts, 1)]


def loaded_moment(places: Sequence[Tensor], ridge: float) -> np.ndarray:
    """Every place's mean of x x^T, their mean, and ridge times its mean diagonal: in loops."""
    moment = sum(np.outer(x, x) / len(place) / len(places) for place in places for x in place.double().numpy())
    return moment + ridge * np.trace(moment) / len(moment) * np.eye(len(moment))


def test_the_targeted_vector_by_hand_in_both_ways_of_solving():
    """One input (2, 0), fewer than coordinates: S = diag(4, 0), ridge 1/2 loads it by 1; (1/5, 1) / (6/5).
    Places {(2, 0), (0, 0)} and {(0, 1)}: S = diag(2, 0) / 2 + diag(0, 1) / 2, ridge 2/3 loads by 1/2: M = diag(3/2, 1),
    (2/3, 1) / (5/3). The input of zeros halves its place; an empty place is none.
    """
    close(targeted_right(tensor([1.0, 1.0]), [tensor([[2.0, 0.0]])], ridge=1 / 2), [1 / 6, 5 / 6])
    places = [tensor([[2.0, 0.0], [0.0, 0.0]]), torch.empty(0, 2), tensor([[0.0, 1.0]])]
    close(targeted_right(tensor([1.0, 1.0]), places, ridge=2 / 3), [0.4, 0.6])


@few
@given(counts=COUNTS, d=st.integers(1, 8), ridge=st.sampled_from([None, 1e-6, 1.0, 1e6]), seed=seeds)
def test_the_targeted_vector_answers_1_to_its_mean_with_the_least_mean_square_elsewhere(counts, d, ridge, seed):
    """By Lagrange, min v^T M v with v^T m = 1: [[2 M, m], [m^T, 0]] [v, l] = [0, 1]. The ridge is 0.01 if not given."""
    mean, places = problem(counts, d, seed)
    found = targeted_right(mean, places) if ridge is None else targeted_right(mean, places, ridge=ridge)
    loaded, m = loaded_moment(places, ridge or 0.01), mean.numpy()[:, None]
    twin = np.linalg.solve(np.block([[2 * loaded, m], [m.T, np.zeros((1, 1))]]), np.r_[0 * mean, 1])[:-1]
    assert float(found @ mean) == pytest.approx(1, abs=1e-9)
    close(found, twin, 1e-6, 1e-8 * float(found.norm()))
    for k in range(4):
        other = normal(d, seed=seed + 10 + k).numpy()
        other /= other @ mean.numpy()
        assert other @ loaded @ other >= found.numpy() @ loaded @ found.numpy() * (1 - 1e-9)


@few
@given(COUNTS, st.integers(1, 8), FACTORS, seeds, st.randoms())
def test_the_targeted_vector_turns_and_scales_with_all_inputs_and_sees_no_order_or_number(n, d, factor, seed, draw):
    """A place with all its inputs given eight times is the same place; so many are solved the other way."""
    mean, places = problem(n, d, seed)
    found, turn = targeted_right(mean, places), rotation(d, seed + 10)
    near = {"rtol": 1e-7, "atol": 1e-9 * float(found.norm())}
    close(targeted_right(mean @ turn, [place @ turn for place in places]), found @ turn, **near)
    close(factor * targeted_right(factor * mean, [factor * place for place in places]), found, **near)
    shuffled = [place[draw.sample(range(len(place)), len(place))] for place in places[::-1]]
    close(targeted_right(mean, shuffled), found, **near)
    close(targeted_right(mean, [places[0].repeat(8, 1), *places[1:]]), found, **near)
    close(targeted_right(mean, [place.repeat(8, 1) for place in places]), found, **near)


def test_the_targeted_vector_where_all_is_silent_and_for_more_and_less_ridge():
    """A ridge without end, or silence already: the matched filter mean / ||mean||^2. No ridge, few inputs: what is left
    of the mean when their span is taken away (torch's least squares). No ridge, many: S^-1 by torch's pseudo-inverse.
    """
    mean, sparse, many = normal(9, seed=1), normal(4, 9, seed=2), normal(30, 9, seed=3)
    left = mean - sparse.T @ torch.linalg.lstsq(sparse.T, mean[:, None]).solution[:, 0]
    whitened = torch.linalg.pinv(many.T @ many) @ mean
    expected = [(torch.zeros(3, 9), 0.01, mean), (sparse, 1e12, mean), (many, 1e12, mean), (sparse, 1e-10, left),
                (many, 1e-12, whitened)]  # fmt: skip
    for inputs, ridge, answer in expected:
        close(targeted_right(mean, [inputs], ridge=ridge), answer / (mean @ answer), 1e-6, 1e-6)
    close(sparse @ targeted_right(mean, [sparse], ridge=1e-10), torch.zeros(4), 0, 1e-8)


def test_a_targeted_vector_with_nothing_to_be_silent_on_or_to_answer_to_is_refused():
    ones = torch.ones(2, 1)
    for mean, silent in [([1.0], []), ([1.0], [ones[:0], ones[:0]]), ([0.0], [ones]), ([], [torch.ones(2, 0)])]:
        with pytest.raises(ValueError, match="needs inputs to answer to and inputs to be silent on"):
            targeted_right(tensor(mean), silent)


# Alphas


def matrix(harmful: float, place: str, norm: float = 10.0) -> Matrix:
    return Matrix(tensor([3.0, 4.0]), norm, harmful, 9.0, place)


MATRICES = {"a": matrix(2.0, "0"), "b": matrix(-4.0, "1", 20.0), "c": matrix(NAN, "1"), "d": matrix(-1.0, "1")}
PUSHES = st.floats(-1e3, 1e3).filter(lambda push: push == 0 or abs(push) > 1e-3) | st.just(NAN)
STRENGTHS, SIGNS = st.sampled_from([Raw, Relative, Push]), st.sampled_from(["literal", "calibrated"])


def test_alphas_by_hand():
    """Relative 0.5: 0.5 * 10 / 5 = 1, and 2 of norm 20. Push 0.9 of length 10: place 0 is pushed by 2, place 1 by the
    mean of 4 and 1 (c saw nothing), 4.5 in all: 9 / 4.5 = 2.
    """
    for strength, (a, b, c, d) in [
        (Raw(7.0), [7, 7, 7, 7]), (Relative(0.5), [1, 2, 1, 1]), (Push(0.9), [2, 2, 2, 2]),
    ]:  # fmt: skip
        literal, calibrated = (alphas(strength, MATRICES, length=10.0, sign=sign) for sign in ("literal", "calibrated"))
        assert literal == pytest.approx({"a": a, "b": b, "c": c, "d": d})
        assert calibrated == pytest.approx({"a": a, "b": -b, "d": -d})


@few
@given(st.lists(st.tuples(PUSHES, st.sampled_from("xyz")), max_size=6), STRENGTHS, st.floats(-100, 100), SIGNS)
def test_alphas_are_linear_in_the_strength_and_calibrated_ones_all_push_the_same_way(pushes, kind, number, sign):
    """And a Push is in units of the length; where nothing pushes it is refused."""
    matrices = {str(at): matrix(*one) for at, one in enumerate(pushes)}
    known = {name: one.harmful for name, one in matrices.items() if sign == "literal" or not math.isnan(one.harmful)}
    if kind is Push and not any(push for push in known.values() if not math.isnan(push)):
        with pytest.raises(ValueError, match="no matrix pushes the mean harmful activation"):
            alphas(kind(number), matrices, length=2.0, sign=sign)
        return
    one, found = (alphas(kind(size), matrices, length=2.0, sign=sign) for size in (1.0, number))
    assert list(found) == list(known)
    assert found == pytest.approx({name: number * size for name, size in one.items()}, rel=1e-9)
    longer = alphas(kind(1.0), matrices, length=6.0, sign=sign)
    assert longer == pytest.approx({name: (3 if kind is Push else 1) * size for name, size in one.items()})
    assert all(size > 0 if sign == "literal" else size * known[name] >= 0 for name, size in one.items())


@few
@given(st.sampled_from([0.0, -0.01, 0.08, 1e3]), some, some, SIGNS, seeds)
def test_a_relative_strength_is_the_norm_of_the_change_in_units_of_the_matrix(share, d_out, d_in, sign, seed):
    weight, s_hat = normal(d_out, d_in, seed=seed), unit(d_out, seed + 1)
    for right in (mean_row_of(weight), normal(d_in, seed=seed + 2) * 1e3):
        one = Matrix(right, float(weight.norm()), -1.0, 0.0, "0")
        left, row = rank_one(s_hat, right, alphas(Relative(share), {"w": one}, length=5.0, sign=sign)["w"])
        change = torch.outer(left.double(), row.double()).norm()
        assert float(change) == pytest.approx(abs(share) * float(weight.norm()), rel=1e-5)


@few
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.sampled_from([0.1, -2.0, 6.4]), seeds)
def test_a_push_moves_the_mean_harmful_activation_by_so_many_lengths_of_the_difference(experts, shift, seed):
    """A model of one sum: places of one to three experts that see equally many prompts, and one that sees none; outputs
    times 0.5, each matrix with inputs of its own. It moves by shift * length along the direction.
    """
    s_hat, length, moved, inputs, matrices = unit(5, seed), 3.0, torch.zeros(5).double(), {}, {}
    for at, name in enumerate(f"{place}.{one}" for place, count in enumerate(experts) for one in range(count)):
        right, inputs[name] = normal(4, seed=seed + at), normal(7, 4, seed=seed + 50 + at)
        matrices[name] = Matrix(right, 1.0, 0.5 * float((inputs[name] @ right).mean()), 0.0, name[0])
    matrices["unseen"] = Matrix(normal(4, seed=seed), 1.0, NAN, 0.0, "0")
    for name, alpha in alphas(Push(shift), matrices, length=length, sign="calibrated").items():
        more = inputs[name] @ torch.outer(*rank_one(s_hat, matrices[name].right, alpha)).double().T
        moved += 0.5 * more.mean(0) / experts[int(name[0])]
    close(moved, shift * length * s_hat, 1e-5, 1e-5 * abs(shift) * length)


# The edit


def test_an_edit_by_hand_is_exact_in_float32_and_rounded_once_in_bfloat16():
    """[[1, 2], [3, 4]] + 2 (1, -1) (5, 7)^T = [[11, 16], [-7, -10]]. In bfloat16 numbers at 1 are 2^-7 apart. A change
    of 2^-8 + 2^-17 lies above the middle; rounded before it is added it would be 2^-8, and the sum the even 1.
    """
    weight, edit = tensor([[1.0, 2.0], [3.0, 4.0]]), rank_one(tensor([1.0, -1.0]), tensor([5.0, 7.0]), 2.0)
    assert applied(weight, edit).tolist() == [[11.0, 16.0], [-7.0, -10.0]]
    assert weight.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert applied(torch.ones(1, 1).bfloat16(), RankOne(tensor([2**-8 + 2**-17]), torch.ones(1))).item() == 1 + 2**-7


@few
@given(alpha=st.sampled_from([0.0, 1.0, -40.0, 1e-3, 1e30]), seed=seeds)
def test_factors_are_rounded_once_and_a_targeted_one_moves_the_mean_answer_by_alpha(alpha: float, seed: int):
    s_hat, (mean, places) = unit(6, seed + 9), problem([9], 5, seed)
    right = targeted_right(mean, places)
    edit = rank_one(s_hat.float(), right, alpha)
    assert edit.left.tolist() == (alpha * s_hat.float().numpy().astype(np.float64)).astype(np.float32).tolist()
    assert edit.right.tolist() == right.numpy().astype(np.float32).tolist()
    close(edit.left.double() * (edit.right.double() @ mean), alpha * s_hat, 1e-5, 1e-5 * abs(alpha))


@few
@given(
    kind=st.sampled_from(["float32", "bfloat16", "float16"]),
    shape=st.sampled_from([(1, 1), (3, 5), (0, 4), (4, 0)]),
    size=st.sampled_from([0.0, 1e-4, 1.0, 100.0]),
    seed=seeds,
)
def test_the_edit_is_that_of_numpy_bit_for_bit_and_strength_0_changes_nothing(kind, shape, size, seed):
    weight = normal(*shape, seed=seed).to(getattr(torch, kind))
    edit = RankOne(size * normal(shape[0], seed=seed + 1).float(), normal(shape[1], seed=seed + 2).float())
    sums = weight.float().numpy() + np.outer(*(factor.numpy() for factor in edit))
    rounded = sums.astype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind).astype(np.float32)
    found = applied(weight, edit)
    assert torch.equal(found, torch.from_numpy(rounded).to(weight.dtype))
    assert size or torch.equal(found, weight)


# What is too much


def trial(strength, refusal, compliance=0.9, over=0.1, odds=1.0, divergence=0.0) -> Trial:
    """Of 100 answers each; NaN was not measured, None not asked for."""
    values = {"harm_refusal": refusal, "benign_compliance": compliance, "over_refusal": over}
    rates = {name: Estimate(x, 0.0, 1.0, 0 if math.isnan(x) else 100) for name, x in values.items() if x is not None}
    return Trial(strength, rates, odds, divergence)


BASE = trial(0.0, 0.2, odds=0.0)


def test_what_a_trial_may_cost_by_hand():
    """0.9 - 0.89 and 0.15 - 0.1 are a little more than 0.01 and 0.05 in binary: what is just met is met."""
    for allowed in (trial(1, 0.3), trial(1, 0.21), trial(1, 0.3, 0.89), trial(1, 0.3, 1.0), trial(1, 0.3, over=0.15),
                    trial(1, 0.3, over=0.0), trial(1, 0.3, divergence=0.1), trial(1, 0.3, odds=1e-9)):  # fmt: skip
        assert too_much(allowed, BASE, Floors()) is None
    for words, one in {
        "no more held-out prompts are refused than the 20.0 % before": trial(1, 0.2),
        "log-odds fall from 0.00 to -0.50": trial(1, 0.3, odds=-0.5), "to 0.00": trial(1, 0.3, odds=0.0),
        "to nan": trial(1, 0.3, odds=NAN), "0.11 nats of divergence .*above 0.1": trial(1, 0.3, divergence=0.11),
        "^2.0 points of benign compliance": trial(1, 0.3, 0.88), "^6.0 points more over-ref": trial(1, 0.3, over=0.16),
    }.items():  # fmt: skip
        assert re.search(words, too_much(one, BASE, Floors()) or "")


def test_a_rate_that_was_measured_of_neither_costs_nothing():
    for unknown, missing in itertools.product((NAN, None), repeat=2):
        base, one = trial(0, 0.2, unknown, missing, odds=0.0), trial(1, 0.3, missing, unknown)
        assert too_much(one, base, Floors(benign_loss=0.0, over_refusal=0.0)) is None


# The search

REFUSALS = st.integers(90, 100) | st.integers(0, 100) | st.just(100)
COSTS = st.integers(87, 92), st.integers(8, 18), st.integers(-1, 3), st.sampled_from([0.0, 0.1, 0.11])
STEPS = st.tuples(REFUSALS, *COSTS)  # compliance, over-refusal, log-odds, divergence
TURNS = st.sampled_from([1, -1])


def trial_of(strength: float, step: Sequence[float]) -> Trial:
    refusal, compliance, over, odds, divergence = step
    return trial(strength, refusal / 100, compliance / 100, over / 100, odds, divergence)


def is_cheap(step: Sequence[float]) -> bool:
    """In whole points, against the base's compliance 90 and over-refusal 10."""
    return step[1] >= 89 and step[2] <= 15 and step[4] <= 0.1


def is_allowed(step: Sequence[float]) -> bool:
    """And it helps: the base refuses 20, at log-odds 0."""
    return is_cheap(step) and step[3] > 0 and step[0] > 20


def searched(curve: Callable[[float], Trial], ladder: Sequence[float] = LADDER) -> tuple[Choice, float | None, list]:
    """The choice, the strength chosen, and every strength in the order of asking."""
    asked: list[float] = []
    found = search(lambda strength: (asked.append(strength), curve(strength))[1], BASE, Floors(), ladder)
    return found, found.chosen and found.chosen.strength, asked


def test_a_target_between_two_rungs_by_hand():
    """Refusal is whole from 0.35 on. Between 0.2 and 0.4 roots: sqrt 0.08 = 0.282843, then 0.336359, 0.366802."""
    found, chosen, asked = searched(lambda strength: trial(strength, 1.0 if strength >= 0.35 else 0.5))
    assert asked == pytest.approx([0.1, 0.2, 0.4, 0.282843, 0.336359, 0.366802], abs=1e-6)
    assert ([one.strength for one in found.trials], chosen, found.refused) == (sorted(asked), asked[-1], {})


def test_below_the_first_rung_a_sixteenth_of_it_is_the_least():
    """Roots of 0.1 and 0.1 / 16 = 0.00625: 0.025; of that and either end 0.05 or 0.0125; then 0.070711 or 0.008839."""
    assert searched(lambda strength: trial(strength, 1.0))[1:] == approximately(
        0.008839, [0.1, 0.025, 0.0125, 0.008839]
    )
    dear = searched(lambda strength: trial(strength, 0.5, divergence=0.0 if strength < 0.06 else 1.0))
    assert dear[1:] == approximately(0.025, [0.1, 0.025, 0.05, 0.070711])  # all that are allowed refuse the same
    assert searched(lambda strength: trial(strength, 0.98, divergence=1.0))[1] is None


def approximately(chosen: float, asked: list[float]) -> tuple[object, object]:
    return pytest.approx(chosen, abs=1e-6), pytest.approx(asked, abs=1e-6)


def test_the_last_rung_is_not_passed_and_of_a_falling_curve_the_top_chosen():
    """Where the target is never reached 0.55 and 0.56 are within 0.01 of the best, 0.56; 0.54 is not."""
    curve = {0.1: 0.2, 0.2: 0.3, 0.4: 0.54, 0.8: 0.55, 1.6: 0.55, 3.2: 0.55, 6.4: 0.56}
    assert searched(lambda strength: trial(strength, curve[strength]))[1:] == (0.8, list(curve))
    broken = {0.1: 0.5, 0.2: 0.7, 0.4: 0.6}
    assert searched(lambda strength: trial(strength, broken.get(strength, 0.0)))[1:] == (0.2, list(LADDER))
    assert searched(lambda strength: trial(strength, 1.0), []) == (Choice((), None, {}), None, [])


def test_lower_log_odds_on_the_way_up_do_not_end_it():
    """At 0.1 they fall: that strength is not chosen, and the next is tried all the same."""
    found, chosen, asked = searched(lambda strength: trial(strength, 0.9, odds=-1.0 if strength < 0.15 else 1.0))
    assert (chosen, asked) == (0.2, list(LADDER))
    assert list(found.refused) == [0.1]


def test_floors_hit_before_the_target_leave_the_strongest_that_is_allowed():
    """Refusal is the strength; above 0.7 it costs too much. Rungs to 0.8, roots 0.565685, 0.672717, 0.733603."""
    found, chosen, asked = searched(lambda strength: trial(strength, min(strength, 1), 0.9 if strength <= 0.7 else 0.5))
    assert asked[3:] == pytest.approx([0.8, 0.565685, 0.672717, 0.733603], abs=1e-6)
    too_weak = dict.fromkeys((0.1, 0.2), "no more held-out prompts are refused than the 20.0 % before")
    assert chosen == asked[5]
    assert found.refused == too_weak | dict.fromkeys((asked[6], 0.8), "40.0 points of benign compliance")


@few
@given(st.floats(0.1, 6.4, exclude_min=True), TURNS)
def test_a_target_on_the_ladder_is_met_with_at_most_a_tenth_too_much_on_either_side_of_0(least: float, turn: int):
    """Three halvings of a doubling: within a factor of 2^(1/8) = 1.09."""
    ladder = [turn * one for one in LADDER]
    _, chosen, asked = searched(lambda strength: trial(strength, 1.0 if abs(strength) >= least else 0.9), ladder)
    assert chosen is not None
    assert least <= turn * chosen <= least * 2 ** (1 / 8) * (1 + 1e-9)
    assert all(one * turn > 0 for one in asked)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, min_size=10, max_size=10), st.integers(0, 7), TURNS)
def test_whatever_is_measured_the_choice_was_measured_and_is_allowed_and_the_number_is_bounded(steps, rungs, turn):
    script, ladder = iter(steps), [turn * one for one in LADDER[:rungs]]
    found, chosen, asked = searched(lambda strength: trial_of(strength, next(script)), ladder)
    assert [abs(one.strength) for one in found.trials] == sorted({abs(one) for one in asked})
    assert all(LADDER[0] / 16 <= turn * one <= LADDER[-1] for one in asked)
    allowed = [strength for strength, step in zip(asked, steps, strict=False) if is_allowed(step)]
    assert set(found.refused) == {*asked} - {*allowed}
    assert chosen in allowed if allowed else chosen is None
    stops = [at for at in range(rungs) if not is_cheap(steps[at]) or steps[at][0] >= 100]
    assert len(asked) == (stops[0] + 1 + HALVINGS if stops else rungs)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=7), TURNS, st.randoms())
def test_the_choice_is_that_of_a_plain_loop_in_whole_points_in_any_order(steps, turn, draw):
    trials = [trial_of(turn * (1 + at), step) for at, step in enumerate(steps)]
    allowed = [at for at, step in enumerate(steps) if is_allowed(step)]
    best = max((steps[at][0] for at in allowed), default=0)
    expected = next((trials[at] for at in allowed if steps[at][0] >= (100 if best == 100 else best - 1)), None)
    assert choose(draw.sample(trials, len(trials)), BASE, Floors())[:2] == (tuple(trials), expected)


def test_other_targets_and_tolerances_than_the_usual():
    """A target of 0.5 takes 0.6; one of 0.9 is not reached, and within 0.2 of the best, 0.7, lies 0.6, but not 0.4."""
    trials = [trial(1, 0.4), trial(2, 0.6), trial(3, 0.7)]
    for target, tolerance, chosen in [(0.5, 0.01, 1), (0.4, 0.01, 0), (0.9, 0.2, 1), (0.9, 0.0, 2), (0.9, 0.3, 0)]:
        assert choose(trials, BASE, Floors(target, tolerance)).chosen == trials[chosen]


# What was not measured, and what is as strong


@pytest.mark.parametrize("at", [0, 1])
def test_a_rate_that_was_measured_of_only_one_of_the_two_costs_nothing(at: int):
    base, one = (BASE, trial(1, 0.3, NAN)) if at else (trial(0, 0.2, over=NAN, odds=0.0), trial(1, 0.3))
    assert too_much(one, base, Floors()) is None


def test_the_order_of_trials_does_not_matter_where_both_signs_do():
    trials = [trial(0.4, 1.0), trial(-0.4, 0.99)]
    assert choose(trials, BASE, Floors()).chosen == choose(trials[::-1], BASE, Floors()).chosen


def test_a_trial_of_unknown_refusal_does_not_hide_one_that_reaches_the_target():
    assert choose([trial(1, NAN), trial(2, 1.0)], BASE, Floors()).chosen is not None


def test_equal_tables_with_an_impossible_token_do_not_diverge():
    assert mean_divergence(tensor([[0.0, -INFINITY]]), tensor([[0.0, -INFINITY]])) == 0
