"""Fisher factors and eigenbases: by hand, laws, limits, twins, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from alignkeep.subspace.eigenbasis import Eigenbasis, coordinate_basis, eigenbasis
from alignkeep.subspace.fisher import FactorSum, FullFactor, SketchedFactor, gaussian_probe

few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 10_000)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def orthonormal(width: int, rank: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(width, width, seed=seed, dtype=torch.float64)).Q[:, :rank]


def full(vectors: Tensor, partners: Tensor | None = None, mask: Tensor | None = None) -> FullFactor:
    running = FactorSum(vectors.shape[-1])
    running.add(vectors, partners, mask=mask)
    factor = running.factor()
    assert isinstance(factor, FullFactor)
    return factor


def spectrum(values: Tensor, seed: int = 0) -> Tensor:
    """A symmetric matrix of these eigenvalues."""
    basis = orthonormal(len(values), len(values), seed)
    return (basis * values.double()) @ basis.T


def sketched(matrix: Tensor, columns: int = 128) -> SketchedFactor:
    probe = gaussian_probe(len(matrix), columns=columns)
    return SketchedFactor(matrix @ probe.double(), probe, matrix.diagonal(), 1)


# Factors


def test_the_factor_of_two_samples_by_hand():
    """G_1 = 1 (1, 0) + 2 (0, 1) = (1, 2); G_2 = 3 (1, 1) + 5 (0, 0) = (3, 3); F = (G_1^T G_1 + G_2^T G_2) / 2."""
    activations = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]])
    gradients = torch.tensor([[[1.0], [2.0]], [[3.0], [5.0]]])
    found = full(activations, gradients)
    assert found.matrix.tolist() == [[5.0, 5.5], [5.5, 6.5]]
    assert (found.trace, found.count) == (11.5, 2)
    assert full(gradients, activations).matrix.tolist() == [[11.5]]


def test_the_second_moment_by_hand_counts_tokens():
    """((1, 0) + (3, 4)) : ([[1, 0], [0, 0]] + [[9, 12], [12, 16]]) / 2."""
    found = full(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
    assert found.matrix.tolist() == [[5.0, 6.0], [6.0, 8.0]]
    assert found.count == 2


def test_both_sides_are_those_of_per_sample_gradients_by_autograd():
    """torch.func writes the gradients out, d_out x d_in each; a loss with a nonlinearity and a sum over tokens."""
    layer = torch.nn.Linear(5, 3).double()
    inputs, wanted = (normal(4, 6, width, seed=width, dtype=torch.float64) for width in (5, 3))

    def loss(weight: Tensor, sequence: Tensor, target: Tensor) -> Tensor:
        return (functional.linear(sequence, weight, layer.bias).tanh() - target).pow(2).sum()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(layer.weight, inputs, wanted)
    outputs = layer(inputs)
    outputs.retain_grad()
    (outputs.tanh() - wanted).pow(2).sum().backward()
    assert outputs.grad is not None
    for found, explicit in [
        (full(inputs, outputs.grad), gradients.mT @ gradients),
        (full(outputs.grad, inputs), gradients @ gradients.mT),
    ]:
        torch.testing.assert_close(found.matrix, explicit.mean(0), rtol=1e-5, atol=1e-7)


@few
@given(
    samples=st.integers(0, 5), tokens=st.integers(0, 6), cut=st.integers(0, 6), padding=st.integers(0, 3), seed=seeds
)
def test_a_factor_does_not_depend_on_batching_padding_or_order(samples, tokens, cut, padding, seed):
    lengths = [min(tokens, (cut + at) % 7) for at in range(samples)]
    a, g = normal(samples, tokens + padding, 4, seed=seed), normal(samples, tokens + padding, 3, seed=seed + 1)
    a[:, tokens:], g[:, tokens:] = math.nan, math.inf  # whatever stands in the padding
    mask = torch.arange(tokens + padding) < torch.tensor(lengths).reshape(-1, 1)
    alone = FactorSum(4)
    for at in reversed(range(samples)):
        alone.add(a[at, : lengths[at]], g[at, : lengths[at]])
    together, factor = full(a, g, mask), alone.factor()
    assert isinstance(factor, FullFactor)
    assert together.count == factor.count == samples
    torch.testing.assert_close(together.matrix, factor.matrix, rtol=1e-5, atol=1e-6)
    assert full(a, mask=mask).count == sum(lengths)


@few
@given(samples=st.integers(1, 4), tokens=st.integers(1, 6), seed=seeds)
def test_a_factor_is_symmetric_positive_and_both_sides_have_one_trace(samples, tokens, seed):
    a, g = normal(samples, tokens, 4, seed=seed), normal(samples, tokens, 3, seed=seed + 1)
    inputs, outputs = full(a, g), full(g, a)
    assert inputs.matrix.equal(inputs.matrix.mT)
    assert torch.linalg.eigvalsh(inputs.matrix).min() >= -1e-6 * inputs.trace
    assert inputs.trace == pytest.approx(outputs.trace, rel=1e-5)


def test_a_sketch_is_the_factor_times_its_probe_with_exact_trace_and_diagonal():
    a, g = normal(3, 5, 40, seed=1), normal(3, 5, 7, seed=2)
    probe = gaussian_probe(40, columns=10)
    running = FactorSum(40, probe=probe)
    running.add(a[:2], g[:2], mask=torch.ones(2, 5, dtype=torch.bool))
    running.add(a[2], g[2])
    found, whole = running.factor(), full(a, g)
    assert isinstance(found, SketchedFactor)
    torch.testing.assert_close(found.sketch, whole.matrix @ probe.double(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.diagonal, whole.diagonal, rtol=1e-5, atol=1e-6)
    assert found.trace == pytest.approx(whole.trace, rel=1e-6)
    assert found.count == 3


def test_a_factor_stays_as_it_was_when_more_is_added():
    running = FactorSum(2)
    running.add(torch.ones(1, 2))
    first = running.factor()
    running.add(torch.full((1, 2), 3.0))
    assert isinstance(first, FullFactor)
    assert first.matrix.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_many_small_samples_are_not_lost_beside_a_large_one():
    """1e8 once and 1 a hundred times: float32 sums would stay at 1e8."""
    running = FactorSum(1)
    running.add(torch.tensor([[1e4]]))
    for _ in range(100):
        running.add(torch.ones(1, 1))
    assert running.factor().trace * 101 == pytest.approx(1e8 + 100, rel=1e-12)


def test_a_probe_is_orthonormal_and_the_same_again():
    probe = gaussian_probe(300, columns=20)
    torch.testing.assert_close(probe.mT @ probe, torch.eye(20), atol=1e-5, rtol=0)
    assert probe.equal(gaussian_probe(300, columns=20))
    assert not probe.equal(gaussian_probe(300, columns=20, seed=1))
    assert gaussian_probe(5, columns=20).shape == (5, 5)


@pytest.mark.parametrize(
    ("vectors", "partners", "mask", "said"),
    [
        (torch.ones(2, 3), None, None, "width 3"),
        (torch.ones(4), None, None, r"\(T, d\)"),
        (torch.ones(2, 4), torch.ones(3, 1), None, "partners"),
        (torch.ones(2, 4), None, torch.ones(3, dtype=torch.bool), "mask"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(vectors, partners, mask, said):
    with pytest.raises(ValueError, match=said):
        FactorSum(4).add(vectors, partners, mask=mask)
    with pytest.raises(ValueError, match="5 rows"):
        FactorSum(4, probe=gaussian_probe(5))


# Eigenbases


@pytest.mark.parametrize(
    ("share", "most", "rank", "captured", "capped"),
    [(0.8, 64, 1, 0.8, False), (0.81, 64, 2, 0.9, False), (0.9, 64, 2, 0.9, False), (1.0, 64, 3, 1.0, False),
     (1.0, 2, 2, 0.9, True), (1e-9, 1, 1, 0.8, False)],
)  # fmt: skip
def test_ranks_of_eight_one_one_by_hand(share, most, rank, captured, capped):
    """Eigenvalues 8, 1, 1, 0 of trace 10: one direction holds 0.8, two 0.9, three all of it."""
    factor = FullFactor(spectrum(torch.tensor([8.0, 1.0, 1.0, 0.0])), 1)
    found = eigenbasis(factor, share, most)
    assert (found.rank, found.capped) == (rank, capped)
    assert found.captured == pytest.approx(captured)
    assert found.eigenvalues.tolist() == pytest.approx([1.0, 0.125, 0.125][:rank])
    assert (found.largest, found.trace) == (pytest.approx(8.0), pytest.approx(10.0))


def test_a_coordinate_basis_keeps_the_largest_entries_of_the_diagonal():
    """Diagonal 1, 8, 1: axis 1 first, then axis 0; what stands off the diagonal has no say."""
    matrix = torch.tensor([[1.0, 0.3, 0.0], [0.3, 8.0, 0.2], [0.0, 0.2, 1.0]], dtype=torch.float64)
    found = coordinate_basis(FullFactor(matrix, 1))
    assert found.vectors.tolist() == [[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    assert found.captured == pytest.approx(0.9)


@few
@given(
    width=st.integers(1, 12),
    share=st.floats(0.01, 1.0),
    most=st.integers(1, 14),
    scale=st.integers(-12, 12),
    seed=seeds,
)
def test_a_basis_is_orthonormal_invariant_scale_free_and_says_what_it_holds(width, share, most, scale, seed):
    a = normal(3, 4, width, seed=seed)
    factor = full(a, normal(3, 4, 2, seed=seed + 1))
    found = eigenbasis(factor, share, most)
    basis = found.vectors
    assert 1 <= found.rank <= min(width, most)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(found.rank, dtype=torch.float64))
    values = found.eigenvalues * found.largest
    torch.testing.assert_close(factor.matrix @ basis, basis * values, rtol=0, atol=1e-9 * found.trace)
    assert found.captured == pytest.approx(float(values.sum()) / factor.trace, rel=1e-6)
    assert found.capped == (found.captured < share - 1e-6)
    scaled = eigenbasis(FullFactor(factor.matrix * 10.0**scale, 3), share, most)
    torch.testing.assert_close(scaled.eigenvalues, found.eigenvalues)
    assert scaled.captured == pytest.approx(found.captured)


@pytest.mark.parametrize("decay", [lambda k: 0.9**k, lambda k: 1 / k**2, lambda k: (k <= 38) * 1.0])
def test_the_sketch_finds_what_the_whole_factor_shows_on_decaying_spectra(decay):
    matrix = spectrum(decay(torch.arange(1, 601).double()))
    exact, seen = eigenbasis(FullFactor(matrix, 1)), eigenbasis(sketched(matrix))
    assert seen.rank == exact.rank
    assert seen.captured == pytest.approx(exact.captured, abs=2e-3)
    assert seen.trace == pytest.approx(exact.trace)
    torch.testing.assert_close(seen.eigenvalues, exact.eigenvalues, rtol=0, atol=5e-3)
    inside = float((seen.vectors.mT @ matrix @ seen.vectors).trace() / matrix.trace())
    assert inside == pytest.approx(exact.captured, abs=2e-3)


def test_the_sketch_of_a_slow_spectrum_promises_less_than_there_is():
    matrix = spectrum(1 / torch.arange(1, 601).double())
    exact, seen = eigenbasis(FullFactor(matrix, 1)), eigenbasis(sketched(matrix))
    assert exact.capped
    assert seen.capped
    assert seen.captured < exact.captured
    inside = float((seen.vectors.mT @ matrix @ seen.vectors).trace() / matrix.trace())
    assert seen.captured <= inside + 1e-9


def test_a_sketch_of_fewer_samples_than_columns_is_exact():
    a, g = normal(6, 9, 400, seed=3), normal(6, 9, 2, seed=4)
    running = FactorSum(400, probe=gaussian_probe(400))
    running.add(a, g)
    exact, seen = eigenbasis(full(a, g), 1.0), eigenbasis(running.factor(), 1.0)
    assert exact.rank == seen.rank == 12
    torch.testing.assert_close(seen.eigenvalues, exact.eigenvalues, rtol=0, atol=1e-5)
    projection = exact.vectors @ exact.vectors.mT
    torch.testing.assert_close(seen.vectors @ seen.vectors.mT, projection, rtol=0, atol=1e-3)


@pytest.mark.parametrize("probe", [None, gaussian_probe(8, columns=4)])
@pytest.mark.parametrize("of", [eigenbasis, coordinate_basis])
def test_a_factor_of_zero_has_an_empty_basis(probe, of):
    running = FactorSum(8, probe=probe)
    running.add(torch.zeros(3, 8), torch.ones(3, 2))
    found = of(running.factor())
    assert isinstance(found, Eigenbasis)
    assert (found.vectors.shape, found.trace, found.largest) == ((8, 0), 0.0, 0.0)
    assert math.isnan(found.captured)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_factor_that_is_not_finite_is_refused(bad):
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[0, 1] = bad
    for factor in (FullFactor(matrix, 1), sketched(matrix, 2)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            eigenbasis(factor)


@pytest.mark.parametrize(("share", "most"), [(0.0, 4), (1.1, 4), (math.nan, 4), (0.9, 0)])
def test_a_share_or_rank_without_meaning_is_refused(share, most):
    with pytest.raises(ValueError, match="share"):
        eigenbasis(FullFactor(torch.eye(3, dtype=torch.float64), 1), share, most)
