"""What changes no bit of a merge: the size of the pieces, the number of threads, where a piece begins."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkeep.merge.arcs import NuSlerp, Slerp
from alignkeep.merge.input_maps import Mapped, Subspace
from alignkeep.merge.linear import Linear
from alignkeep.merge.method import TensorMerge
from alignkeep.merge.model_stock import ModelStock
from alignkeep.merge.pieces import BLOCK, Gram, Whole, magnitude_sums, total
from alignkeep.merge.sparsify import Magnitude, Outliers, Random, RankedRandom, draws
from alignkeep.merge.task_vectors import SparseTaskVectors, TaskVectors


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def orthonormal(d_in: int, m: int) -> Tensor:
    return torch.linalg.qr(numbers(d_in, m).double())[0].float()


def whole(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([part.copy() for part in parts])


RAGGED = (197, 1000)  # a little more than three blocks, in rows that no block ends with
EVERY_METHOD: list[tuple[TensorMerge, int]] = [
    (Linear((0.4, 0.6)), 1), (Linear((0.5, 1.0, -0.3)), 2), (Slerp(0.3), 1), (NuSlerp(0.3), 1), (ModelStock(), 2),
    (NuSlerp(0.3, over_base=True, flatten=False), 2), (NuSlerp(0.3, flatten=False, row_wise=True), 1),
    (TaskVectors((0.7,), (None,)), 1), (TaskVectors((0.7,), (Random(0.4, "l1", 3),)), 1),
    (TaskVectors((0.7, 0.4), (Magnitude(0.2, "l1"), Outliers(0.7, 0.1)), "sum", True, 1.2), 2),
    (TaskVectors((0.7, 0.4), (RankedRandom(0.5, 0.2), Magnitude(0.3, "l1")), "count"), 2),
    (Subspace(0.3, orthonormal(1000, 7)), 1), (Subspace(0.3, orthonormal(197, 7), 0), 1),
    (Mapped(0.3, 0.6, orthonormal(1000, 5), orthonormal(1000, 5) * 0.3), 1),
]  # fmt: skip


@pytest.mark.parametrize(("method", "models"), EVERY_METHOD, ids=lambda value: type(value).__name__)
def test_neither_the_size_of_the_pieces_nor_the_number_of_threads_changes_a_bit(method: TensorMerge, models: int):
    base = numbers(*RAGGED).bfloat16().float()  # so that many updates are equally large
    tuned = [(base + numbers(*RAGGED, seed=k, scale=0.1)).bfloat16().float() for k in range(1, 1 + models)]
    base, tuned = base.numpy(), [one.numpy() for one in tuned]
    expected = whole(method.merged(Whole("w", base, tuned, size=base.size)))
    threads = torch.get_num_threads()

    @settings(max_examples=6, deadline=None)
    @given(size=st.integers(1, 4 * BLOCK), used=st.integers(1, 3))
    def same(size: int, used: int):
        torch.set_num_threads(used)
        assert np.array_equal(whole(method.merged(Whole("w", base, tuned, size=size))), expected)

    try:
        same()
    finally:
        torch.set_num_threads(threads)


def test_sums_have_the_same_bits_for_every_size_of_pieces_and_number_of_threads():
    """Products of numbers from 1e-15 to 1e15, whose float64 sums do depend on the order of summation."""
    left, right = (
        (numbers(3 * BLOCK + 777, seed=k) * torch.exp(9 * numbers(3 * BLOCK + 777, seed=2 + k))).numpy() for k in (0, 1)
    )
    threads, found = torch.get_num_threads(), set[tuple[float, ...]]()
    try:
        for used in (1, 2, 3):
            torch.set_num_threads(used)
            for size in (BLOCK, 2 * BLOCK, 4 * BLOCK):
                gram, magnitudes = Gram(2), list[float]()
                for start in range(0, len(left), size):
                    one, other = (numbers[start : start + size] for numbers in (left, right))
                    gram.add((one, other))
                    magnitudes += magnitude_sums(one, BLOCK)
                found.add((gram[0, 0], gram[0, 1], gram[1, 1], total(magnitudes)))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
    left, right = left.astype(np.float64), right.astype(np.float64)
    exact = [math.fsum((one * other).tolist()) for one, other in ((left, left), (left, right), (right, right))]
    assert found.pop() == pytest.approx((*exact, math.fsum(abs(left).tolist())), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, 3 * BLOCK), count=st.integers(0, BLOCK), seed=st.integers(0, 2**40))
def test_draws_depend_on_the_place_and_not_on_where_the_piece_begins(start: int, count: int, seed: int):
    assert np.array_equal(draws(seed, 0, "w", start, count), draws(seed, 0, "w", 0, start + count)[start:])


def test_what_makes_up_for_dropped_entries_has_the_same_bits_for_every_size_of_pieces():
    update = numbers(*RAGGED, seed=1) * torch.exp(9 * numbers(*RAGGED, seed=2))
    sparsify = [RankedRandom(0.5, 0.2), Magnitude(0.3, "l1"), Random(0.5, "l1")]
    for kinds in (sparsify, sparsify[1:]):
        found = {
            SparseTaskVectors(Whole("w", torch.zeros(RAGGED), [update] * len(kinds), size=size), kinds).factors
            for size in (1, 70_000, BLOCK, 3 * BLOCK, 9 * BLOCK)
        }
        assert len(found) == 1


def test_draws_differ_by_seed_model_name_and_block():
    usual = draws(1, 0, "w", 0, 4000)
    others = draws(2, 0, "w", 0, 4000), draws(1, 1, "w", 0, 4000), draws(1, 0, "v", 0, 4000)
    others = (*others, draws(1, 0, "w", BLOCK, 4000), draws(1 + 2**32, 0, "w", 0, 4000), draws(0, 1, "w", 0, 4000))
    for other in others:
        agreement = (usual < 2**31) == (other < 2**31)
        assert abs(agreement.mean() - 0.5) < 5 * 0.5 / math.sqrt(4000)
