"""Whitening by what varies within the references: by hand, its laws, its limits, Ledoit and Wolf by their own sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from alignkeep.curate.whitening import fit_whitening, whitened


def cloud(rows: int, width: int, seed: int, *, scale: float = 1.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, width, generator=draw, dtype=torch.float64) + torch.arange(width)


def ledoit_wolf(centred: np.ndarray) -> tuple[np.ndarray, float]:
    """The estimator as the paper writes it (lemma 3.2 to 3.4), with d x d matrices and a sum over rows."""
    count, width = centred.shape
    sample = centred.T @ centred / count
    mean = np.trace(sample) / width
    distance = np.sum((sample - mean * np.eye(width)) ** 2)
    noise = sum(np.sum((np.outer(row, row) - sample) ** 2) for row in centred) / count**2
    shrinkage = min(noise, distance) / distance
    return shrinkage * mean * np.eye(width) + (1 - shrinkage) * sample, float(shrinkage)


def test_by_hand() -> None:
    """Sets {(2, 0), (-2, 0)} and {(4, 1), (4, -1)}: centred rows (+-2, 0), (0, +-1); S = diag(2, 1/2), mu = 5/4. The
    mean of |x x^T - S|^2 is ((2^2 + .5^2) + (2^2 + .5^2)) / 2 = 4.25, over 4 rows 1.0625; |S - mu I|^2 = 1.125. The
    shrinkage is 17/18, C = diag(2 + 21.25, 0.5 + 21.25) / 18. The centre is (2, 0)."""
    safe, harmful = torch.tensor([[2.0, 0.0], [-2.0, 0.0]]), torch.tensor([[4.0, 1.0], [4.0, -1.0]])
    by = fit_whitening((safe, harmful))
    assert by.shrinkage == pytest.approx(17 / 18)
    expected = torch.tensor([[(18 / 23.25) ** 0.5, 0.0], [0.0, (18 / 21.75) ** 0.5]])
    assert_close(whitened(torch.tensor([[3.0, 0.0], [2.0, 1.0]]), by), expected)


@pytest.mark.parametrize(("rows", "width"), [(7, 5), (5, 7), (3, 40), (60, 4)])
def test_it_is_the_root_of_the_shrunk_covariance_that_ledoit_and_wolf_write(rows: int, width: int) -> None:
    safe, harmful = cloud(rows, width, 1), cloud(rows + 2, width, 2, scale=3.0)
    some = cloud(6, width, 3)
    centred = torch.cat([safe - safe.mean(0), harmful - harmful.mean(0)]).numpy()
    covariance, shrinkage = ledoit_wolf(centred)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    by = fit_whitening((safe, harmful))
    assert by.shrinkage == pytest.approx(shrinkage, rel=1e-9)
    assert by.directions.shape == (min(2 * rows + 2, width), width)
    centre = (safe.mean(0) + harmful.mean(0)) / 2
    assert_close(whitened(some, by), (some - centre) @ torch.from_numpy(root), rtol=1e-8, atol=1e-8)


@settings(deadline=None, max_examples=40)
@given(
    width=st.integers(1, 12),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    shift=st.sampled_from([0.0, 1e3]),
)
def test_neither_scale_nor_place_nor_turn_changes_the_angles(width: int, seed: int, scale: float, shift: float) -> None:
    """(C^(-1/2) z) . (C^(-1/2) y) is z^T C^(-1) y: it knows no axes."""
    sets = [cloud(4, width, seed + at) for at in range(3)]
    turn = torch.linalg.qr(cloud(width, width, seed + 9) - torch.arange(width))[0]
    moved = [scale * (one + shift) @ turn for one in sets]
    rows = [whitened(some[0], fit_whitening(some[1:])) for some in (sets, moved)]
    cosines = [torch.nn.functional.normalize(one, dim=1) for one in rows]
    assert_close(cosines[0] @ cosines[0].mT, cosines[1] @ cosines[1].mT, rtol=1e-4, atol=1e-5)


def test_what_varies_within_the_references_counts_less_than_what_tells_them_apart() -> None:
    draw = torch.Generator().manual_seed(0)
    spread = torch.tensor([30.0, 1.0, 1.0])
    safe, harmful = (spread * torch.randn(200, 3, generator=draw) + torch.tensor([0.0, at, 0.0]) for at in (-3.0, 3.0))
    by = fit_whitening((safe, harmful))
    across, along = whitened(torch.tensor([[30.0, 0.0, 0.0], [0.0, 3.0, 0.0]]), by) - whitened(torch.zeros(2, 3), by)
    assert float(across.norm()) < float(along.norm())


def test_a_row_that_repeats_everywhere_leaves_a_measure_in_every_direction() -> None:
    """One direction alone varies: all others have the shrinkage's."""
    line = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [2.0, 0, 0]])
    by = fit_whitening((line, line + torch.tensor([0.0, 5.0, 0.0])))
    assert bool(whitened(torch.eye(3), by).isfinite().all())
    assert 0 < by.shrinkage <= 1


def test_references_that_coincide_within_their_set_have_no_measure() -> None:
    with pytest.raises(ValueError, match="differ within a set"):
        fit_whitening((torch.ones(3, 4), torch.zeros(2, 4)))


def test_width_of_a_large_model_makes_no_square_matrix() -> None:
    by = fit_whitening((torch.randn(25, 20_000), torch.randn(25, 20_000)))  # 3 GB in float64 if it did
    assert by.directions.shape == (50, 20_000)
    assert whitened(torch.randn(3, 20_000), by).dtype == torch.float32
