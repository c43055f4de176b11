"""Directional ablation: nothing is written along a direction any more, and everything comes back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkeep.errors import CheckpointError
from alignkeep.inject.ablation import Left, bypass_layer, projected_out
from alignkeep.inject.bypass import ablated
from alignkeep.inject.rank_one import applied
from alignkeep.models.architecture import Writer, blocks_of
from test_families import differing, loaded, logits, state, tiny_of

# By hand


def test_a_direction_is_taken_out_by_hand():
    """r = (1, 0): the first row goes, the second stays. r = (3, 4) / 5 and W = [[5], [10]]: r^T W = 3 + 8 = 11, so
    W' = [[5 - 11 * 0.6], [10 - 11 * 0.8]]."""
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert applied(weight, projected_out(weight, torch.tensor([1.0, 0.0]))).tolist() == [[0, 0], [3, 4]]
    slanted, direction = torch.tensor([[5.0], [10.0]]), torch.tensor([0.6, 0.8], dtype=torch.float64)
    torch.testing.assert_close(
        applied(slanted, projected_out(slanted, direction)), torch.tensor([[5 - 6.6], [10 - 8.8]])
    )


def test_the_layer_is_that_of_the_fewest_refusals_within_the_bound_or_the_gentlest_by_hand():
    before = Left(1.0, 1.0)
    left = {0: Left(0.9, 1.0), 1: Left(0.2, 0.9375), 2: Left(0.0, 0.5), 3: Left(0.2, 1.0), 4: Left(0.2, 1.0)}
    assert bypass_layer(left, before, loss=0.1) == 3  # 2 costs too much, 3 refuses as often as 1 and helps more
    assert bypass_layer(left, before, loss=0.5) == 2
    assert bypass_layer({1: Left(0.5, 0.25), 2: Left(0.1, 0.125)}, before, loss=0.1) == 1
    with pytest.raises(ValueError):
        bypass_layer({}, before, loss=0.1)


# Laws


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**20), st.sampled_from([1e-3, 1.0, 1e3]))
def test_nothing_is_left_along_it_all_across_it_stays_and_once_more_changes_nothing(d_out, d_in, seed, scale):
    """The twin is numpy's (1 - r r^T) W in float64."""
    draw = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(d_out, d_in, generator=draw)
    direction = torch.nn.functional.normalize(torch.randn(d_out, generator=draw).double(), dim=0)
    once = applied(weight, projected_out(weight, direction))
    r = direction.numpy()
    twin = (np.eye(d_out) - np.outer(r, r)) @ weight.double().numpy()
    np.testing.assert_allclose(once.numpy(), twin, atol=1e-5 * scale)
    assert float((direction.float() @ once).abs().max()) <= 1e-5 * scale
    torch.testing.assert_close(applied(once, projected_out(once, direction)), once, atol=1e-5 * scale, rtol=0)


# Within a model


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mixtral", "gpt_oss", "cohere"])
def test_the_residual_stream_has_nothing_along_it_from_the_first_block_to_the_last(family: str, tmp_path: Path):
    """Positions, scaled embeddings, biases, norms behind a matrix, experts; and then all is as it was."""
    (tmp_path / "model").mkdir()
    tiny = tiny_of(family, tmp_path / "model")
    before, said = state(tiny.model), logits(tiny.model)
    seen: list[torch.Tensor] = []

    def keep(_, given, named, output):
        seen.extend((given[0] if given else named["hidden_states"], output[0] if isinstance(output, tuple) else output))

    handles = [block.register_forward_hook(keep, with_kwargs=True) for block in blocks_of(tiny.model)[1]]
    with ablated(loaded(tiny), tiny.direction):
        seen.clear()  # of looking for the writers
        changed = logits(tiny.model)
    for handle in handles:
        handle.remove()
    unit = tiny.direction.float()
    assert len(seen) >= 6
    assert max(float((one @ unit).abs().max() / one.norm(dim=-1).max()) for one in seen) <= 1e-5
    assert (changed - said).abs().max() > 1e-3
    assert differing(before, state(tiny.model)) == set()
    assert torch.equal(logits(tiny.model), said)


def test_packed_weights_are_refused(tmp_path: Path):
    (tmp_path / "model").mkdir()
    tiny = tiny_of("llama", tmp_path / "model")
    packed = torch.nn.Linear(4, 32)
    packed.weight = torch.nn.Parameter(torch.zeros(64, 1, dtype=torch.uint8), requires_grad=False)
    writer = Writer("model.layers.0.mlp.down_proj", 0, packed)
    with pytest.raises(CheckpointError, match="packed weights"), ablated(loaded(tiny), tiny.direction, [writer]):
        pass


def test_a_layer_whose_answers_could_not_be_judged_is_never_taken() -> None:
    """Nothing compares below NaN: as the first of them it would win."""
    unknown, before = Left(math.nan, 1.0), Left(1.0, 1.0)
    assert bypass_layer({0: unknown, 1: Left(0.0, 1.0)}, before, loss=0.1) == 1
    assert bypass_layer({0: Left(0.5, math.nan), 1: Left(0.0, 0.2)}, before, loss=0.1) == 1
    with pytest.raises(ValueError, match="could be judged"):
        bypass_layer({0: unknown}, before, loss=0.1)
