"""Merges weighed by two Fisher factors: by hand, laws, limits, twins, refusals."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkeep.subspace.balance import InputMap, balance
from alignkeep.subspace.eigenbasis import Eigenbasis, eigenbasis
from alignkeep.subspace.fisher import FullFactor, SketchedFactor, gaussian_probe

WIDTHS = {"one": 5, "other": 9}
few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 10_000)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def factors(seed: int, *, scale: float = 1.0, widths: Mapping[str, int] = WIDTHS) -> dict[str, FullFactor]:
    """Full-rank factors with different traces."""
    drawn = {name: normal(2 * width, width, seed=seed + width) for name, width in widths.items()}
    return {name: FullFactor(scale * rows.mT @ rows, 1) for name, rows in drawn.items()}


def bases(of: Mapping[str, FullFactor], rank: int = 64) -> dict[str, Eigenbasis]:
    return {name: eigenbasis(factor, 1.0, rank) for name, factor in of.items()}


def dense(found: InputMap) -> Tensor:
    return found.applied(torch.eye(found.reads.shape[0], dtype=torch.float64))


def written_out(aligned: Mapping[str, Tensor], tuned: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
    """T (A + T)^-1 with matrices, each side divided by its mean trace."""
    units = [sum(float(matrix.trace()) for matrix in side.values()) / len(side) for side in (aligned, tuned)]
    found = {}
    for name in aligned:
        ours, theirs = (1 - weight) * aligned[name] / units[0], weight * tuned[name] / units[1]
        found[name] = theirs @ torch.linalg.inv(ours + theirs)
    return found


def seen(factor: FullFactor, rank: int) -> Tensor:
    """The factor as its `rank` leading eigenpairs and its remaining trace spread over the rest, by plain means."""
    values, vectors = torch.linalg.eigh(factor.matrix)
    values = torch.cat([values[:-rank].mean().expand(len(values) - rank), values[-rank:]])
    return (vectors * values) @ vectors.mT


def test_two_inputs_by_hand():
    """F_a = diag(3, 1), F_t = diag(1, 3), both of trace 4, weight 1/2: M = diag(1 / (3 + 1), 3 / (1 + 3))."""
    aligned = {"w": FullFactor(torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64), 1)}
    tuned = {"w": FullFactor(torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.float64), 1)}
    found = dense(balance(bases(aligned), bases(tuned), 0.5)["w"])
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.0], [0.0, 0.75]], dtype=torch.float64))


def test_without_tuning_data_only_what_alignment_depends_on_is_taken_back():
    """F_a = diag(8, 2, 2) has trace 12, the other side, I, trace 3. M = I / (F_a / 4 + I) = diag(1/3, 2/3, 2/3)."""
    aligned = {"w": FullFactor(torch.diag(torch.tensor([8.0, 2.0, 2.0], dtype=torch.float64)), 1)}
    found = dense(balance(bases(aligned), None, 0.5)["w"])
    torch.testing.assert_close(found, torch.diag(torch.tensor([1 / 3, 2 / 3, 2 / 3], dtype=torch.float64)))


@few
@given(weight=st.floats(0.0, 1.0), seed=seeds)
def test_the_map_is_the_written_formula(weight, seed):
    aligned, tuned = factors(seed), factors(seed + 1)
    found = balance(bases(aligned), bases(tuned), weight)
    expected = written_out(
        {name: factor.matrix for name, factor in aligned.items()},
        {name: factor.matrix for name, factor in tuned.items()},
        min(max(weight, 1e-9), 1 - 1e-9),
    )
    for name in WIDTHS:
        torch.testing.assert_close(dense(found[name]), expected[name], rtol=0, atol=1e-2)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_of_a_factor_its_leading_directions_and_its_trace_count(rank):
    aligned, tuned = factors(0), factors(1)
    found = balance(bases(aligned, rank), bases(tuned, rank), 0.3)
    expected = written_out(
        {name: seen(factor, rank) for name, factor in aligned.items()},
        {name: seen(factor, rank) for name, factor in tuned.items()},
        0.3,
    )
    for name in WIDTHS:
        torch.testing.assert_close(dense(found[name]), expected[name], rtol=0, atol=1e-6)
        assert found[name].reads.shape[1] == 2 * rank


@few
@given(weight=st.floats(0.01, 0.99), seed=seeds)
def test_no_other_update_costs_both_sides_less(weight, seed):
    aligned, tuned = ({name: seen(factor, 3) for name, factor in factors(at).items()} for at in (seed, seed + 1))
    units = [sum(float(matrix.trace()) for matrix in side.values()) / 2 for side in (aligned, tuned)]
    found = balance(bases(factors(seed), 3), bases(factors(seed + 1), 3), weight)

    def cost(name: str, update: Tensor, delta: Tensor) -> float:
        lost = (1 - weight) / units[0] * (update @ aligned[name] * update).sum()
        missed = update - delta
        return float(lost + weight / units[1] * (missed @ tuned[name] * missed).sum())

    for name, width in WIDTHS.items():
        delta = normal(4, width, seed=seed + 2)
        best = found[name].applied(delta)
        least = cost(name, best, delta)
        for step in (1e-3, -1e-3, 1.0):
            assert least <= cost(name, best + step * normal(4, width, seed=seed + 3), delta) * (1 + 1e-9)


@few
@given(weight=st.floats(0.0, 1.0), rank=st.integers(1, 9), scale=st.integers(-9, 9), seed=seeds)
def test_at_equal_factors_it_is_the_linear_merge_whatever_their_units(weight, rank, scale, seed):
    found = balance(bases(factors(seed), rank), bases(factors(seed, scale=10.0**scale), rank), weight)
    for name, width in WIDTHS.items():
        expected = weight * torch.eye(width, dtype=torch.float64)
        torch.testing.assert_close(dense(found[name]), expected, rtol=0, atol=1e-6)


def test_the_limits_of_the_weight_are_exact():
    """Also where no data touches the matrix, and for numbers whose products overflow."""
    delta = torch.full((3, 5), 3e38)
    nothing = {name: FullFactor(torch.zeros(width, width, dtype=torch.float64), 0) for name, width in WIDTHS.items()}
    for aligned in (bases(factors(0)), bases(nothing)):
        for tuned in (bases(factors(1)), bases(nothing), None):
            assert balance(aligned, tuned, 1.0)["one"].applied(delta).equal(delta)
            assert not balance(aligned, tuned, 0.0)["one"].applied(delta).any()


def test_a_matrix_that_only_one_side_touches_is_that_sides():
    nothing = {"one": FullFactor(torch.zeros(5, 5, dtype=torch.float64), 0), "other": factors(3)["other"]}
    something, eye = bases(factors(1)), torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(dense(balance(bases(nothing), something, 0.4)["one"]), eye)
    torch.testing.assert_close(dense(balance(something, bases(nothing), 0.4)["one"]), 0 * eye)
    torch.testing.assert_close(dense(balance(bases(nothing), bases(nothing), 0.4)["one"]), eye)
    torch.testing.assert_close(dense(balance(bases(nothing), None, 0.4)["one"]), eye)
    zero = {"one": nothing["one"]}
    torch.testing.assert_close(dense(balance(bases(zero), None, 0.4)["one"]), eye)
    assert balance({}, {}, 0.5) == {}


def test_a_matrix_that_matters_more_to_alignment_is_moved_less():
    """The same factor twice, once a hundred times as large, so S_a = 50.5 S_t: M = 1 / (1 + 100 / 50.5) and
    1 / (1 + 1 / 50.5).
    """
    small = factors(0)["one"].matrix
    aligned = {"large": FullFactor(100 * small, 1), "small": FullFactor(small, 1)}
    even = {name: FullFactor(small, 1) for name in aligned}
    found = balance(bases(aligned), bases(even), 0.5)
    eye = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(dense(found["large"]), 50.5 / 150.5 * eye)
    torch.testing.assert_close(dense(found["small"]), 50.5 / 51.5 * eye)


def test_rows_come_in_blocks_and_in_float32():
    found = balance(bases(factors(0), 2), bases(factors(1), 2), 0.5)["other"]
    delta = normal(6, 9, seed=2)
    expected = delta @ dense(found)
    torch.testing.assert_close(found.applied(delta.float()), expected.float(), rtol=1e-4, atol=1e-4)
    blocks = torch.cat([found.applied(delta[:2]), found.applied(delta[2:])])
    torch.testing.assert_close(blocks, expected)


def test_a_sketched_factor_gives_nearly_the_map_of_the_whole_one():
    spectrum = 1 / torch.arange(1, 401, dtype=torch.float64) ** 2
    whole, sketches = [], []
    for seed in (0, 1):
        basis = torch.linalg.qr(normal(400, 400, seed=seed)).Q
        matrix = (basis * spectrum) @ basis.mT
        probe = gaussian_probe(400)
        whole.append({"w": eigenbasis(FullFactor(matrix, 1), 1.0, 32)})
        sketch = SketchedFactor(matrix @ probe.double(), probe, matrix.diagonal(), 1)
        sketches.append({"w": eigenbasis(sketch, 1.0, 32)})
    exact, near = (dense(balance(side[0], side[1], 0.5)["w"]) for side in (whole, sketches))
    assert float(torch.linalg.matrix_norm(exact - near)) < 0.05 * float(torch.linalg.matrix_norm(exact))


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_without_meaning_is_refused(weight):
    with pytest.raises(ValueError, match=r"lies in \[0, 1\]"):
        balance(bases(factors(0)), None, weight)


def test_factors_of_other_matrices_are_refused():
    with pytest.raises(ValueError, match="third"):
        balance(bases(factors(0)), bases(factors(0, widths={**WIDTHS, "third": 3})), 0.5)
