"""The order of a tune: every example once an epoch, like lengths side by side, whatever else as without grouping."""

from __future__ import annotations

import random

import pytest
from accelerate.data_loader import SeedableRandomSampler
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkeep.train.order import ExampleOrder, grouped_by_length


def padded(order: list[int], lengths: list[int], batch: int) -> int:
    """Tokens that batches of this order compute."""
    rows = [order[at : at + batch] for at in range(0, len(order), batch)]
    return sum(len(row) * max(lengths[one] for one in row) for row in rows)


def test_batches_are_cut_from_the_sorted_window_and_come_by_their_earliest_member():
    order, lengths = [4, 1, 3, 0, 2, 5, 6], [9, 1, 9, 2, 8, 1, 5]
    # Of the first window (lengths 8 1 2 9) rows 1 and 3 are short; the next has 9 and 1; the seventh stays alone.
    assert [lengths[one] for one in order] == [8, 1, 2, 9, 9, 1, 5]
    assert grouped_by_length(order, lengths, 2, window=2) == [4, 0, 1, 3, 2, 5, 6]


@settings(deadline=None, max_examples=80)
@given(
    lengths=st.lists(st.integers(1, 40), max_size=60), batch=st.integers(1, 9), window=st.integers(1, 6),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_every_example_comes_once_and_nothing_more_is_computed(lengths, batch, window, seed):
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    grouped = grouped_by_length(order, lengths, batch, window)
    assert sorted(grouped) == sorted(order)
    assert padded(grouped, lengths, batch) <= padded(order, lengths, batch)
    rest = len(order) % batch
    assert rest == 0 or grouped[-rest:] == order[-rest:]
    inside = window * batch
    for start in range(0, len(order) - rest, inside):
        assert set(grouped[start : start + inside]) == set(order[start : start + inside])


@pytest.mark.parametrize("batch", [1, 4, 16, 100])
def test_examples_of_one_length_keep_accelerates_order(batch):
    plain = SeedableRandomSampler(range(50), data_seed=3)
    ours = ExampleOrder(50, 3, lengths=[7] * 50, batch=batch)
    for _ in range(3):  # epochs
        assert list(ours) == list(plain)


def test_a_batch_of_one_is_no_group():
    lengths = [one % 7 for one in range(50)]
    assert list(ExampleOrder(50, 0, lengths=lengths, batch=1)) == list(ExampleOrder(50, 0))


def test_an_order_follows_from_seed_and_epoch_and_blanks_come_last():
    lengths = [one % 7 for one in range(30)]
    first, again, other = (ExampleOrder(30, seed, lengths=lengths, batch=4, blanks=2) for seed in (0, 0, 1))
    epochs = [list(first) for _ in range(3)]
    again.set_epoch(2)
    assert list(again) == epochs[2] != epochs[1]
    assert list(other) != epochs[0]
    assert all(epoch[-2:] == [30, 31] and len(epoch) == len(first) == 32 for epoch in epochs)


def test_little_is_padded_where_lengths_differ_much():
    lengths = [random.Random(one).randint(10, 300) for one in range(1600)]
    random_order = list(ExampleOrder(1600, 0))
    grouped = list(ExampleOrder(1600, 0, lengths=lengths, batch=16))
    assert padded(random_order, lengths, 16) > 1.7 * sum(lengths)
    assert padded(grouped, lengths, 16) < 1.05 * sum(lengths)
