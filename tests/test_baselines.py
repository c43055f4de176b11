"""Scores beside optimal transport: by hand, their limits, and gradients against autograd."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from alignkeep.curate.methods.bidirectional import bidirectional
from alignkeep.curate.methods.dsir import BUCKETS, hashed_ngrams, importance_ratio
from alignkeep.curate.methods.mean_cosine import mean_cosine
from alignkeep.curate.methods.random import by_chance
from alignkeep.curate.transport import DenseCosts
from alignkeep.curate.weighting import alone, weigh
from alignkeep.errors import DataError
from alignkeep.models.chat import encode_example
from alignkeep.models.gradients import gradient_products, mean_gradient
from alignkeep.models.loading import load_model
from alignkeep.models.matrices import matrices
from alignkeep.types import Example, Message
from test_collectors import EXAMPLES, answer_loss, tiny_gpt2


def test_mean_cosine_by_hand() -> None:
    """Between (1, 0) and (0, 1) lies (.6, .8): .6 to the one, .8 to the other."""
    data = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    found = mean_cosine(data, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert found.safe is not None
    assert found.harmful is not None
    assert_close(found.safe, torch.tensor([1.0, 0.6]))
    assert_close(found.harmful, torch.tensor([0.0, 0.8]))
    assert_close(found.value, torch.tensor([1.0, -0.2]))


@pytest.mark.parametrize(("dtype", "epsilon"), [(torch.float64, 1e4), (torch.float32, 1e3), (torch.float32, 1e5)])
def test_mean_cosine_is_the_limit_of_push_and_pull_for_a_large_epsilon(dtype: torch.dtype, epsilon: float) -> None:
    """The plan forgets the costs and is w x u: f_i is the mean cost, and the logits go as the mean cosines."""
    draw = torch.Generator().manual_seed(0)
    data, safe, harmful = (
        torch.nn.functional.normalize(torch.randn(n, 6, generator=draw, dtype=torch.float64), dim=1).to(dtype)
        for n in (40, 7, 9)
    )
    near, far = (alone(DenseCosts(1 - data @ one.mT)) for one in (safe, harmful))
    found = weigh(near, far, 40, epsilon, most=200, dtype=dtype)
    assert found.converged
    scores = mean_cosine(data, safe, harmful).value
    logits = found.logits - found.logits.mean()
    line = (scores - scores.mean()).double()
    assert float((logits @ line) / (logits.norm() * line.norm())) == pytest.approx(1, abs=1e-6)


def test_importance_by_hand() -> None:
    """Target: n-gram 0 twice, 1 once; data: 0 once, 1 once, 2 twice. log p_target / p_data is ln(2/3 / (1/4)) for 0,
    ln(1/3 / (1/4)) for 1, and for 2, which the target has not, ln(1e-8 / .5)."""
    found = importance_ratio([[0, 1], [2, 2], []], [[0, 0, 1]], 4)
    assert found.harmful is None
    expected = [math.log(8 / 3) + math.log(4 / 3), 2 * math.log(2e-8), 0.0]
    assert_close(found.value, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_ngrams_are_words_and_pairs_in_lower_case_and_the_same_everywhere() -> None:
    assert hashed_ngrams("Bake bread!") == hashed_ngrams("bake BREAD !")
    assert len(hashed_ngrams("bake bread !")) == 5
    assert hashed_ngrams("") == []
    assert hashed_ngrams("123456789") == [0xCBF43926 % BUCKETS]  # the check value of CRC-32
    assert all(0 <= gram < BUCKETS for gram in hashed_ngrams("a b c ü 你好 ?"))


def test_chance_is_the_seeds_alone() -> None:
    assert by_chance(50, 1).value.equal(by_chance(50, 1).value)
    assert not by_chance(50, 1).value.equal(by_chance(50, 2).value)
    assert sorted(by_chance(50, 1).value.tolist()) == list(range(50))


def test_bidirectional_prefers_what_goes_with_safe_gradients() -> None:
    found = bidirectional(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 3.0]))
    assert found.value.tolist() == [1.0, -2.0]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("size", [1, 4])
def test_products_are_those_of_every_examples_own_gradient(
    kind: str, size: int, tiny_model: Path, tmp_path: Path
) -> None:
    """Independent twin: autograd of each example's mean loss alone, over all matrices."""
    loaded = load_model(str(tiny_model)) if kind == "llama" else tiny_gpt2(tiny_model)
    data, reference = EXAMPLES[:6], EXAMPLES[6:]
    names = list(matrices(loaded.model).modules)

    def own(example: Example) -> list[torch.Tensor]:
        weights = [matrices(loaded.model).modules[name].weight.requires_grad_(True) for name in names]
        answered = sum(label != -100 for label in encode_example(loaded.tokenizer, example).labels)
        return list(torch.autograd.grad(answer_loss(loaded, example) / answered, weights))

    means = [torch.stack(parts).mean(0) for parts in zip(*map(own, reference), strict=True)]
    expected = [sum(float((g * m).sum()) for g, m in zip(own(one), means, strict=True)) for one in data]

    mean = mean_gradient(loaded, reference, batch_size=size)
    found = gradient_products(loaded, data, [mean, {name: 2 * one for name, one in mean.items()}], batch_size=size)

    assert_close(found[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=2e-4, atol=1e-6)
    assert_close(found[:, 1], 2 * found[:, 0])
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_an_example_without_an_answer_in_reach_is_named(tiny_model: Path) -> None:
    long = Example((Message("user", "help " * 90), Message("assistant", "yes")))
    with pytest.raises(DataError, match=r"reference 2: found no token of the answer among the first 64"):
        mean_gradient(load_model(str(tiny_model)), [EXAMPLES[0], long], max_length=64)
