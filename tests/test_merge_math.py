"""Linear merges, arcs, Model Stock, the subspace merge and the identities: by hand, laws, limits, twins, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkeep.merge.arcs import NuSlerp, Slerp
from alignkeep.merge.input_maps import Mapped, Subspace
from alignkeep.merge.linear import Linear
from alignkeep.merge.method import TensorMerge, merge_tensor
from alignkeep.merge.model_stock import ModelStock, stock_share
from alignkeep.merge.pieces import Whole
from alignkeep.merge.sparsify import Magnitude, Random, RankedRandom
from alignkeep.merge.task_vectors import TaskVectors

SHARES = st.floats(0, 1)
SHAPES = [(), (0,), (1,), (7,), (3, 5), (0, 4), (4, 0), (2, 3, 4), (65, 3)]


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def orthonormal(d_in: int, m: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(numbers(d_in, m, seed=seed).double())[0].float()


def merge(method: TensorMerge, base: Tensor, *tuned: Tensor) -> Tensor:
    return merge_tensor(method, "w", base, tuned)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


# By hand


def test_linear_by_hand():
    """0.25 * (0, 4) + 0.75 * (8, 0) = (6, 1); weights are used as they are: 2 * (0, 4) - 1 * (8, 0) = (-8, 8)."""
    base, tuned = torch.tensor([0.0, 4.0]), torch.tensor([8.0, 0.0])
    assert merge(Linear((0.25, 0.75)), base, tuned).tolist() == [6.0, 1.0]
    assert merge(Linear((2.0, -1.0)), base, tuned).tolist() == [-8.0, 8.0]


def test_slerp_by_hand():
    """A right angle at t = 1/3: sin 60 = 0.866025 of the base and sin 30 = 0.5 of tuned, whose length of 2 stays."""
    found = merge(Slerp(1 / 3), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
    close(found, torch.tensor([0.866025, 1.0]))


def test_below_an_angle_of_about_0_0316_slerp_is_a_line_and_nuslerp_still_an_arc():
    """cos 0.0316 is 0.9995. Half-way between unit vectors an angle a apart a line has length cos(a / 2), an arc 1."""
    for angle, method, length in [(0.033, Slerp(0.5), 1.0), (0.03, Slerp(0.5), math.cos(0.015)),
                                  (0.003, NuSlerp(0.5), 1.0)]:  # fmt: skip
        found = merge(method, torch.tensor([1.0, 0.0]), torch.tensor([math.cos(angle), math.sin(angle)]))
        assert float(found.double().norm()) == pytest.approx(length, abs=2e-7)


def test_nuslerp_takes_one_arc_for_all_one_per_row_or_one_per_column():
    """Rows (1, 0) -> (0, 1) and (1, 0) -> (1, 0) at t = 1/2. One vector: cos = 1/2, each weighs sin 30 / sin 60,
    0.57735. Per row: a right angle (0.707107 each) and the same vector. Columns: (1, 1) -> (0, 1) is 45 degrees, each
    weighs sin 22.5 / sin 45 = 0.541196; (0, 0) -> (1, 0) has no angle and counts as a right one, 0.707107.
    """
    base, tuned = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    close(merge(NuSlerp(0.5), base, tuned), torch.tensor([[0.577350, 0.577350], [1.154701, 0.0]]))
    by_row = merge(NuSlerp(0.5, flatten=False), base, tuned)
    close(by_row, torch.tensor([[0.707107, 0.707107], [1.0, 0.0]]))
    by_column = merge(NuSlerp(0.5, flatten=False, row_wise=True), base, tuned)
    close(by_column, torch.tensor([[0.541196, 0.707107], [1.082392, 0.0]]))


def test_nuslerp_over_the_base_turns_one_task_vector_into_the_other():
    """Base (5, 5); task vectors (1, 0) and (0, 1) at t = 1/3 give (0.866025, 0.5) on top of it."""
    base = torch.tensor([5.0, 5.0])
    found = merge(NuSlerp(1 / 3, over_base=True), base, torch.tensor([6.0, 5.0]), torch.tensor([5.0, 6.0]))
    close(found, torch.tensor([5.866025, 5.5]))


def test_model_stock_by_hand():
    """Task vectors (1, 0) and (0.5, 0.866025): cos 1/2, share 2 * 0.5 / 1.5 = 2/3 of their mean (0.75, 0.433013)."""
    base, root = torch.tensor([1.0, 1.0]), math.sqrt(0.75)
    found = merge(ModelStock(), base, base + torch.tensor([1.0, 0.0]), base + torch.tensor([0.5, root]))
    close(found, torch.tensor([1.5, 1.288675]))
    share = stock_share(Whole("w", base, [base + torch.tensor([1.0, 0.0]), base + torch.tensor([0.5, root])]))
    assert share == pytest.approx((0.5, 2 / 3, False))


def test_the_subspace_merge_by_hand():
    """Update [[2, 4], [6, 8]] with weight 1/4 along the first input: its first column shrinks to (0.5, 1.5). Stored
    (in, out) the first input is the first row, which shrinks to (0.5, 1).
    """
    base, update = torch.zeros(2, 2), torch.tensor([[2.0, 4.0], [6.0, 8.0]])
    basis = torch.tensor([[1.0], [0.0]])
    assert merge(Subspace(0.25, basis), base, update).tolist() == [[0.5, 4.0], [1.5, 8.0]]
    assert merge(Subspace(0.25, basis, input_axis=0), base, update).tolist() == [[0.5, 1.0], [6.0, 8.0]]


def test_a_map_of_the_inputs_by_hand():
    """M = 1/4 I + e1 e2^T turns the row (2, 4) into (0.5, 2 + 1), and as M^T the column likewise."""
    base, update, (first, second) = torch.ones(1, 2), torch.tensor([[2.0, 4.0]]), torch.eye(2).unsqueeze(2)
    assert merge(Mapped(0.5, 0.25, first, second), base, base + update).tolist() == [[1.5, 4]]
    assert merge(Mapped(0.5, 0.25, first, second, 0), base.T, (base + update).T).tolist() == [[1.5], [4]]


def test_which_identity_a_method_is():
    expected: list[tuple[TensorMerge, str | int | None]] = [
        (Linear((1.0, 0.0, 0.0)), "base"), (Linear((0.0, 0.0, 1.0)), 1), (Linear((0.5, 0.5)), None),
        (Linear((0.0, 0.0)), None), (Linear((1.0, 1.0)), None), (Linear((2.0, 0.0)), None),
        (Slerp(0.0), "base"), (Slerp(1.0), 0), (Slerp(0.5), None), (NuSlerp(0.0), "base"), (NuSlerp(1.0), 0),
        (NuSlerp(0.0, over_base=True), 0), (NuSlerp(1.0, over_base=True), 1), (NuSlerp(0.5), None),
        (ModelStock(), None), (TaskVectors((1.0,), (None,)), None), (TaskVectors((1.0,), (None,), scale=0.0), "base"),
        (TaskVectors((0.0, 0.0), (None, None), "sum", normalize=True), "base"),
        (TaskVectors((0.0, 1.0), (None, None)), None), (TaskVectors((0.0, 1.0), (None, Random(0.0))), "base"),
        (Subspace(0.0, torch.eye(2)), None), (Subspace(1.0, torch.eye(2)), 0),
        (Mapped(0.0, 0.0, torch.eye(2), torch.eye(2)), "base"), (Mapped(1.0, 1.0, torch.eye(2), torch.eye(2)), 0),
        (Mapped(0.5, 0.5, torch.eye(2), torch.eye(2)), None),
    ]  # fmt: skip
    for method, identity in expected:
        assert method.identity == identity, method


# Laws


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "method",
    [
        Linear((1.0, 0.0)), Linear((0.0, 1.0)), Slerp(0.0), Slerp(1.0), NuSlerp(0.0), NuSlerp(1.0),
        NuSlerp(0.0, flatten=False), NuSlerp(1.0, flatten=False), NuSlerp(1.0, flatten=False, row_wise=True),
        TaskVectors((0.0,), (None,), normalize=True), TaskVectors((0.0,), (Magnitude(0.5),), "count", normalize=True),
        TaskVectors((0.7,), (Random(0.5),), scale=0.0), TaskVectors((0.7,), (RankedRandom(0.0),), "sum"),
    ],
    ids=str,
)  # fmt: skip
def test_an_identity_gives_its_model_exactly(method: TensorMerge, shape: tuple[int, ...]):
    models = numbers(*shape, seed=1), numbers(*shape, seed=2)
    identity = method.identity
    assert identity is not None
    assert torch.equal(merge(method, *models), models[0 if identity == "base" else 1 + identity])


@settings(max_examples=60, deadline=None)
@given(t=SHARES, shape=st.sampled_from(SHAPES), seed=st.integers(0, 99))
def test_equal_tensors_stay_exactly_as_they_are(t: float, shape: tuple[int, ...], seed: int):
    x = numbers(*shape, seed=seed)
    for method in (Linear((1 - t, t)), Slerp(t), NuSlerp(t), TaskVectors((t,), (None,), "sum", normalize=True)):
        assert torch.equal(merge(method, x, x.clone()), x)
    thirds = Linear((1 - t, t / 2, t / 2)), ModelStock(), NuSlerp(t, over_base=True), NuSlerp(t, True, True, False)
    for method in thirds:
        assert torch.equal(merge(method, x, x.clone(), x.clone()), x)
    if x.ndim and x.shape[-1]:
        assert torch.equal(merge(Subspace(t, orthonormal(x.shape[-1], 1)), x, x.clone()), x)


@settings(max_examples=60, deadline=None)
@given(t=SHARES, shape=st.sampled_from(SHAPES))
@example(t=0.5039215234753561, shape=(65, 3))
def test_opposite_tensors_are_merged_on_the_line_between_them(t: float, shape: tuple[int, ...]):
    """Every operation is rounded once, by 2^-24 of its result. Row by row these are two weights, two products and
    their sum: 2^-23 of (1 - t) |x| + t |2x|, and 2^-24 of the sum, which may be nothing. Flat it is the nearer end and
    a share s = min(t, 1 - t) of the difference 3x; difference, share and product: 2^-24 of 9 s |x|, and of the sum.
    """
    x = numbers(*shape, seed=3)
    for method in (Slerp(t), NuSlerp(t), NuSlerp(t, flatten=False), NuSlerp(t, flatten=False, row_wise=True)):
        found, expected = merge(method, x, -2 * x), x.double() * (1 - 3 * t)
        assert found.dtype == torch.float32
        assert found.shape == x.shape
        bound = 2**-24 * (max(2 * (1 + t), 9 * min(t, 1 - t)) * x.double().abs() + expected.abs())
        assert bool(((found.double() - expected).abs() <= bound).all())


@settings(max_examples=60, deadline=None)
@given(t=SHARES, seed=st.integers(0, 999), length=st.floats(1e-30, 1e30))
def test_an_arc_between_equally_long_ends_keeps_the_length_and_can_be_walked_from_either_end(t, seed, length):
    base, tuned = (torch.nn.functional.normalize(numbers(40, seed=seed + k), dim=0) * length for k in (0, 1))
    for method, back in ((Slerp(t), Slerp(1 - t)), (NuSlerp(t, flatten=False), NuSlerp(1 - t, flatten=False))):
        found = merge(method, base, tuned)
        assert float(found.double().norm()) == pytest.approx(length, rel=1e-6)
        torch.testing.assert_close(found, merge(back, tuned, base), rtol=1e-5, atol=1e-6 * length)


@settings(max_examples=30, deadline=None)
@given(t=SHARES, size=st.floats(0.0, 0.095), seed=st.integers(0, 99))
def test_for_an_update_of_lora_size_slerp_is_lerp_to_a_hundredth_of_the_update(t: float, size: float, seed: int):
    """An update of relative size r turns the tensor by at most about r. Half-way, where the two differ most, the arc's
    weights are 1 / (2 cos(r/2)), so they differ by r/8 of the update: 1.2 % at r = 0.095.
    """
    base = numbers(64, 64, seed=seed)
    update = numbers(64, 8, seed=seed + 1) @ numbers(8, 64, seed=seed + 2)
    update *= size * base.norm() / update.norm()
    apart = merge(Slerp(t), base, base + update) - torch.lerp(base, base + update, t)
    assert apart.norm() <= 0.012 * update.norm() + 1e-6 * base.norm()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 3), min_size=2, max_size=5), st.integers(0, 99))
def test_model_stock_goes_all_the_way_for_parallel_updates_and_nowhere_for_orthogonal_ones(lengths, seed):
    directions = orthonormal(9, len(lengths), seed).T
    base = torch.zeros(9)
    parallel = stock_share(Whole("w", base, [length * directions[0] for length in lengths]))
    assert (parallel.cosine, parallel.share) == pytest.approx((1, 1), abs=1e-6)
    apart = stock_share(Whole("w", base, [length * row for length, row in zip(lengths, directions, strict=True)]))
    assert (apart.cosine, apart.share) == pytest.approx((0, 0), abs=1e-5)


@settings(max_examples=8, deadline=None)
@given(weight=SHARES, m=st.integers(1, 5), seed=st.integers(0, 99), axis=st.sampled_from([-1, 0]))
def test_a_subspace_merge_scales_the_update_inside_and_keeps_it_outside(weight, m, seed, axis):
    """And a LoRA update B A becomes the adapter with A (I - (1 - w) P)."""
    basis = orthonormal(70, m, seed)
    inside, outside = (lambda d: d @ basis @ basis.T), (lambda d: d - d @ basis @ basis.T)
    base, update = numbers(90, 70, seed=seed), numbers(90, 3, seed=seed + 1) @ numbers(3, 70, seed=seed + 2)
    turn = (lambda x: x) if axis else (lambda x: x.T.contiguous())
    method = Subspace(weight, basis, axis)
    found = merge(method, turn(base), turn(base + inside(update)))
    close(found, turn(base + weight * inside(update)), 1e-5)
    close(merge(method, turn(base), turn(base + outside(update))), turn(base + outside(update)), 1e-5)
    kept = torch.eye(70) - (1 - weight) * basis @ basis.T
    close(merge(method, turn(base), turn(base + update)), turn(base + update @ kept), 1e-5)
    assert torch.equal(merge(Subspace(1.0, basis, axis), turn(base), turn(base + update)), turn(base + update))


# Limits


def test_task_vectors_that_cancel_give_the_base_and_say_so():
    base, update = numbers(50), numbers(50, seed=1)
    share = stock_share(Whole("w", torch.zeros(50), [update, -3 * update]))
    assert (share.share, share.opposed) == (0.0, True)
    assert torch.equal(merge(ModelStock(), torch.zeros(50), update, -3 * update), torch.zeros(50))
    assert torch.equal(merge(ModelStock(), base, base + update, base.clone()), base)


@pytest.mark.parametrize("t", [0.25, 0.5])
def test_an_end_of_zeros_counts_as_orthogonal(t: float):
    x = numbers(9)
    for method in (Slerp(t), NuSlerp(t)):
        close(merge(method, torch.zeros(9), x), math.sin(t * math.pi / 2) * x)
        assert torch.equal(merge(method, torch.zeros(9), torch.zeros(9)), torch.zeros(9))


def test_inputs_stay_as_they_are_and_low_precision_is_read_exactly():
    base, tuned = numbers(40).bfloat16(), numbers(40, seed=1).bfloat16()
    kept = base.clone(), tuned.clone()
    close(merge(Linear((0.4, 0.6)), base, tuned), 0.4 * base.double() + 0.6 * tuned.double())
    assert torch.equal(merge(Linear((1.0, 0.0)), base, torch.full((40,), torch.inf)), base.float())
    assert torch.equal(base, kept[0])
    assert torch.equal(tuned, kept[1])


# Independent twins


@settings(max_examples=40, deadline=None)
@given(t=SHARES, seed=st.integers(0, 999), shape=st.sampled_from([(7,), (4, 5), (4, 3, 6)]))
def test_nuslerp_is_the_textbook_formula_in_float64(t: float, seed: int, shape: tuple[int, ...]):
    first, second = numbers(*shape, seed=seed), numbers(*shape, seed=seed + 1)
    for axis, method in [(None, NuSlerp(t)), (-1, NuSlerp(t, flatten=False)), (0, NuSlerp(t, False, True, False))]:
        axes = tuple(range(len(shape))) if axis is None else (axis,)
        a, b = first.double(), second.double()
        cosine = (a * b).sum(axes, True) / ((a * a).sum(axes, True) * (b * b).sum(axes, True)).sqrt()
        assume(cosine.min() > -0.999)  # between nearly opposite ends the arc is no better known than their float32 bits
        angle = torch.arccos(cosine.clamp(-1, 1))
        arc = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
        expected = torch.where(cosine.abs() > 1 - 1e-9, (1 - t) * a + t * b, arc)
        close(merge(method, first, second), expected, 1e-5)


def test_model_stock_is_the_mean_of_pairwise_cosines_in_float64():
    base, tuned = numbers(6, 7), [numbers(6, 7, seed=k) for k in (1, 2, 3)]
    deltas = [(one.double() - base.double()).flatten() for one in tuned]
    pairs = [(0, 1), (0, 2), (1, 2)]
    cosine = sum(float(deltas[i] @ deltas[j] / deltas[i].norm() / deltas[j].norm()) for i, j in pairs) / 3
    share = 3 * cosine / (1 + 2 * cosine)
    close(merge(ModelStock(), base, *tuned), share * sum(tuned) / 3 + (1 - share) * base)


def test_model_stock_is_mergekits_but_for_task_vectors_whose_norms_multiply_to_less_than_a_millionth():
    """mergekit 0.1.5 divides by at least 1e-6; here lengths do not matter."""
    base, deltas = torch.zeros(40), [numbers(40, seed=k) + 1 for k in (1, 2)]
    for scale in (1.0, 1e-3, 1e-4, 1e-6):
        first, second = (scale * one.double() for one in deltas)
        norms = float(first.norm() * second.norm())
        cosine = float(first @ second) / max(norms, 1e-6)
        mergekits = 2 * cosine / (1 + cosine)
        ours = stock_share(Whole("w", base, [scale * one for one in deltas])).share
        assert (ours == pytest.approx(mergekits, rel=1e-5)) == (norms > 1e-6)
        assert ours == pytest.approx(stock_share(Whole("w", base, [one.clone() for one in deltas])).share, rel=1e-5)


# Refusals


@pytest.mark.parametrize(
    ("method", "models"),
    [(Linear((1.0, 1.0)), 2), (Slerp(0.5), 2), (NuSlerp(0.5), 2), (NuSlerp(0.5, over_base=True), 1), (ModelStock(), 1),
     (TaskVectors((1.0,), (None,)), 2), (TaskVectors((1.0, 1.0), (None,)), 1), (Subspace(0.5, torch.eye(4)), 2)],
    ids=str,
)  # fmt: skip
def test_another_number_of_models_than_the_method_takes_is_refused(method: TensorMerge, models: int):
    with pytest.raises(ValueError):
        merge(method, numbers(4), *(numbers(4, seed=k) for k in range(models)))


def test_a_subspace_on_an_axis_that_is_no_input_side_is_refused():
    with pytest.raises(ValueError, match="axis 0 of a matrix"):
        merge(Subspace(0.5, orthonormal(3, 1), input_axis=1), numbers(2, 3, 4), numbers(2, 3, 4))
    with pytest.raises(ValueError, match="of 3 inputs, tensor 'w' has 4"):
        merge(Subspace(0.5, orthonormal(3, 1)), numbers(2, 4), numbers(2, 4))
