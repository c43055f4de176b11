"""The KL anchor and replay: their mathematics, and what each of them does to the step of a real trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import grad
from torch.testing import assert_close
from transformers import AutoTokenizer

from alignkeep.errors import NoEffectError, RecipeError
from alignkeep.models.chat import IGNORED, EncodedExample
from alignkeep.models.collectors import padded
from alignkeep.models.examples import encoded
from alignkeep.train.alignment import in_turns, rows_of, tensors_of_rows
from alignkeep.train.kl_anchor import (
    FLOOR,
    KL_ANCHOR,
    KLAnchorSettings,
    Weight,
    anchor,
    answer_log_probs,
    divergence,
    next_weight,
)
from alignkeep.train.replay import REPLAY, ReplaySettings, answer_loss
from test_align_guard import Tiny, adapter, is_near, learned, trained
from test_collectors import EXAMPLES

NUMBERS = st.floats(-30, 30, width=32)


@pytest.fixture
def tiny(tiny_model: Path, tmp_path: Path) -> Tiny:
    return Tiny(tiny_model, AutoTokenizer.from_pretrained(tiny_model), tmp_path / "trainer")


def logs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows).log()


# By hand


def test_the_divergence_of_two_coins_is_the_one_on_paper() -> None:
    """1/2 log (1/2 / 1/4) + 1/2 log (1/2 / 3/4) = 1/2 log 4/3."""
    base, tuned = logs([0.5, 0.5]), logs([0.25, 0.75])
    assert float(divergence(anchor(base, 2), tuned)) == pytest.approx(0.5 * math.log(4 / 3))


def test_tokens_that_are_not_kept_count_as_one() -> None:
    """Kept 1/2, others 1/4 and 1/4 against 1/4, 3/4 and 0: (1/2, 1/2) against (1/4, 3/4), as above, though one is 0."""
    base, tuned = logs([0.5, 0.25, 0.25]), logs([0.25, 0.75, 0.0])
    assert float(divergence(anchor(base, 1), tuned)) == pytest.approx(0.5 * math.log(4 / 3))
    assert float(divergence(anchor(base, 3), tuned)) == math.inf


def test_the_weight_grows_by_two_percent_above_the_target_and_falls_by_as_much_below() -> None:
    """1 + 0.1 * 0.2, the error cut; uncut at 0.11 for 0.1: 1 + 0.1 * 0.1."""
    found = [next_weight(3.0, one, 0.1) for one in (0.0, 0.1, 0.11, 7.0)]
    assert found == pytest.approx([3 * 0.98, 3.0, 3 * 1.01, 3 * 1.02])


# Laws


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=6), st.integers(1, 8))
def test_a_divergence_is_0_of_equals_never_negative_and_grows_with_what_is_kept(
    pairs: list[tuple[float, float]], keep: int
) -> None:
    base, tuned = (torch.tensor([list(one)]).double().log_softmax(-1) for one in zip(*pairs, strict=True))
    found, whole = (float(divergence(anchor(base, count), tuned)) for count in (keep, len(pairs)))
    assert abs(float(divergence(anchor(base, keep), base))) < 1e-9
    assert -1e-9 <= found <= whole + 1e-9
    kept = anchor(base, keep)
    assert float(torch.cat([kept.log_probs[0], kept.rest]).exp().sum()) == pytest.approx(1)


@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 3))
def test_all_have_their_turn_before_one_comes_again_whatever_step_is_asked_first(count: int, k: int, seed: int) -> None:
    of_step = in_turns(count, k, seed)
    late = of_step(5)
    every = [one for step in range(7 * count) for one in of_step(step)]
    assert every[5 * k : 6 * k] == late == in_turns(count, k, seed)(5)
    assert all(sorted(every[at : at + count]) == list(range(count)) for at in range(0, len(every), count))


@given(st.floats(FLOOR, 1e6), st.floats(0, 1e3), st.floats(1e-6, 1e3))
def test_a_weight_stays_positive_and_moves_towards_the_target(weight: float, found: float, target: float) -> None:
    after = next_weight(weight, found, target)
    assert after >= FLOOR
    assert (after >= weight) if found >= target else (after <= weight)


# Limits


def test_a_token_that_neither_model_would_say_costs_nothing_and_pulls_at_nothing() -> None:
    base = logs([0.5, 0.5, 0.0])
    logits = torch.tensor([[0.3, -0.2, -80.0]], requires_grad=True)
    for keep in (1, 2, 3):
        found = divergence(anchor(base, keep), logits.log_softmax(-1)).sum()
        assert bool(grad(found, logits)[0].isfinite().all())


def test_a_divergence_of_few_kept_tokens_has_the_gradient_that_differences_give() -> None:
    torch.manual_seed(0)
    base, logits = torch.randn(3, 9).double().log_softmax(-1), torch.randn(3, 9).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda one: divergence(anchor(base, 4), one.log_softmax(-1)), (logits,))


# Twins


def test_all_tokens_kept_is_torchs_divergence() -> None:
    torch.manual_seed(0)
    base, tuned = torch.randn(5, 40).log_softmax(-1), torch.randn(5, 40).log_softmax(-1)
    theirs = torch.nn.functional.kl_div(tuned, base, log_target=True, reduction="none").sum(-1)
    assert_close(divergence(anchor(base, 40), tuned), theirs)
    assert_close(divergence(anchor(base, 4000), tuned), theirs)


def test_rows_come_back_from_a_file_as_they_went() -> None:
    rows = [EncodedExample([3, 4, 5], [IGNORED, 4, 5]), EncodedExample([9, 8], [IGNORED, 8])]
    assert rows_of(tensors_of_rows(rows)) == rows


def test_the_loss_of_replayed_answers_is_the_models_own(tiny: Tiny) -> None:
    model = tiny.base().eval()
    batch = padded(encoded(tiny.tokenizer, EXAMPLES[:3], 64, "example").rows, model.device)
    own = model(input_ids=batch.input_ids, attention_mask=batch.mask.long(), labels=batch.labels).loss
    assert_close(answer_loss(model, batch), own)


# A step of a trainer


class Known:
    """What `measure` would find, without asking whether a random base refuses."""

    def __init__(self, tiny: Tiny, keep: int = 64) -> None:
        self.rows = encoded(tiny.tokenizer, EXAMPLES[:3], 64, "example").rows
        base = tiny.base().eval()
        with torch.no_grad():
            self.log_probs = answer_log_probs(base, padded(self.rows, base.device))
        self.measured = {**tensors_of_rows(self.rows), **anchor(self.log_probs, keep)._asdict()}


@pytest.mark.parametrize("batches", [{}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}])
def test_a_step_has_the_tasks_gradient_and_once_the_anchors(batches: dict[str, Any], tiny: Tiny) -> None:
    """With all examples in each step and 0.3 as the weight."""
    options = {**batches, "learning_rate": 0.0, "max_grad_norm": 0.0}
    plain, ours = (tiny.sft(adapter(tiny.base(), lora_dropout=0.0), **options) for _ in range(2))
    known = Known(tiny, keep=10_000)
    KL_ANCHOR.attach(KLAnchorSettings(weight=0.3, examples=3), known.measured, ours)
    (task, _), (both, rows) = learned(plain), learned(ours)
    tuned = answer_log_probs(ours.model.eval(), padded(known.rows, ours.model.device))
    expected = (known.log_probs.exp() * (known.log_probs - tuned)).sum(-1).mean()
    parts = trained(ours.model)
    force = dict(zip(parts, grad(0.3 * expected, list(parts.values())), strict=True))
    for found, theirs in zip(both, task, strict=True):
        is_near(found, {name: one + force[name] for name, one in theirs.items()})
    assert [row["kl_anchor/divergence"] for row in rows] == pytest.approx([expected.item()] * 2, rel=1e-5)
    assert [row["kl_anchor/weight"] for row in rows] == pytest.approx([0.3] * 2)


def test_a_step_has_the_gradient_of_its_own_answers_and_once_that_of_the_replayed(tiny: Tiny) -> None:
    options = {"learning_rate": 0.0, "max_grad_norm": 0.0, "gradient_accumulation_steps": 2}
    plain, ours = (tiny.sft(adapter(tiny.base()), **options) for _ in range(2))
    known = Known(tiny)
    REPLAY.attach(ReplaySettings(examples=3, weight=0.3), known.measured, ours)
    (task, _), (both, _) = learned(plain), learned(ours)
    parts = trained(ours.model)
    loss = answer_loss(ours.model.eval(), padded(known.rows, ours.model.device))
    force = dict(zip(parts, grad(0.3 * loss, list(parts.values())), strict=True))
    for found, theirs in zip(both, task, strict=True):
        is_near(found, {name: one + force[name] for name, one in theirs.items()})


def test_the_anchor_leaves_dropout_as_it_was_and_does_not_see_it(tiny: Tiny) -> None:
    trainer = tiny.sft(adapter(tiny.base(), begun=False, lora_dropout=0.9), learning_rate=0.0)
    KL_ANCHOR.attach(KLAnchorSettings(), Known(tiny).measured, trainer)
    trainer.model.train()
    with pytest.raises(NoEffectError):
        learned(trainer)
    rows = [row["kl_anchor/divergence"] for row in trainer.state.log_history if "kl_anchor/divergence" in row]
    assert rows == pytest.approx([0, 0], abs=1e-6)
    assert all(module.training for module in trainer.model.modules())


# Refusal


def test_a_target_that_was_missed_is_told_with_what_was_reached() -> None:
    weight = Weight(KLAnchorSettings(target=0.1))
    for found in [0.05] * 12 + [0.31] * 4:
        weight.seen = torch.tensor(found)
        weight.turn()
    with pytest.raises(RecipeError, match=r"a mean divergence of 0\.31 nats over the last 4 steps"):
        weight.end()
    again = Weight(KLAnchorSettings(target=0.1))
    again.restore(weight.state(), "cpu")
    assert again.value == weight.value
    with pytest.raises(RecipeError, match=r"0\.31 nats"):
        again.end()
    weight.begin()
    assert weight.value == 1.0
    weight.end()


def test_a_weight_without_a_target_is_never_turned() -> None:
    weight = Weight(KLAnchorSettings(weight=0.3))
    weight.seen = torch.tensor(9.0)
    weight.turn()
    weight.end()
    assert weight.value == 0.3


def test_a_target_with_nothing_to_turn_up_is_refused() -> None:
    with pytest.raises(NoEffectError, match="a weight that can be turned up"):
        KLAnchorSettings(weight=0, target=0.1)
