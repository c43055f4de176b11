"""Running means of squared inputs and output gradients: by hand, laws, limits."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from alignkeep.models.squares import DECAY, RunningSquares

INPUTS = torch.tensor([[[1.0, 2.0], [3.0, 0.0], [50.0, 60.0]]])  # the last token is padding
FORCE = torch.tensor([2.0, -1.0, 0.0])  # of the loss on every output of a token that counts


def linear() -> torch.nn.Linear:
    module = torch.nn.Linear(2, 3, bias=False)
    module.train()
    return module


def watching(module: torch.nn.Module) -> RunningSquares:
    squares = RunningSquares({"m": module})
    squares.begin()
    return squares


def passed(module: torch.nn.Module, inputs: Tensor, counts: list[float], scale: float = 1.0) -> None:
    """Forward and backward: the loss is FORCE . y, summed over tokens as they count."""
    (module(inputs) * FORCE * torch.tensor(counts)[:, None] * scale).sum().backward()


def alone(vector: Tensor) -> Tensor:
    return vector


def test_by_hand() -> None:
    """Inputs (1, 2) and (3, 0): mean squares (5, 2), over the largest (1, .4). Gradients twice (2, -1, 0): squares 4, 1
    and 0. Then (2, 0) alone, its gradient half: .95 (5, 2) + .05 (4, 0), and .95 (4, 1) + .05 (1, .25)."""
    module = linear()
    squares = watching(module)
    assert squares.of("m") is None
    passed(module, INPUTS, [1, 1, 0])
    squares.end_step(alone)
    found = squares.of("m")
    assert found is not None
    assert_close(found.columns, torch.tensor([1, 0.4]))
    assert_close(found.rows, torch.tensor([1, 0.25, 0]))
    passed(module, torch.tensor([[[2.0, 0.0]]]), [1], 0.5)
    squares.end_step(alone)
    found = squares.of("m")
    assert found is not None
    assert_close(found.columns, torch.tensor([1, DECAY * 2 / (DECAY * 5 + (1 - DECAY) * 4)]))
    assert_close(found.rows, torch.tensor([1, 0.25, 0]))


def test_parts_of_a_step_and_two_processes_are_the_whole_step() -> None:
    whole, parts, here, there = (linear() for _ in range(4))
    seen = [watching(one) for one in (whole, parts, here, there)]
    passed(whole, INPUTS, [1, 1, 0])
    for at in range(3):
        passed(parts, INPUTS[:, at : at + 1], [float(at < 2)])
    passed(here, INPUTS[:, :1], [1])
    passed(there, INPUTS[:, 1:], [1, 0])
    vectors: list[Tensor] = []
    seen[3].end_step(lambda vector: vectors.append(vector) or vector)
    seen[2].end_step(lambda vector: vector + vectors[0])
    for one in seen[:2]:
        one.end_step(alone)
    for one in seen[1:3]:
        assert_close(one.of("m"), seen[0].of("m"))


def test_a_process_without_tokens_takes_part() -> None:
    seen = torch.tensor([4.0, 1.0, 0.0, 5.0, 2.0, 1.0])
    squares = watching(linear())
    squares.end_step(lambda vector: vector + seen)
    found = squares.of("m")
    assert found is not None
    assert_close(found.columns, torch.tensor([1, 0.4]))


def test_a_matrix_that_saw_nothing_keeps_its_mean() -> None:
    module = linear()
    squares = RunningSquares({"m": module, "idle": linear()})
    squares.begin()
    passed(module, INPUTS, [1, 1, 0])
    squares.end_step(alone)
    before = squares.of("m")
    squares.end_step(alone)
    assert_close(squares.of("m"), before)
    assert squares.of("idle") is None


@pytest.mark.parametrize("how", ["evaluation", "no gradient"])
def test_a_pass_that_is_not_a_training_step_is_not_seen(how: str) -> None:
    module = linear()
    squares = watching(module)
    module.train(how != "evaluation")
    with torch.set_grad_enabled(how != "no gradient"):
        output = module(INPUTS)
    if output.requires_grad:
        output.sum().backward()
    squares.end_step(alone)
    assert squares.of("m") is None


def test_the_scale_of_the_loss_is_nothing_and_zeros_divide_by_one() -> None:
    found = []
    for scale in (1.0, 1024.0):
        module = linear()
        squares = watching(module)
        passed(module, INPUTS, [1, 1, 0], scale)
        squares.end_step(alone)
        found.append(squares.of("m"))
    assert_close(found[0], found[1])
    module = linear()
    squares = watching(module)
    passed(module, torch.zeros(1, 2, 2), [1, 1])
    squares.end_step(alone)
    silent = squares.of("m")
    assert silent is not None
    assert not silent.columns.any()


def test_a_step_that_mixed_precision_drops_changes_nothing() -> None:
    module = linear()
    squares = watching(module)
    passed(module, INPUTS, [1, 1, 0])
    squares.end_step(alone)
    before = squares.of("m")
    passed(module, INPUTS, [1, 1, 0], math.inf)
    squares.end_step(alone)
    assert_close(squares.of("m"), before)


def test_a_scale_that_changes_weighs_no_step_more_than_another() -> None:
    found = []
    for scales in ((1.0, 1.0), (4.0, 0.5)):
        module = linear()
        squares = watching(module)
        for scale, inputs in zip(scales, INPUTS.unbind(1), strict=False):
            passed(module, inputs[None], [1], scale)
            squares.end_step(alone, scale=scale)
        found.append(squares.state()["m"])
    assert_close(found[0], found[1])


def is_inner(thing: object) -> bool:
    return type(thing) is Tensor and thing.shape == (1, 3, 4)


def test_activation_checkpointing_keeps_no_input_and_changes_nothing() -> None:
    """Outside of the checkpoint autograd saves as many tensors as without the watch, and nobody else has one."""
    found, saved = [], []
    for how in ("plain", "checkpointed", "checkpointed, unwatched"):
        torch.manual_seed(0)
        blocks = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 2)) for _ in "ab"))
        blocks.train()
        modules = {f"{at}": block[1] for at, block in enumerate(blocks)}
        squares = RunningSquares(modules)
        if "unwatched" not in how:
            squares.begin()
        count = [0]

        def packed(tensor: Tensor, count: list[int] = count) -> Tensor:
            count[0] += 1
            return tensor

        x = INPUTS.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(packed, lambda tensor: tensor):
            for block in blocks:
                x = block(x) if how == "plain" else checkpoint(block, x, use_reentrant=False)
        assert how == "plain" or not any(is_inner(one) for one in gc.get_objects())
        x[:, :2].sum().backward()
        squares.end_step(alone)
        found.append([squares.of(name) for name in modules])
        saved.append(count[0])
    assert_close(found[0], found[1])
    assert saved[1] == saved[2]


def test_it_watches_from_begin_to_end_and_begins_anew() -> None:
    module = linear()
    squares = watching(module)
    passed(module, INPUTS, [1, 1, 0])
    squares.end_step(alone)
    squares.end()
    assert not module._forward_hooks
    squares.begin()
    squares.begin()
    assert len(module._forward_hooks) == 1
    assert squares.of("m") is None


def test_a_state_comes_back() -> None:
    module = linear()
    squares, other = watching(module), watching(linear())
    passed(module, INPUTS, [1, 1, 0])
    squares.end_step(alone)
    other.restore(squares.state(), "cpu")
    assert_close(other.of("m"), squares.of("m"))
