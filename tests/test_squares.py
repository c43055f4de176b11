"""Running means of squared inputs and output gradients: by hand, laws, limits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from alignkeep.models.squares import DECAY, RunningSquares

INPUTS = torch.tensor([[[1.0, 2.0], [3.0, 0.0], [50.0, 60.0]]])  # the last token is padding
FORCE = torch.tensor([2.0, -1.0, 0.0])  # of the loss on every output of a token that counts


def linear() -> torch.nn.Linear:
    module = torch.nn.Linear(2, 3, bias=False)
    module.train()
    return module


def passed(module: torch.nn.Module, inputs: Tensor, counts: list[float], scale: float = 1.0) -> None:
    """Forward and backward: the loss is FORCE . y, summed over tokens as they count."""
    (module(inputs) * FORCE * torch.tensor(counts)[:, None] * scale).sum().backward()


def alone(vector: Tensor) -> Tensor:
    return vector


def test_by_hand() -> None:
    """Inputs (1, 2) and (3, 0): mean squares (5, 2), over the largest (1, .4). Gradients twice (2, -1, 0): squares 4, 1
    and 0. Then (2, 0) alone, its gradient half: .95 (5, 2) + .05 (4, 0), and .95 (4, 1) + .05 (1, .25)."""
    module = linear()
    squares = RunningSquares({"m": module})
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
    seen = [RunningSquares({"m": one}) for one in (whole, parts, here, there)]
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
    squares = RunningSquares({"m": linear()})
    squares.end_step(lambda vector: vector + seen)
    found = squares.of("m")
    assert found is not None
    assert_close(found.columns, torch.tensor([1, 0.4]))


def test_a_matrix_that_saw_nothing_keeps_its_mean() -> None:
    module = linear()
    squares = RunningSquares({"m": module, "idle": linear()})
    passed(module, INPUTS, [1, 1, 0])
    squares.end_step(alone)
    before = squares.of("m")
    squares.end_step(alone)
    assert_close(squares.of("m"), before)
    assert squares.of("idle") is None


@pytest.mark.parametrize("how", ["evaluation", "no gradient"])
def test_a_pass_that_is_not_a_training_step_is_not_seen(how: str) -> None:
    module = linear()
    squares = RunningSquares({"m": module})
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
        squares = RunningSquares({"m": module})
        passed(module, INPUTS, [1, 1, 0], scale)
        squares.end_step(alone)
        found.append(squares.of("m"))
    assert_close(found[0], found[1])
    module = linear()
    squares = RunningSquares({"m": module})
    passed(module, torch.zeros(1, 2, 2), [1, 1])
    squares.end_step(alone)
    silent = squares.of("m")
    assert silent is not None
    assert not silent.columns.any()


def test_a_state_comes_back() -> None:
    module = linear()
    squares, other = RunningSquares({"m": module}), RunningSquares({"m": linear()})
    passed(module, INPUTS, [1, 1, 0])
    squares.end_step(alone)
    other.restore(squares.state(), "cpu")
    assert_close(other.of("m"), squares.of("m"))
