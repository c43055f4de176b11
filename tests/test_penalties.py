"""An update cut in two, and AlignGuard's four terms: by hand, laws, limits, twins, refusals."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, matmul
from torch.autograd import grad, gradcheck
from torch.nn.functional import pad
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from alignkeep.train import penalties
from alignkeep.train.penalties import Emphasis, coherence, collision, fisher_penalty, inner, trust_penalty
from alignkeep.train.split import LowRank, LowRankSplit, Side, Subspace, split

D_OUT, D_IN = 5, 7
SIDES = (("inputs",), ("outputs",), ("inputs", "outputs"))
EMPHASES = Emphasis(4, 0.5), Emphasis(3, 0.5, "relative"), Emphasis(4, 0.5, "weight")
exact = partial(torch.tensor, dtype=torch.float64)
few = settings(max_examples=40, deadline=None)
every_side = pytest.mark.parametrize("sides", SIDES, ids="-".join)
every_emphasis = pytest.mark.parametrize("emphasis", EMPHASES, ids=lambda one: one.compares)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shares(width: int, seed: int) -> Tensor:
    return (normal(width, seed=seed).abs() + 0.1).clamp(max=1)


def close(found: Tensor, expected: Any, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=rtol, atol=atol)


def space(sides: Any, m: int, k: int, seed: int, d_out: int = D_OUT, d_in: int = D_IN) -> Subspace:
    def side(width: int, rank: int, seed: int) -> Side:
        basis = torch.linalg.qr(normal(width, width, seed=seed)).Q[:, :rank]
        return Side(basis, shares(basis.shape[1], seed + 1), shares(width, seed + 2))

    inputs, outputs = side(d_in, m, seed), side(d_out, k, seed + 3)
    return Subspace(inputs if "inputs" in sides else None, outputs if "outputs" in sides else None)


def factors(r: int, seed: int, d_out: int = D_OUT, d_in: int = D_IN) -> LowRank:
    return LowRank(normal(d_out, r, seed=seed), normal(r, d_in, seed=seed + 1))


def variables(update: LowRank, scale: float = 1.0) -> LowRank:
    return LowRank((scale * update.left).requires_grad_(), update.right.clone().requires_grad_())


def changed(subspace: Subspace, change: Any) -> Subspace:
    return Subspace(*(one and change(one) for one in subspace))


def terms(update: LowRank, subspace: Subspace, h: Any = (None, None), emphasis: Any = None, weight: Any = None):
    parts = split(update, subspace)
    fisher, trust = fisher_penalty(parts.aligned, subspace), trust_penalty(parts.rest, *h)
    return torch.stack([fisher, trust, coherence(parts, subspace), collision(parts, emphasis, weight)])


def dense_terms(delta: Tensor, subspace: Subspace, h: Any, emphasis: Emphasis, weight: Tensor) -> Tensor:
    """Fisher, trust, coherence and collision over entries: P, F, H and eta written out as whole matrices."""
    sides: list[tuple[Tensor, Tensor, Tensor]] = []  # P, F, diagonal
    for width, one in zip(delta.shape[::-1], subspace, strict=True):
        u, values, diagonal = one or Side(torch.eye(width).double(), *torch.ones(2, width).double())
        sides.append((u @ u.T, u @ torch.diag(values) @ u.T, diagonal))
    (p_in, f_in, columns), (p_out, f_out, rows) = sides
    aligned = p_out @ delta @ p_in
    rest, metric = delta - aligned, torch.outer(rows, columns)
    fisher, trust = torch.trace(aligned.T @ f_out @ aligned @ f_in), (torch.outer(*h).sqrt() * rest).pow(2).sum()
    ours, theirs, mixed = ((metric * a * b).sum() for a, b in ((aligned, aligned), (rest, rest), (aligned, rest)))
    cosine = 0 * mixed if min(ours, theirs) < 1e-12 else mixed**2 / (ours * theirs)
    size = (weight + delta).abs() if emphasis.compares == "weight" else delta.abs()
    above = (size - emphasis.tau) / (emphasis.tau if emphasis.compares == "relative" else 1)
    eta = 1 + emphasis.beta / (1 + (-above).exp())
    return torch.stack([fisher, trust, cosine, (eta * (aligned * rest).abs()).sum()])


# By hand
AXIS = Side(exact([[0.6], [0.8]]), exact([0.5]), exact([1.0, 0.25]))
UPDATE, INPUTS = LowRank(exact([[1.0], [2.0]]), exact([[2.0, 1.0]])), Subspace(AXIS)


def test_both_parts_and_three_terms_by_hand():
    """dW = (1, 2)^T (2, 1), u = (.6, .8). (2, 1) u = 2: inside (1.2, 1.6), beside (.8, -.6). (1, 2) u = 2.2: inside
    (1.32, 1.76), beside (-.32, .24). Of both sides the inside is (1.32, 1.76)^T (1.2, 1.6), the rest what is left.
    Fisher, eigenvalue .5: 5 x 4 x .5; 4.84 x 5 x .5; 4.84 x 4 x .25. Beside the inputs 5 x 1: rows (1, .5) make 5 to
    3, columns (1, .25) 1 to .64 + .09 = .73. Coherence under (1, .25): product .96 - .24 = .72, squares 2.08 and .73.
    """
    for subspace, aligned, rest, fisher in [
        (INPUTS, [[1.2, 1.6], [2.4, 3.2]], [[0.8, -0.6], [1.6, -1.2]], 10),
        (Subspace(outputs=AXIS), [[2.64, 1.32], [3.52, 1.76]], [[-0.64, -0.32], [0.48, 0.24]], 12.1),
        (Subspace(AXIS, AXIS), [[1.584, 2.112], [2.112, 2.816]], [[0.416, -1.112], [1.888, -0.816]], 4.84),
    ]:
        for part, expected in zip(split(UPDATE, subspace), (aligned, rest), strict=True):
            close(matmul(*part), expected)
        close(fisher_penalty(split(UPDATE, subspace).aligned, subspace), fisher)
    rows, columns, parts = exact([1.0, 0.5]), exact([1.0, 0.25]), split(UPDATE, INPUTS)
    for h, expected in [((), 5), ((rows,), 3), ((None, columns), 3.65), ((rows, columns), 2.19)]:
        close(trust_penalty(parts.rest, *h), expected)
    close(coherence(parts, INPUTS), 0.72**2 / (2.08 * 0.73))
    close(inner(UPDATE, LowRank(-UPDATE.left, UPDATE.right)), -25)


def test_the_collision_by_hand():
    """dW = (1, -1), (1, -1) u = -.2: inside (-.12, -.16), beside (1.12, -.84), products .1344. At tau 1 both sigmoids
    are 1/2, eta 3; at tau 1/2, relatively, sigmoid(1) = .731059. With W0 = (0, -ln 3) and tau 1 they are 1/2 and 3/4.
    The published eta goes from 1 + 4 sigmoid(0 - .01) = 2.99000 to 1 + 4 sigmoid(.1 - .01) = 3.08994.
    """
    parts, weight = split(LowRank(exact([[1.0]]), exact([[1.0, -1.0]])), INPUTS), exact([[0, -1.0986122886681098]])
    for emphasis, eta in [
        (Emphasis(0), 1), (Emphasis(4, 1), 3), (Emphasis(4, 1, "relative"), 3),
        (Emphasis(4, 0.5, "relative"), 1 + 4 * 0.7310585786300049), (Emphasis(4, 1, "weight"), 3.5),
    ]:  # fmt: skip
        close(collision(parts, emphasis, weight), 2 * 0.1344 * eta)
    sizes = torch.linspace(-0.1, 0.1, 1000, dtype=torch.float64)  # of which none is 0
    parts = LowRankSplit(*[LowRank(sizes.reshape(-1, 1, 1) / 2, torch.ones(1000, 1, 1).double())] * 2)
    close(torch.stack((collision(parts) / (sizes / 2) ** 2).aminmax()), [2.99, 3.08994], rtol=1e-4)


# Laws
DRAWN = st.sampled_from(SIDES), *(st.integers(0, most) for most in (D_IN, D_OUT, 3, 9999))
problems = st.builds(lambda sides, m, k, r, seed: (factors(r, seed), space(sides, m, k, seed + 2)), *DRAWN)


@few
@given(problems, st.sampled_from([0.0, 1e-30, 1.0, 1e30]))
def test_the_parts_are_the_dense_projections_add_up_are_orthogonal_and_of_low_rank(drawn, scale):
    (left, right), subspace = drawn
    found, delta = split(LowRank(scale * left, right), subspace), scale * left @ right
    aligned = delta
    if subspace.inputs is not None:
        aligned = aligned @ subspace.inputs.vectors @ subspace.inputs.vectors.mT
    if subspace.outputs is not None:
        aligned = subspace.outputs.vectors @ subspace.outputs.vectors.mT @ aligned
    for part, one in zip(found, (aligned, delta - aligned), strict=True):
        close(matmul(*part), one, atol=1e-12 * scale)
    close(matmul(*found.aligned) + matmul(*found.rest), delta, atol=1e-12 * scale)
    close(inner(*found), 0.0, atol=1e-12 * scale**2)
    assert [len(part.right) for part in found] == [len(right), len(right) * (1 if None in subspace else 2)]


@few
@given(problems, st.sampled_from([0, 1e-9, 1e-2, -1.0, 1e3, 1e9]), st.integers(0, 9999))
def test_fisher_and_trust_are_quadratic_and_see_only_their_part_and_coherence_sees_the_direction(drawn, scale, seed):
    (left, right), subspace = drawn
    parts, scaled = (split(LowRank(by * left, right), subspace) for by in (1, scale))
    h, tiny = (shares(D_OUT, seed), shares(D_IN, seed + 1)), 1e-12 * scale**2
    fisher, trust = fisher_penalty(parts.aligned, subspace), trust_penalty(parts.rest, *h)
    cosine, elsewhere = coherence(parts, subspace), split(parts.aligned, subspace).rest
    assert (fisher >= 0) & (trust >= 0) & (cosine >= 0) & (cosine <= 1 + 1e-12)
    close(fisher_penalty(scaled.aligned, subspace), scale**2 * fisher, atol=tiny)
    close(trust_penalty(scaled.rest, *h), scale**2 * trust, atol=tiny)
    close(fisher_penalty(parts.rest, subspace) + trust_penalty(elsewhere, *h), 0.0)
    for same in (LowRankSplit(*parts[::-1]), scaled if 1e-6 < abs(scale) < 1e6 else parts):
        close(coherence(same, subspace), cosine)
    close(coherence(LowRankSplit(*[LowRank(left, right)] * 2), subspace), float(left.numel() > 0))


@few
@given(problems, st.sampled_from(EMPHASES), st.sampled_from([0.0, 1.0, 1e30]))
def test_the_collision_lies_between_the_overlap_and_one_plus_beta_times_it(drawn, emphasis, scale):
    """Of a huge update it is the latter, with a finite gradient."""
    update, weight = variables(drawn[0], scale), normal(D_OUT, D_IN, seed=4)
    parts = split(update, drawn[1])
    overlap, found = collision(parts, Emphasis(beta=0.0)), collision(parts, emphasis, weight)
    close(overlap, (matmul(*parts.aligned) * matmul(*parts.rest)).abs().sum())
    assert overlap <= found <= (1 + emphasis.beta) * overlap * (1 + 1e-12)
    assert scale < 1e30 or found >= (1 + emphasis.beta) * overlap * (1 - 1e-12)
    close(collision(LowRankSplit(*parts[::-1]), emphasis, weight), found)
    assert all(bool(one.isfinite().all()) for one in grad(found, update))


# Limits
@every_side
@pytest.mark.parametrize("scale", [0.0, 1e-8])
def test_an_update_that_has_not_begun_has_no_coherence_and_every_gradient_is_finite(sides, scale):
    """LoRA begins at B = 0: there all terms are 0, and all gradients. Below SMALLEST those of the coherence are."""
    update = variables(factors(2, 1), scale)
    for at, term in enumerate(terms(update, space(sides, 3, 2, 3))):
        gradients = torch.cat([one.flatten() for one in grad(term, update, retain_graph=True)])
        assert bool(term) == bool(gradients.any()) == (scale > 0 and at != 2)
        assert bool(gradients.isfinite().all())


def test_the_norm_from_which_a_coherence_is_known():
    """Squared norms d and 4 d of one direction: known at d = SMALLEST, not where either is less."""
    one, two = LowRank(exact([[1.0]]), exact([[1.0]])), LowRank(exact([[2.0]]), exact([[1.0]]))
    for d, expected in [(1e-12, 1.0), (0.99e-12, 0.0), (0.2e-12, 0.0)]:
        for parts in (LowRankSplit(one, two), LowRankSplit(two, one)):
            close(coherence(parts, Subspace(Side(*one, exact([d])))), expected)


def test_rounding_errors_beside_a_full_basis_have_no_coherence():
    subspace = changed(space(SIDES[2], D_IN, D_OUT, 2), lambda one: Side(*(part.float() for part in one)))
    left, right = (one.float() for one in factors(2, 1))
    assert coherence(split(LowRank(30 * left, right), subspace), subspace) <= 1e-6


@every_side
def test_coherence_needs_a_diagonal_that_is_not_constant_and_both_overlaps_a_dense_basis(sides):
    """Departure 2: in the plain inner product, up to a factor, both parts are orthogonal; axes share no entry."""
    update, subspace = factors(2, 1), space(sides, 3, 2, 3)
    plain = changed(subspace, lambda one: one._replace(diagonal=torch.full_like(one.diagonal, 0.3)))
    axes = changed(subspace, lambda one: one._replace(vectors=torch.eye(*one.vectors.shape, dtype=torch.float64)))
    assert bool((terms(update, subspace)[2:] > 1e-4).all())
    assert coherence(split(update, plain), plain) <= 1e-12
    assert not terms(update, axes)[2:].any()


# Independent twins
@pytest.mark.parametrize(("sides", "most", "r", "shape"), product(SIDES, [0, 1, 8], [1, 2, 8], [(5, 7), (8, 3)]))
def test_all_terms_and_gradients_are_those_of_whole_matrices_by_autograd(sides, most, r, shape):
    h, weight = [shares(width, 4) for width in shape], normal(*shape, seed=9)
    for at, ranks in enumerate([(most, most), (2, most), (most, 3)]):
        subspace, emphasis = space(sides, *ranks, at, *shape), EMPHASES[at]
        update, twin = (variables(factors(r, at + 20, *shape), 0.7) for _ in range(2))
        found = terms(update, subspace, h, emphasis, weight)
        expected = dense_terms(matmul(*twin), subspace, h, emphasis, weight)
        for term, same in zip(found, expected, strict=True):
            ours, theirs = grad(term, update, retain_graph=True), grad(same, twin, retain_graph=True)
            assert_close((term, *ours), (same, *theirs), rtol=1e-9, atol=1e-10)


@every_emphasis
def test_the_gradient_of_the_collision_is_that_of_finite_differences(emphasis: Emphasis):
    parts, weight = LowRankSplit(factors(2, 37), factors(3, 6)), normal(D_OUT, D_IN, seed=3)
    ours, theirs = (matmul(*one) for one in parts)
    assert min(one.abs().min() for one in (ours, theirs, ours + theirs, weight + ours + theirs)) > 1e-3  # no kinks
    flat = [one for part in parts for one in variables(part)]
    assert gradcheck(lambda a, b, c, d: collision(LowRankSplit(LowRank(a, b), LowRank(c, d)), emphasis, weight), flat)


class Largest(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.entries = max(getattr(self, "entries", 0), found.numel())
        return found


@every_emphasis
def test_no_size_of_block_changes_the_collision_and_none_holds_more_entries(emphasis: Emphasis, monkeypatch: Any):
    """Two 40 x 30 matrices at once, in blocks of less than a row, 1, 3 (the last has one) and 256 rows."""
    weight, outer, found = normal(2, 40, 30, seed=3), normal(2, seed=5), []
    update = variables(LowRank(normal(2, 40, 1, seed=1), normal(2, 1, 30, seed=2)))
    parts = split(update, space(SIDES[0], 3, 0, 4, 40, 30))
    for entries, held in ((59, 80), (60, 80), (180, 180), (239, 180), (256 * 60, 2400)):  # factors have 80 themselves
        monkeypatch.setattr(penalties, "ENTRIES", entries)
        with Largest() as largest:
            one = collision(parts, emphasis, weight)
        assert largest.entries == held
        found.append([one, *grad((outer * one).sum(), update, retain_graph=True)])
        assert_close(found[-1], found[0], rtol=1e-9, atol=1e-12)


@every_side
def test_matrices_at_once_are_each_alone_whatever_the_ranks_of_their_bases(sides):
    """A smaller basis is padded with directions of zero; *B is 2 x 2, and every matrix has its own outer gradient."""
    alone = [variables(factors(2, at)) for at in range(4)]
    spaces = [space(sides, at, 3 - at, 10 + at) for at in range(4)]

    def stacked(many: Any) -> Any:
        return [torch.stack(one).unflatten(0, (2, 2)) for one in zip(*many, strict=True)]

    def padded(one: Side) -> Side:
        gap = 0, 3 - len(one.eigenvalues)
        return Side(pad(one.vectors, gap), pad(one.eigenvalues, gap), one.diagonal)

    together = LowRank(*stacked(alone))
    wide = (some[0] and Side(*stacked(map(padded, some))) for some in zip(*spaces, strict=True))
    h, outer, weight = (shares(D_OUT, 1), shares(D_IN, 2)), normal(2, 2, seed=3), normal(2, 2, D_OUT, D_IN, seed=4)
    found = terms(together, Subspace(*wide), h, EMPHASES[2], weight)
    gradients = grad((outer * found).sum(), together)
    for at, place in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        expected = terms(alone[at], spaces[at], h, EMPHASES[2], weight[place])
        ours = [found[:, place[0], place[1]], *(one[place] for one in gradients)]
        assert_close(ours, [expected, *grad((outer[place] * expected).sum(), alone[at])], rtol=1e-9, atol=1e-12)


@every_side
@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float32, 1e-5, 1e-6), (torch.bfloat16, 0.03, 0.01)])
def test_terms_in_a_smaller_dtype_are_near(sides, dtype, rtol, atol):
    update, subspace, weight = factors(2, 1), space(sides, 3, 2, 3), normal(D_OUT, D_IN, seed=3)
    smaller = changed(subspace, lambda one: Side(*(part.to(dtype) for part in one)))
    for emphasis in EMPHASES:
        on = variables(LowRank(*(one.to(dtype) for one in update)))
        found = terms(on, smaller, emphasis=emphasis, weight=weight)
        assert found.dtype == dtype
        close(found.double(), terms(update, subspace, emphasis=emphasis, weight=weight), rtol, atol)
        assert all(bool(one.isfinite().all()) for one in grad(found.sum(), on))


def test_many_blocks_in_bfloat16_are_near(monkeypatch: pytest.MonkeyPatch):
    half = LowRank(torch.full((1024, 1), 0.5).bfloat16(), torch.ones(1, 1).bfloat16())  # 1024 x 1/4
    monkeypatch.setattr(penalties, "ENTRIES", 1)
    assert float(collision(LowRankSplit(half, half), Emphasis(beta=0))) == pytest.approx(256, rel=0.03)


# Refusals
def test_an_emphasis_on_the_weight_without_a_weight_is_refused():
    with pytest.raises(ValueError, match="needs the base's matrix"):
        collision(split(UPDATE, INPUTS), Emphasis(compares="weight"))


@pytest.mark.parametrize("of", [lambda x, _: x, lambda x, _: x**2, lambda x, y: x + y])
def test_a_second_derivative_of_the_collision_is_refused(of):
    update = variables(UPDATE)
    total = of(collision(split(update, INPUTS)), update.left.square().sum())
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad(total, update.left, create_graph=True)
