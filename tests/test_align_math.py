"""Masked means, group-relative advantages and the objective J: by hand, laws, limits, twins, refusals.

Every call goes through jaxtyping and beartype.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch
from beartype import beartype
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError, jaxtyped
from torch import Tensor
from torch.autograd import grad
from torch.testing import assert_close

from alignkeep import masked
from alignkeep.align import advantage as advantages
from alignkeep.align import objective as objectives
from alignkeep.align.advantage import GroupAdvantage
from alignkeep.align.objective import Coefficients, Strengths

checked: Any = jaxtyped(typechecker=beartype)
sum_over_answer, mean_over_answer = checked(masked.sum_over_answer), checked(masked.mean_over_answer)
group_advantage = checked(advantages.group_advantage)
coefficients, terms = checked(objectives.coefficients), checked(objectives.terms)
boundedly_unlearned = checked(objectives.boundedly_unlearned)

few = settings(max_examples=100, deadline=None)
NAN, INF = math.nan, math.inf
SIZES = st.integers(0, 4)
EQUAL = 1e-5  # between rewards that are equal and those that differ by this share of their size the laws are silent
DEVICES = ["cpu", "meta", *(["cuda"] if torch.cuda.is_available() else [])]
both_groups = pytest.mark.parametrize("inside", [True, False], ids=["in group", "literal"])


def wide(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: Any, expected: Any, rtol: float = 1e-9, atol: float = 1e-9) -> None:
    assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=rtol, atol=atol, equal_nan=True)


def advantage_of(table: list[list[float]], dtype: torch.dtype = torch.float64, **options: Any) -> GroupAdvantage:
    """Of groups that are rows of rewards, the reference's last."""
    rewards = torch.tensor(table, dtype=dtype)
    found = group_advantage(rewards[:, :-1], rewards[:, -1], **options)
    assert found.sampled.shape == rewards[:, :-1].shape
    assert found.reference.shape == rewards[:, -1].shape
    assert found.sampled.dtype == found.reference.dtype == dtype
    return found


def whole(found: GroupAdvantage) -> Tensor:
    return torch.cat([found.sampled, found.reference[:, None]], 1)


def scored(row: list[float]) -> list[float]:
    return [one for one in row if not math.isnan(one)]


def share(row: list[float]) -> float:
    """Deviation as a share of the largest reward; 0 where all are equal or none is scored."""
    known = scored(row)
    return statistics.pstdev(known) / max(map(abs, known)) if len(set(known)) > 1 else 0.0


# Tables of B >= 1 groups, G >= 1 samples and the reference: judges, any float32, huge with tiny, constant, unscored.
_EXTREMES = [0.0, 1.0, -1.0, 1e30, -1e30, 3e30, 1e-30, -1e-30, 2e-30, NAN]
_ANY = st.floats(-(2.0**100), 2.0**100, width=32) | st.just(NAN)
_CONSTANT = st.floats(-(2.0**100), 2.0**100, width=32).map(lambda one: st.sampled_from([one, one, NAN]))
_ENTRIES: Any = st.one_of(
    st.sampled_from([st.sampled_from([-1.0, 0.0, 1.0]), st.sampled_from(_EXTREMES), _ANY, st.just(NAN)]), _CONSTANT
)


@st.composite
def tables(draw: Any) -> list[list[float]]:
    group, one = draw(st.integers(1, 6)), draw(_ENTRIES)
    rows = draw(st.lists(st.lists(one, min_size=group + 1, max_size=group + 1), min_size=1, max_size=4))
    rows = torch.tensor(rows, dtype=torch.float32).double().tolist()  # what float32 and float64 share
    assume(all(share(row) == 0 or share(row) > EQUAL for row in rows))
    return rows


strengths_drawn = st.builds(Strengths, *[st.sampled_from([0.0, 0.5, 0.6, 1.0, 1e6]) | st.floats(0, 10)] * 3)


def j_of(c: Coefficients, sampled: Tensor, reference: Tensor) -> Tensor:
    return (c.sampled * sampled).sum(1) + c.reference * reference


def equation_2(e: Any, i: Any, found: Any, strengths: Strengths) -> list[Any]:
    """Per prompt (1/G) sum_i [A_i E_i + beta A_y I + lambda A_i (E_i - I)], as printed, e A_i E_i for A_i E_i."""
    values: list[Any] = []
    for b in range(len(i)):
        total: Any = 0.0
        for at in range(len(e[b])):
            a, a_y = found[0][b][at], found[1][b]
            total = total + strengths.exploration * a * e[b][at]
            total = total + strengths.imitation * a_y * i[b]
            total = total + strengths.regulariser * a * (e[b][at] - i[b])
        values.append(total / len(e[b]))
    return values


def equations_3_and_4(row: list[float], inside: bool) -> list[float]:
    """A = (R - mean) / std over the scored of the group, population deviation; departures 2 and 3 for the rest."""
    known = scored(row if inside else row[:-1])
    if len(set(known)) < 2:
        return [0.0] * len(row)
    mean, deviation = statistics.fmean(known), statistics.pstdev(known)
    return [0.0 if math.isnan(one) else (one - mean) / deviation for one in row]


# By hand


def test_sums_and_means_of_answers_by_hand() -> None:
    """1 + 4 = 5 over 2 tokens; 8 over 1, beside NaN and infinity; of no token the sum is 0 and there is no mean."""
    values = wide([[1, 2, 4], [8, NAN, INF], [NAN, -INF, 3]])
    mask = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 0, 0]])
    for one in (mask, mask.bool(), mask.int()):
        assert sum_over_answer(values, one).tolist() == [5, 8, 0]
        close(mean_over_answer(values, one), [2.5, 8, NAN], 0, 0)


def test_groups_of_two_samples_and_the_reference_by_hand() -> None:
    """(1, -1; 0): mean 0, variance 2/3: sqrt(3/2), its negative, 0. (1, 0; 0): mean 1/3, variance (4 + 1 + 1)/27 = 2/9:
    (2/3) / (sqrt(2)/3) = sqrt(2), twice -1/sqrt(2). (-1, -1; 0): mean -2/3, variance 2/9: twice -1/sqrt(2), sqrt(2).
    (1, 1; 0): the same with other signs. (1, unscored; 0): mean 1/2, deviation 1/2: 1, none, -1. (3, 5; unscored):
    mean 4, deviation 1. One alone is equal to itself."""
    rows = [[1, -1, 0], [1, 0, 0], [-1, -1, 0], [1, 1, 0], [1, NAN, 0], [3, 5, NAN], [NAN, NAN, 7], [0, 0, 0]]
    two, half, three = math.sqrt(2), math.sqrt(1 / 2), math.sqrt(3 / 2)
    expected = [
        [three, -three, 0], [two, -half, -half], [-half, -half, two], [half, half, -two], [1, 0, -1], [-1, 1, 0],
        [0, 0, 0], [0, 0, 0],
    ]  # fmt: skip
    close(whole(advantage_of(rows)), expected)


def test_the_printed_sums_over_two_samples_by_hand() -> None:
    """(1, -1; 0): mean 0, deviation 1. (1, 0; 0): mean 1/2, deviation 1/2. (4, 2; 9): mean 3, deviation 1, so 6. (-1,
    -1; 0) and (1, unscored; 0) have no deviation. (1, 3; unscored): mean 2, deviation 1."""
    rows = [[1, -1, 0], [1, 0, 0], [4, 2, 9], [-1, -1, 0], [1, NAN, 0], [1, 3, NAN]]
    expected = [[1, -1, 0], [1, -1, -1], [1, -1, 6], [0, 0, 0], [0, 0, 0], [-1, 1, 0]]
    close(whole(advantage_of(rows, reference_in_group=False)), expected)


def test_the_objective_by_hand() -> None:
    """A = (2, -1), A_y = -1, E = (-1, -3), I = -4, beta 1/2, lambda 3/5. Imitation 1/2 x -1 x -4 = 2; exploration (-2 +
    3)/2 = 1/2; regulariser 3/5 x (2 x 3 - 1 x 1)/2 = 3/2; J = 4. c = 8/5 x (2, -1)/2, c_y = -1/2 - 3/5 x 1/2 = -4/5:
    8/5 x -1 - 4/5 x -3 - 4/5 x -4 = 4."""
    found = GroupAdvantage(wide([[2, -1]]), wide([-1]))
    e, i = wide([[-1, -3]]), wide([-4])
    close(torch.stack(terms(e, i, found, Strengths())), [[2], [0.5], [1.5]])
    c = coefficients(found, Strengths())
    close(c.sampled, [[1.6, -0.8]])
    close(c.reference, [-0.8])
    close(j_of(c, e, i), [4])


def test_the_weights_of_the_paper_and_its_ablations_by_hand() -> None:
    """G = 8. Paper: (.5 + .6/8)/1.6 = .575/1.6 = .3594. No regulariser: .5/1. No exploration: .575/.6 = .9583. No
    imitation: .075/1.6 = .0469."""
    assert Strengths() == (0.5, 1.0, 0.6)
    found = advantage_of([[1, -1, -1, 0, 1, -1, -1, -1, 0]])
    for strengths, exact, printed in [
        (Strengths(), 0.359375, 0.36), (Strengths(regulariser=0.0), 0.5, 0.5),
        (Strengths(exploration=0.0), 0.575 / 0.6, 0.96), (Strengths(imitation=0.0), 0.046875, 0.05),
    ]:  # fmt: skip
        c = coefficients(found, strengths)
        weight = (c.reference / found.reference) / (8 * c.sampled / found.sampled)[:, 0]
        close(weight, [exact])
        assert round(weight.item(), 2) == printed


# Laws


@few
@given(SIZES, SIZES, st.integers(0, 999), st.sampled_from([NAN, INF, -INF, 1e300, 7.0]), st.booleans())
def test_what_stands_under_the_mask_never_matters(n: int, length: int, seed: int, under: float, whole_numbers: bool):
    values, mask = normal(n, length, seed=seed), normal(n, length, seed=seed + 1) > 0
    other, given_mask = values.masked_fill(~mask, under), mask.long() if whole_numbers else mask
    padded = torch.nn.functional.pad(other, (0, 3), value=under), torch.nn.functional.pad(given_mask, (0, 3))
    for over in (sum_over_answer, mean_over_answer):
        expected = over(values, mask)
        assert expected.shape == (n,)
        close(over(other, given_mask), expected, 0, 0)
        close(over(*padded), expected, 1e-12, 1e-12)
    empty = mask.sum(1) == 0
    assert not sum_over_answer(other, given_mask)[empty].any()
    assert torch.equal(mean_over_answer(other, given_mask).isnan(), empty)


@few
@given(SIZES, SIZES, st.integers(0, 999), st.sampled_from([NAN, INF, -INF, 0.5]))
def test_only_tokens_of_the_answer_have_a_gradient(n: int, length: int, seed: int, under: float) -> None:
    """1 in the sum, 1/|answer| in the mean; nothing is NaN, not even of an answer without a token."""
    mask = normal(n, length, seed=seed) > 0
    values = normal(n, length, seed=seed + 1).masked_fill(~mask, under).requires_grad_()
    outer = normal(n, seed=seed + 2)
    count = mask.double().sum(1, keepdim=True).clamp(min=1)
    for over, each in ((sum_over_answer, mask.double()), (mean_over_answer, mask / count)):
        (found,) = grad((outer * over(values, mask)).sum(), values)
        close(found, outer[:, None] * each)
        assert not found[~mask].any()


@pytest.mark.parametrize("seen", [NAN, INF, -INF])
def test_what_stands_in_the_answer_is_not_hidden(seen: float) -> None:
    values, mask = wide([[1, seen, NAN]]), torch.tensor([[True, True, False]])
    close(sum_over_answer(values, mask), [seen], 0, 0)
    close(mean_over_answer(values, mask), [seen], 0, 0)


@few
@given(tables(), st.sampled_from([torch.float32, torch.float64]))
def test_a_group_adds_up_to_nothing_and_its_squares_to_its_members(table: list[list[float]], dtype: torch.dtype):
    found = whole(advantage_of(table, dtype)).double()
    assert found.isfinite().all()
    for row, of_row in zip(table, found, strict=True):
        members = len(scored(row)) if share(row) else 0
        close(of_row.sum(), 0.0, atol=1e-5)
        close(of_row.square().sum(), members, 1e-5, 1e-5)
        assert members or not of_row.any()
        assert not of_row[wide(row).isnan()].any()


@few
@given(tables())
def test_printed_so_the_samples_alone_add_up_to_nothing_and_their_squares_to_their_number(table: list[list[float]]):
    found = advantage_of(table, reference_in_group=False)
    assert whole(found).isfinite().all()
    for row, sampled, reference in zip(table, *found, strict=True):
        assume(share(row[:-1]) == 0 or share(row[:-1]) > EQUAL)
        members = len(scored(row[:-1])) if share(row[:-1]) else 0
        close(sampled.sum(), 0.0)
        close(sampled.square().sum(), members)
        assert members or not (sampled.any() or reference.any())
        assert not math.isnan(row[-1]) or reference == 0


@both_groups
@few
@given(tables(), st.sampled_from([1e-30, 0.3, 1.0, 7.0, 1e30]), st.sampled_from([-1e3, -1.0, 0.0, 0.1, 1e3]))
def test_a_positive_factor_and_a_constant_change_nothing(inside: bool, table: list, factor: float, constant: float):
    """The constant is a multiple of the largest reward; deviations of 1 % of it are far from equal rewards."""
    seen = table if inside else [row[:-1] for row in table]
    assume(all(share(row) == 0 or share(row) > 0.01 for row in seen))
    size = [max(map(abs, scored(row)), default=0.0) for row in table]
    expected = whole(advantage_of(table, reference_in_group=inside))
    assume(bool((expected.abs() < 1e6).all()))  # a reference far outside of its group rounds otherwise
    scaled = [[factor * one for one in row] for row in table]
    shifted = [[one + constant * most for one in row] for row, most in zip(table, size, strict=True)]
    for other in (scaled, shifted):
        close(whole(advantage_of(other, reference_in_group=inside)), expected, 1e-6, 1e-6)


@both_groups
@few
@given(tables(), st.randoms(use_true_random=False))
def test_orders_of_samples_and_of_prompts_are_kept(inside: bool, table: list[list[float]], random: Any) -> None:
    seen = table if inside else [row[:-1] for row in table]
    assume(all(share(row) == 0 or share(row) > EQUAL for row in seen))
    rows, columns = list(range(len(table))), list(range(len(table[0]) - 1))
    random.shuffle(rows)
    random.shuffle(columns)
    other = [[table[b][i] for i in [*columns, -1]] for b in rows]
    expected = whole(advantage_of(table, reference_in_group=inside))[rows][:, [*columns, -1]]
    close(whole(advantage_of(other, reference_in_group=inside)), expected, 1e-8, 1e-8)


@few
@given(tables(), st.floats(-5, 0))
def test_the_floor_holds_the_reference_and_nothing_else(table: list[list[float]], floor: float) -> None:
    free, held = advantage_of(table), advantage_of(table, min_reference=floor)
    close(held.sampled, free.sampled, 0, 0)
    close(held.reference, [max(floor, one) for one in free.reference.tolist()], 0, 0)
    close(whole(advantage_of(table, min_reference=-INF)), whole(free), 0, 0)


@few
@given(tables(), st.floats(0.5, 5), st.floats(0, 1), st.floats(0, 5))
def test_with_a_floor_of_0_what_all_answers_share_is_never_unlearned(table, beta: float, of_beta: float, more: float):
    """sum_i c_i + c_y = (beta - e / G) A_y, and at least 0 with the floor where beta G >= e."""
    group = len(table[0]) - 1
    strengths = Strengths(beta, of_beta * beta * group, more)
    free, held = (advantage_of(table, min_reference=floor) for floor in (None, 0.0))
    push = [c.sampled.sum(1) + c.reference for c in (coefficients(one, strengths) for one in (free, held))]
    close(push[0], (beta - strengths.exploration / group) * free.reference)
    assert (push[1] >= -1e-9).all()


def test_where_every_sample_wins_what_all_answers_share_is_unlearned_unless_the_floor_is_near_0() -> None:
    """G = 8, A_i = 8^-1/2, A_y = -8^1/2: (0.5 - 1/8) A_y = -1.06; with a floor f of A_y 8^-1/2 + f / 2."""
    won = [[1.0] * 8 + [0.0]]
    for floor, push in ((None, -(8**0.5) * 0.375), (-1.0, 8**-0.5 - 0.5), (0.0, 8**-0.5)):
        c = coefficients(advantage_of(won, min_reference=floor), Strengths())
        close(c.sampled.sum(1) + c.reference, [push])


def test_a_reference_that_is_unlearned_boundedly_by_hand() -> None:
    """Probabilities 1/2 and 1/4: times their own logarithm where c < 0, the logarithm alone where it is not."""
    logs = wide([[0.5, 0.25]] * 3).log()
    found = boundedly_unlearned(logs, wide([-1.0, 0.0, 2.0]))
    close(found, [[-0.5 * math.log(2), -0.25 * math.log(4)], logs[1].tolist(), logs[2].tolist()])


@few
@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 999), st.floats(0, 60))
def test_what_is_unlearned_boundedly_has_the_gradient_of_its_probability(
    length: int, words: int, seed: int, scale: float
) -> None:
    """So a word loses at most a quarter at its logit, and nothing once it is improbable; what is learned is as ever."""
    logits = normal(2, length, words, seed=seed, scale=scale).requires_grad_()
    logs = logits.log_softmax(-1)[..., 0]
    coefficient = wide([-3.0, 3.0])
    (found,) = grad((coefficient[:, None] * boundedly_unlearned(logs, coefficient)).sum(), logits, retain_graph=True)
    (unlearned,) = grad(-3 * logs[0].exp().sum(), logits, retain_graph=True)
    (learned,) = grad(3 * logs[1].sum(), logits)
    close(found, unlearned + learned)
    assert (found[0, :, 0].abs() <= 3 / 4 + 1e-9).all()


@few
@given(tables(), strengths_drawn, st.integers(0, 999), st.booleans())
def test_in_the_printed_form_the_reference_leaves_the_regulariser(table, strengths, seed: int, inside: bool) -> None:
    """sum_i A_i = 0. With the reference inside it is lambda A_y I / G that the regulariser adds for the reference."""
    assume(all(share(row[:-1]) == 0 or share(row[:-1]) > EQUAL for row in table))
    found = advantage_of(table, reference_in_group=inside)
    b, group = found.sampled.shape
    e, i, more = normal(b, group, seed=seed), normal(b, seed=seed + 1), normal(b, seed=seed + 2, scale=10)
    moved = terms(e, i + more, found, strengths).regulariser - terms(e, i, found, strengths).regulariser
    of_reference = strengths.regulariser * found.reference * more / group
    close(moved, of_reference if inside else torch.zeros(b), 1e-8, 1e-7 * (1 + strengths.regulariser))
    if not inside:
        c = coefficients(found, strengths).reference
        close(c, strengths.imitation * found.reference, 1e-8, 1e-8 * (1 + strengths.regulariser))


@few
@given(tables(), strengths_drawn, st.integers(0, 999))
def test_all_strengths_are_one_family(table: list[list[float]], strengths: Strengths, seed: int) -> None:
    """J(beta, e, lambda) = (e + lambda) J(beta', 1, 0), beta' = (beta + lambda/G) / (e + lambda)."""
    total = strengths.exploration + strengths.regulariser
    assume(total > 1e-3)
    found = advantage_of(table)
    b, group = found.sampled.shape
    e, i = normal(b, group, seed=seed), normal(b, seed=seed + 1)
    one = Strengths((strengths.imitation + strengths.regulariser / group) / total, 1.0, 0.0)
    first, second = coefficients(found, strengths), coefficients(found, one)
    size = sum(strengths) + 1
    close(first.sampled, total * second.sampled, 1e-9, 1e-9 * size)
    close(first.reference, total * second.reference, 1e-9, 1e-9 * size)
    close(sum(terms(e, i, found, strengths)), total * j_of(second, e, i), 1e-9, 1e-8 * size)


# Limits


@both_groups
@pytest.mark.parametrize("reward", [0.0, 1.0, -1.0, 0.1, 1e30, -1e-30, 1 / 3])
@pytest.mark.parametrize("group", [1, 2, 7, 1000])
def test_equal_rewards_are_exactly_nothing_whatever_the_answers(inside: bool, reward: float, group: int) -> None:
    """A, c, J and its gradients, with 0 and no more from the reference."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        found = advantage_of([[reward] * (group + 1)], dtype, reference_in_group=inside)
        e, i = normal(1, group, seed=1, scale=1e6).to(dtype), normal(1, seed=2, scale=1e6).to(dtype)
        e, i = e.requires_grad_(), i.requires_grad_()
        total = torch.stack([*terms(e, i, found, Strengths()), j_of(coefficients(found, Strengths()), e, i)])
        assert not any(one.any() for one in (*found, total, *grad(total.sum(), (e, i))))


@pytest.mark.parametrize("group", [1, 2, 8, 1000])
@pytest.mark.parametrize("won", [-1.0, 1.0])
def test_of_a_group_that_loses_every_comparison_the_reference_is_learned_and_the_other_way_round(
    group: int, won: float
):
    """Mean won G/(G + 1), deviation sqrt(G)/(G + 1): won/sqrt(G) each and -won sqrt(G). Printed so, nothing."""
    table = [[won] * group + [0.0]]
    found = advantage_of(table)
    close(found.sampled, [[won / math.sqrt(group)] * group])
    close(found.reference, [-won * math.sqrt(group)])
    assert not whole(advantage_of(table, reference_in_group=False)).any()


@both_groups
def test_no_answer_scored_is_nothing_and_so_is_no_prompt(inside: bool) -> None:
    for row in ([NAN] * 4, [NAN, NAN, NAN, 5.0], [NAN, 5.0, NAN, NAN], [NAN, NAN]):
        assert not whole(advantage_of([row], reference_in_group=inside)).any()
    found = group_advantage(torch.zeros(0, 3), torch.zeros(0), reference_in_group=inside)
    assert found.sampled.shape == (0, 3)
    assert coefficients(found, Strengths()).reference.shape == (0,)


def test_rounding_errors_are_no_reward_but_a_difference_on_a_large_common_value_is() -> None:
    """One float32 beside 0.1 is 1e-7 of it. 1e5 and 1e5 + 1 differ by 1e-5 of their size."""
    beside = torch.nextafter(torch.tensor(0.1), torch.tensor(1.0)).item()
    assert not whole(advantage_of([[0.1, beside, beside]], torch.float32)).any()
    close(whole(advantage_of([[1e5, 1e5 + 1]], torch.float32)), [[-1, 1]], 1e-6)
    close(whole(advantage_of([[-1e5, -1e5 - 1]], torch.float32)), [[1, -1]], 1e-6)
    close(whole(advantage_of([[1e4, 1e4 + 1] * 500], torch.float32)), [[-1, 1] * 500], 1e-6)  # however many there are


@both_groups
@pytest.mark.parametrize("floor", [None, -0.5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("device", DEVICES)
def test_type_and_device_follow_the_rewards(inside: bool, floor: float | None, dtype: torch.dtype, device: str) -> None:
    rewards = torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]], dtype=dtype, device=device)
    found = group_advantage(rewards[:, :-1], rewards[:, -1], reference_in_group=inside, min_reference=floor)
    mask = torch.ones(2, 2, dtype=torch.bool, device=device)
    e, i = mean_over_answer(found.sampled, mask), sum_over_answer(found.sampled, mask)
    for one in (*found, *coefficients(found, Strengths()), *terms(found.sampled, i, found, Strengths()), e, i):
        assert (one.dtype, one.device.type) == (dtype, device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_in_a_smaller_type_advantages_are_those_of_float64_rounded_once(dtype: torch.dtype) -> None:
    table = (normal(50, 9, seed=3).to(dtype) + 3).tolist()
    close(whole(advantage_of(table, dtype)), whole(advantage_of(table)), 0, 0)


def test_no_strength_but_one_leaves_one_term() -> None:
    found, e, i = advantage_of([[1, -1, -1, 0]]), normal(1, 3, seed=1), normal(1, seed=2)
    for at, strengths in enumerate([Strengths(1, 0, 0), Strengths(0, 1, 0), Strengths(0, 0, 1)]):
        each, c = terms(e, i, found, strengths), coefficients(found, strengths)
        assert [bool(one.any()) for one in each] == [at == other for other in range(3)]
        assert bool(c.sampled.any()) == (at != 0)
        assert bool(c.reference.any()) == (at != 1)
    assert not any(one.any() for one in coefficients(found, Strengths(0, 0, 0)))


# Independent twins


@few
@given(SIZES, SIZES, st.integers(0, 999))
def test_sums_and_means_are_those_of_a_loop(n: int, length: int, seed: int) -> None:
    values, mask = normal(n, length, seed=seed, scale=1e3), normal(n, length, seed=seed + 1) > -0.5
    kept = [[one for one, on in zip(*row, strict=True) if on] for row in zip(values.tolist(), mask, strict=True)]
    close(sum_over_answer(values, mask), [math.fsum(row) for row in kept], 1e-12)
    close(mean_over_answer(values, mask), [statistics.fmean(row) if row else NAN for row in kept], 1e-12)


@both_groups
@few
@given(tables())
def test_advantages_are_those_of_the_statistics_of_a_loop(inside: bool, table: list[list[float]]) -> None:
    assume(inside or all(share(row[:-1]) == 0 or share(row[:-1]) > EQUAL for row in table))
    expected = [equations_3_and_4(row, inside) for row in table]
    close(whole(advantage_of(table, reference_in_group=inside)), expected, 1e-8, 1e-8)


@both_groups
@few
@given(tables(), strengths_drawn, st.integers(0, 999))
def test_coefficients_and_terms_are_equation_2_and_its_gradients(inside: bool, table, strengths, seed: int) -> None:
    found = advantage_of(table, reference_in_group=inside)
    assume(bool((whole(found).abs() < 1e6).all()))
    e = normal(*found.sampled.shape, seed=seed).requires_grad_()
    i = normal(len(table), seed=seed + 1).requires_grad_()
    literal, c = torch.stack(equation_2(e, i, found, strengths)), coefficients(found, strengths)
    size = 1e-12 * (1 + sum(strengths)) * (1 + float(whole(found).abs().max())) * 100
    by_terms, by_coefficients = sum(terms(e, i, found, strengths)), j_of(c, e, i)
    outer, expected = normal(len(table), seed=seed + 2), None
    for one in (literal, by_terms, by_coefficients):
        close(one, literal, 1e-12, size)
        gradients = grad((outer * one).sum(), (e, i))
        expected = expected or gradients
        for mine, theirs in zip(gradients, expected, strict=True):
            close(mine, theirs, 1e-12, size)
    close(expected[0] if expected else e, outer[:, None] * c.sampled, 1e-12, size)
    close(expected[1] if expected else i, outer * c.reference, 1e-12, size)


@both_groups
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strengths", [Strengths(), Strengths(0.3, 0.0, 0.7), Strengths(1.0, 2.0, 0.0)])
def test_from_logits_to_the_gradient_everything_is_a_loop_over_equations_2_to_4(
    inside: bool, seed: int, strengths: Any
):
    """A softmax policy over V words: a row of logits for each word before, and one for each prompt."""
    prompts, group, length, words = 3, 4, 5, 6
    random = torch.Generator().manual_seed(seed)
    answers = torch.randint(words, (prompts, group + 1, length), generator=random)
    lengths = torch.randint(1, length + 1, (prompts, group + 1), generator=random)
    rewards = torch.randint(-1, 2, (prompts, group + 1), generator=random).double()
    rewards[:, -1] = 0
    rewards[0, 0], rewards[1] = NAN, 1.0  # one that could not be scored, a group of equals
    policy = (normal(words, words, seed=seed).requires_grad_(), normal(prompts, words, seed=seed + 9).requires_grad_())
    after, about = policy

    before = torch.nn.functional.pad(answers[..., :-1], (1, 0))
    log_probs = (after[before] + about[:, None, None]).log_softmax(-1).gather(-1, answers[..., None])[..., 0]
    mask = torch.arange(length) < lengths[..., None]
    log_probs = torch.where(mask, log_probs, NAN)
    means = mean_over_answer(log_probs.flatten(0, 1), mask.flatten(0, 1)).view(prompts, group + 1)
    found = group_advantage(rewards[:, :-1], rewards[:, -1], reference_in_group=inside)
    e, i = means[:, :-1], means[:, -1]
    ours = j_of(coefficients(found, strengths), e, i).mean()

    rows: list[list[Tensor]] = []
    for b in range(prompts):
        rows.append([])
        for at in range(group + 1):
            last, each = 0, []
            for word in answers[b, at, : int(lengths[b, at])].tolist():
                logits = after[last] + about[b]
                each.append(logits[word] - logits.exp().sum().log())
                last = word
            rows[b].append(torch.stack(each).sum() / len(each))
    standard = [equations_3_and_4(row, inside) for row in rewards.tolist()]
    split = [row[:-1] for row in standard], [row[-1] for row in standard]
    values = equation_2([row[:-1] for row in rows], [row[-1] for row in rows], split, strengths)
    theirs = torch.stack([torch.as_tensor(one) for one in values]).mean()

    by_terms = torch.stack(terms(e, i, found, strengths)).sum(0).mean()
    assert theirs.abs() > 1e-3
    for one in (ours, by_terms):
        close(one, theirs)
        for mine, other in zip(
            grad(one, policy, retain_graph=True), grad(theirs, policy, retain_graph=True), strict=True
        ):
            assert other.abs().max() > 1e-3
            close(mine, other)
            assert not mine[1].any() or mine.shape[0] == words  # the group of equals teaches its prompt nothing


# Refusals


def test_shapes_that_do_not_fit_are_refused() -> None:
    """Each would broadcast, and be wrong in silence."""
    found = GroupAdvantage(wide([[1, -1], [1, -1]]), wide([0, 0]))
    square, row = torch.zeros(2, 2), torch.zeros(2)
    for call in (
        lambda: sum_over_answer(square, torch.ones(1, 2).bool()),
        lambda: mean_over_answer(square, torch.ones(2, 1).bool()),
        lambda: sum_over_answer(square, square),
        lambda: sum_over_answer(row, row.bool()),
        lambda: group_advantage(square, torch.zeros(1)),
        lambda: group_advantage(square, row[:, None]),
        lambda: group_advantage(square.long(), row.long()),
        lambda: terms(square[:1], row, found, Strengths()),
        lambda: terms(square, torch.zeros(1), found, Strengths()),
        lambda: coefficients(tuple(found), Strengths()),
    ):
        with pytest.raises(TypeCheckError):
            call()


def test_finite_rewards_never_have_an_infinite_advantage_printed_form() -> None:
    """Samples (0, 1e-30), reference 1e30 outside of their group: (1e30 - 5e-31)/5e-31 is no float32."""
    assert whole(advantage_of([[0.0, 1e-30, 1e30]], torch.float32, reference_in_group=False)).isfinite().all()


def test_finite_rewards_never_have_an_infinite_advantage_printed_form_half() -> None:
    """Samples (0, 1e-4), reference 100: 2e6 is no float16."""
    assert whole(advantage_of([[0.0, 1e-4, 100.0]], torch.float16, reference_in_group=False)).isfinite().all()


@pytest.mark.parametrize("factor", [1e160, 1e300, 1e-165, 1e-300])
def test_no_positive_factor_changes_a_group_in_float64(factor: float) -> None:
    """The squares leave float64: all advantages are 0, as if the rewards were equal."""
    close(whole(advantage_of([[factor, 0.0, -factor]])), whole(advantage_of([[1.0, 0.0, -1.0]])))


def test_rewards_within_a_millionth_of_the_largest_are_equal() -> None:
    """1e7 and 1e7 + 1 are 1e-7 of their size apart."""
    assert not whole(advantage_of([[1e7, 1e7 + 1]], torch.float32)).any()


def test_a_reference_that_could_not_be_scored_has_no_advantage_whatever_the_floor() -> None:
    """Departure 3 against `min_reference`: clamped to it, an unscored reference is imitated."""
    assert not advantage_of([[1.0, -1.0, NAN]], min_reference=0.25).reference.any()
