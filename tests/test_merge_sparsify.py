"""Sparsified task vectors and their election: by hand, laws, limits, twins, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkeep.merge.method import merge_tensor
from alignkeep.merge.pieces import Whole
from alignkeep.merge.sparsify import Magnitude, Outliers, Random, RankedRandom, Sparsifier, draws, row_ranks
from alignkeep.merge.task_vectors import SparseTaskVectors, TaskVectors

SHARES = st.floats(0, 1)
# Votes of subnormal size can cancel to 0, which elects +: the law says "sums of 0 aside".
WEIGHTS = st.floats(-2, 2).filter(lambda weight: weight == 0 or abs(weight) > 1e-30)
# Few different magnitudes, so that ties are the rule; and the edges of float32.
ENTRIES = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([0.0, -0.0, 1e-45, -1e-38, 1.5, 3e38, -3e38]))
VECTORS = st.lists(ENTRIES, max_size=12).map(torch.tensor).map(Tensor.float)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sparsified(sparsifier: Sparsifier, update: Tensor) -> Tensor:
    """The update as it is merged into a base of zeros."""
    return merge_tensor(TaskVectors((1.0,), (sparsifier,)), "w", torch.zeros_like(update), [update])


def voted(*deltas: list[float], weights: tuple[float, ...] | None = None, **settings: object) -> list[float]:
    tuned = [torch.tensor(delta) for delta in deltas]
    method = TaskVectors(weights or (1.0,) * len(tuned), (None,) * len(tuned), **settings)  # type: ignore[arg-type]
    return merge_tensor(method, "w", torch.zeros_like(tuned[0]), tuned).tolist()


# By hand


def test_the_largest_are_kept_and_of_equal_ones_the_first():
    """Half of eight is four: 3, -3, 2 and the first of three entries of size 1; int(0.3 * 4) = 1; at least one."""
    update = torch.tensor([0.0, 3.0, 1.0, -3.0, -1.0, 2.0, 1.0, 0.5])
    assert sparsified(Magnitude(0.5), update).tolist() == [0, 3, 1, -3, 0, 2, 0, 0]
    assert sparsified(Magnitude(0.3), torch.tensor([1.0, -1.0, 1.0, 1.0])).tolist() == [1, 0, 0, 0]
    assert sparsified(Magnitude(0.01), torch.tensor([1.0, -4.0, 2.0])).tolist() == [0, -4, 0]


def test_outliers_go_first_and_then_the_smallest():
    """Of ten, gamma 0.2 drops 10 and 9, density 0.5 leaves 8 to 4. With density 0.9 only one outlier may go."""
    update = torch.arange(1.0, 11.0)
    assert sparsified(Outliers(0.5, 0.2), update).tolist() == [0, 0, 0, 4, 5, 6, 7, 8, 0, 0]
    assert sparsified(Outliers(0.9, 0.2), update).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert sparsified(Outliers(0.5, 0.25), torch.full((4,), -2.0)).tolist() == [0, -2, -2, 0]


def test_the_sum_of_magnitudes_is_restored_by_hand():
    """Of (4, -3, 2, 1), sum 10, two are kept, sum 7: both grow by 10/7."""
    found = sparsified(Magnitude(0.5, "l1"), torch.tensor([4.0, -3.0, 2.0, 1.0]))
    torch.testing.assert_close(found, torch.tensor([40 / 7, -30 / 7, 0, 0]))


def test_the_election_by_hand():
    """Sums (2, -3, 2) elect + - +; 3, then -1 and -2, then 2 agree. Divided by the weights of those who agree: 3 / 1,
    -3 / 2, 2 / 1. Counting heads, a tie (first and last entry) elects +.
    """
    one, other = [3.0, -1.0, 2.0], [-1.0, -2.0, 0.0]
    assert voted(one, other, consensus="sum") == [3, -3, 2]
    assert voted(one, other, consensus="sum", normalize=True) == [3, -1.5, 2]
    assert voted(one, other) == [2, -3, 2]
    assert voted(one, other, normalize=True, scale=4.0) == [4, -6, 4]
    assert voted([1.0, -5.0], [-5.0, 1.0], [-5.0, 1.0], consensus="count") == [-10, 2]
    assert voted([1.0, -5.0], [-5.0, 1.0], [-5.0, 1.0], consensus="sum") == [-10, -5]
    assert voted([1.0, -2.0], [-1.0, 2.0], consensus="count") == [1, 2]
    assert voted([1.0, -2.0], [-1.0, 2.0], consensus="sum") == [1, 2]
    assert voted([-0.0, -1.0], [-0.0, 1.0], consensus="sum", normalize=True) == [0, 1]


def test_weights_that_cancel_are_not_divided_by():
    assert voted([2.0], [4.0], weights=(0.5, -0.5), normalize=True) == [-1]
    assert voted([2.0], [-4.0], weights=(0.5, -0.5), consensus="sum", normalize=True) == [3]


def test_dellas_ranks_by_hand():
    """Ranks by magnitude within the row, equal ones by place."""
    ranks = row_ranks(np.array([[3, -1, 0, 2], [1, 1, -1, -0.0]], np.float32))
    assert ranks.tolist() == [[3, 1, 0, 2], [1, 2, 3, 0]]


# Laws


@settings(max_examples=200, deadline=None)
@given(VECTORS, SHARES)
@example(torch.full((5,), 2.0), 0.5)
@example(torch.zeros(4), 0.5)
def test_exactly_the_largest_are_kept_whatever_their_values(update: Tensor, density: float):
    """The twin sorts by (magnitude falling, place rising)."""
    count = 0 if density == 0 else max(1, int(density * len(update)))
    order = sorted(range(len(update)), key=lambda place: (-abs(float(update[place])), place))
    expected = torch.zeros_like(update)
    for place in order[:count]:
        expected[place] = update[place]
    assert torch.equal(sparsified(Magnitude(density), update), expected)


@settings(max_examples=200, deadline=None)
@given(VECTORS, SHARES, SHARES)
def test_outliers_keep_the_ranks_after_the_top(update: Tensor, density: float, gamma: float):
    size = len(update)
    kept, top = int(density * size), int(gamma * size)
    top = min(top, size - kept)
    order = sorted(range(size), key=lambda place: (-abs(float(update[place])), place))
    expected = torch.zeros_like(update)
    for place in order[top : top + kept]:
        expected[place] = update[place]
    assert torch.equal(sparsified(Outliers(density, gamma), update), expected)
    if density * size >= 1:
        assert torch.equal(sparsified(Outliers(density, 0.0), update), sparsified(Magnitude(density), update))


@settings(max_examples=60, deadline=None)
@given(density=SHARES, seed=st.integers(0, 2**32 - 1), shape=st.sampled_from([(), (0,), (1,), (9, 40), (2, 3, 5)]))
def test_rescaling_restores_the_sum_of_magnitudes_and_changes_nothing_else(density, seed, shape):
    update = numbers(*shape, seed=seed)
    epsilon = min(density, 1 - density)
    for plain, rescaled in [
        (Random(density, None, seed), Random(density, "l1", seed)),
        (Magnitude(density), Magnitude(density, "l1")),
        (Outliers(density, 0.1), Outliers(density, 0.1, "l1")),
        (RankedRandom(density, epsilon, None, seed), RankedRandom(density, epsilon, "l1", seed)),
    ]:
        kept, found = sparsified(plain, update), sparsified(rescaled, update)
        if kept.count_nonzero() == 0:
            assert torch.equal(found, kept)
        else:
            assert float(found.abs().sum()) == pytest.approx(float(update.abs().sum()), rel=1e-5)
            torch.testing.assert_close(found, kept * (update.abs().sum() / kept.abs().sum()), rtol=1e-5, atol=0)


def five_sigma(found: Tensor, expected: Tensor, deviation: Tensor) -> None:
    assert ((found - expected).abs() <= 5 * deviation + 1e-6).all()


@pytest.mark.parametrize("density", [0.03, 0.5, 0.9])
def test_dares_expectation_is_the_task_vector(density: float):
    """Over 400 seeds an entry d averages d, give or take |d| sqrt((1 - p) / (400 p)); about 400 p are kept."""
    update = numbers(1500)
    draws_of_it = torch.stack([sparsified(Random(density, "probability", seed), update) for seed in range(400)])
    five_sigma(draws_of_it.mean(0), update, update.abs() * math.sqrt((1 - density) / (400 * density)))
    kept = (draws_of_it != 0).float().mean()
    five_sigma(kept, torch.tensor(density), torch.tensor(math.sqrt(density * (1 - density) / (400 * 1500))))


def test_della_keeps_by_rank_and_its_expectation_is_the_task_vector():
    """Magnitudes 1 to 5 are kept with probability 0.3, 0.4, ... 0.7, over 20 000 rows in another order each."""
    rows, probabilities = 20_000, torch.linspace(0.3, 0.7, 5)
    order = numbers(rows, 5).argsort(1)
    update = order.float() + 1
    kept = sparsified(RankedRandom(0.5, 0.2, None), update) != 0
    for rank, probability in enumerate(probabilities):
        share = kept[order == rank].float().mean()
        five_sigma(share, probability, (probability * (1 - probability) / rows).sqrt())
    found = sparsified(RankedRandom(0.5, 0.2, "probability"), update)
    torch.testing.assert_close(found[kept], update[kept] / probabilities[order[kept]])


@settings(max_examples=60, deadline=None)
@given(weight=st.floats(0.01, 3), scale=WEIGHTS, seed=st.integers(0, 99), density=SHARES)
def test_ties_of_one_model_does_not_know_its_weight_but_its_scale(weight, scale, seed, density):
    base, tuned = numbers(30, seed=seed), numbers(30, seed=seed + 1)
    kept = sparsified(Magnitude(density), tuned - base)
    for consensus in ("sum", "count"):
        method = TaskVectors((weight,), (Magnitude(density),), consensus, normalize=True, scale=scale)
        torch.testing.assert_close(merge_tensor(method, "w", base, [tuned]), base + scale * kept)


@settings(max_examples=60, deadline=None)
@given(st.tuples(WEIGHTS, WEIGHTS, WEIGHTS), st.sampled_from([None, "sum"]), st.booleans(), WEIGHTS)
def test_turning_all_task_vectors_turns_the_merged_one(weights, consensus, normalize, scale):
    method = TaskVectors(weights, (None, Magnitude(0.5), Random(0.5)), consensus, normalize, scale)
    updates = [numbers(40, seed=k) for k in range(3)]
    found, turned = (
        merge_tensor(method, "w", torch.zeros(40), [sign * update for update in updates]) for sign in (1, -1)
    )
    assert torch.equal(found, -turned)


# Limits


@pytest.mark.parametrize("kind", [Random, Magnitude, Outliers, RankedRandom])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (4, 0)])
def test_density_one_keeps_everything_and_density_zero_nothing(kind, shape: tuple[int, ...]):
    update = numbers(*shape)
    for rescale in (None, "l1"):
        assert torch.equal(sparsified(kind(density=1.0, rescale=rescale), update), update)
        assert torch.equal(sparsified(kind(density=0.0, rescale=rescale), update), torch.zeros(shape))
    if kind in (Random, RankedRandom):
        assert torch.equal(sparsified(kind(density=1.0, rescale="probability"), update), update)
        assert torch.equal(sparsified(kind(density=0.0, rescale="probability"), update), torch.zeros(shape))


def test_certain_probabilities_are_certain():
    """Density and epsilon of 1/2: the smallest of a row goes, the largest stays."""
    kept = sparsified(RankedRandom(0.5, 0.5, "probability"), torch.arange(1.0, 5.0).repeat(5000, 1))
    assert kept[:, 0].count_nonzero() == 0
    assert kept[:, 3].tolist() == [4.0] * 5000


# Independent twin


def twin(method: TaskVectors, base: Tensor, tuned: list[Tensor]) -> Tensor:
    """All at once and by sorting, in float64 from the float32 task vectors on."""
    votes: list[Tensor] = []
    for model, (one, weight, sparsifier) in enumerate(zip(tuned, method.weights, method.sparsify, strict=True)):
        delta = (one - base).double()
        uniform = torch.from_numpy(draws(getattr(sparsifier, "seed", 0), model, "w", 0, delta.numel()) / 2**32)
        uniform = uniform.reshape(base.shape)
        falling = delta.abs().flatten().argsort(descending=True, stable=True)
        mask = torch.zeros(delta.numel(), dtype=torch.bool)
        factor = torch.ones(())
        match sparsifier:
            case None:
                mask[:] = True
            case Magnitude(density):
                mask[falling[: max(1, int(density * len(mask)))]] = True
            case Outliers(density, gamma):
                mask[falling[int(gamma * len(mask)) :][: int(density * len(mask))]] = True
            case Random(density):
                mask, factor = uniform < density, torch.tensor(1 / density)
            case RankedRandom(density, epsilon):
                ranks = delta.abs().argsort(dim=1, stable=True).argsort(1)
                probability = density - epsilon + 2 * epsilon * ranks / (base.shape[1] - 1)
                mask, factor = uniform < probability, 1 / probability
        kept = delta * mask.reshape(base.shape)
        if getattr(sparsifier, "rescale", None) == "l1":
            kept *= delta.abs().sum() / kept.abs().sum()
        elif getattr(sparsifier, "rescale", None) == "probability":
            kept *= factor
        votes.append(weight * kept)
    stacked, weights = torch.stack(votes), torch.tensor(method.weights, dtype=torch.float64)[:, None, None]
    agreed = torch.ones_like(stacked)
    if method.consensus:
        heads = stacked.sum(0) if method.consensus == "sum" else stacked.sign().sum(0)
        agreed = (stacked.sign() == torch.where(heads >= 0, 1, -1)).double()
    divisor = (weights * agreed).sum(0) if method.normalize else torch.ones(())
    return base + method.scale * (stacked * agreed).sum(0) / torch.where(divisor == 0, 1, divisor)


SPARSIFIERS = st.sampled_from(
    [None, Random(0.4), Random(0.4, "l1", 5), Magnitude(0.3), Magnitude(0.3, "l1"), Outliers(0.6, 0.1),
     Outliers(0.2, 0.0, "l1"), RankedRandom(0.5, 0.3), RankedRandom(0.4, 0.0, "probability", 7)]
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    models=st.lists(st.tuples(st.sampled_from([0.3, 1.0, -0.7, 0.0]), SPARSIFIERS), min_size=1, max_size=4),
    consensus=st.sampled_from([None, "sum", "count"]),
    normalize=st.booleans(),
    scale=st.sampled_from([1.0, 0.5, -2.0]),
    seed=st.integers(0, 99),
)
def test_a_merge_of_task_vectors_is_its_plain_twin(models, consensus, normalize, scale, seed):
    weights, sparsify = zip(*models, strict=True)
    method = TaskVectors(weights, sparsify, consensus, normalize, scale)
    base = numbers(12, 31, seed=seed)
    tuned = [(base + numbers(12, 31, seed=seed + k)).half().float() for k in range(1, 1 + len(models))]
    found = merge_tensor(method, "w", base, tuned)
    total = abs(sum(weights))
    if not normalize or total > 0.05 or total < 1e-12:  # a sum of weights that nearly cancels divides noise
        torch.testing.assert_close(found.double(), twin(method, base, tuned), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("density", [0.004, 0.03, 0.5, 0.99])
@pytest.mark.parametrize("gamma", [0.0, 0.004, 0.01, 0.3, 0.9])
def test_as_many_entries_are_kept_as_mergekit_keeps(density: float, gamma: float, seed: int):
    """mergekit 0.1.5's counts, with numpy's sort: the largest k = max(1, int(density n)), and of the rising order those
    from n_bot = max(0, n - int(density n) - int(gamma n)) on, int(density n) of them."""
    update = numbers(101, seed=seed)
    rising = np.argsort(update.abs().numpy())
    largest, between = np.zeros(101), np.zeros(101)
    largest[rising[101 - max(1, int(density * 101)) :]] = 1
    bottom = max(0, 101 - int(density * 101) - int(gamma * 101))
    between[rising[bottom : bottom + int(density * 101)]] = 1
    assert np.array_equal(sparsified(Magnitude(density), update).numpy(), update.numpy() * largest)
    assert np.array_equal(sparsified(Outliers(density, gamma), update).numpy(), update.numpy() * between)


# Refusals


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.6), (0.9, 0.15), (0.1, 0.2), (0.5, -0.1)])
def test_a_probability_outside_zero_to_one_is_refused_with_the_remedy(density: float, epsilon: float):
    with pytest.raises(ValueError, match="keep epsilon between 0 and 0"):
        RankedRandom(density, epsilon)


def test_as_many_sparsifiers_as_models_are_asked_for():
    with pytest.raises(ValueError):
        list(SparseTaskVectors(Whole("w", numbers(4), [numbers(4), numbers(4)]), [Magnitude(0.5)]))
