"""The weighted loss, against arithmetic and against TRL's own trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM
from trl import SFTConfig, SFTTrainer, pack_dataset

from alignkeep.errors import DataError, RecipeError
from alignkeep.train.trainer import WeightedCollator, WeightedSFTTrainer

PLAIN = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "disable_tqdm": True,
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "max_length": None,
}


def _rows(count: int) -> dict[str, list]:
    """Token rows of lengths 6 to 10 with the first three tokens masked as the prompt."""
    ids = [[10 + (7 * row + 3 * place) % 40 for place in range(6 + row % 5)] for row in range(count)]
    return {"input_ids": ids, "labels": [[-100, -100, -100, *row[3:]] for row in ids]}


def _with_weights(rows: dict[str, list], weights: list[float]) -> Dataset:
    per_token = [[weight] * len(ids) for weight, ids in zip(weights, rows["input_ids"], strict=True)]
    return Dataset.from_dict({**rows, "loss_weights": per_token})


def _losses(trainer: SFTTrainer) -> list[float]:
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def _trainer(kind: type, model: object, data: Dataset, folder: Path, tokenizer: object, **options: object):
    peft = options.pop("peft_config", None)
    args = SFTConfig(output_dir=str(folder), **{**PLAIN, **options})
    return kind(model=model, args=args, train_dataset=data, processing_class=tokenizer, peft_config=peft)


@pytest.fixture
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model)


@pytest.fixture
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


# By hand


def test_the_loss_is_the_weighted_sum_of_token_losses_over_the_number_of_answer_tokens(model, tokenizer, tmp_path):
    rows = _rows(4)
    weights = [[0.5 * row + 0.1 * place for place in range(len(ids))] for row, ids in enumerate(rows["input_ids"])]
    logits_of = AutoModelForCausalLM.from_pretrained(model.name_or_path).eval()
    total, tokens = 0.0, 0
    for ids, row in zip(rows["input_ids"], weights, strict=True):
        with torch.no_grad():
            chances = logits_of(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for place in range(3, len(ids)):
            total -= row[place] * chances[place - 1, ids[place]].item()
            tokens += 1
    data = Dataset.from_dict({**rows, "loss_weights": weights})
    options = {"per_device_train_batch_size": 4, "max_steps": 1}
    trainer = _trainer(WeightedSFTTrainer, model, data, tmp_path, tokenizer, **options)
    assert _losses(trainer)[0] == pytest.approx(total / tokens, abs=1e-5)


def test_one_number_per_example_weighs_all_its_tokens(tokenizer, tiny_model, tmp_path):
    rows, weights = _rows(4), [0.5, 2.0, 0.25, 1.25]
    losses = []
    for data in (_with_weights(rows, weights), Dataset.from_dict({**rows, "weight": weights})):
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        losses.append(_losses(_trainer(WeightedSFTTrainer, model, data, tmp_path, tokenizer, max_steps=2)))
    assert losses[0] == losses[1]


def test_the_collator_pads_weights_with_zero_where_it_pads_tokens():
    batch = WeightedCollator(pad_token_id=0)(
        [
            {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "loss_weights": [1.5, 1.5, 1.5]},
            {"input_ids": [8], "labels": [8], "weight": 0.5},
        ]
    )
    assert batch["loss_weights"].tolist() == [[1.5, 1.5, 1.5], [0.5, 0.0, 0.0]]


# Independent twin: TRL


@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_of_one_give_plain_trl_bit_for_bit(tiny_model, tokenizer, tmp_path, accumulate):
    rows, found = _rows(11), []
    for kind, data in ((SFTTrainer, Dataset.from_dict(rows)), (WeightedSFTTrainer, _with_weights(rows, [1.0] * 11))):
        trainer = _trainer(
            kind,
            AutoModelForCausalLM.from_pretrained(tiny_model),
            data,
            tmp_path,
            tokenizer,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=accumulate,
            num_train_epochs=2,
            peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        found.append((_losses(trainer), [part.detach() for part in trainer.model.parameters()]))
    (plain, plain_parts), (weighted, weighted_parts) = found
    assert weighted == plain
    assert all(torch.equal(one, other) for one, other in zip(plain_parts, weighted_parts, strict=True))


def test_the_router_loss_of_a_mixture_of_experts_is_kept(tokenizer, tmp_path):
    def experts() -> Qwen3MoeForCausalLM:
        torch.manual_seed(0)
        return Qwen3MoeForCausalLM(
            Qwen3MoeConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                moe_intermediate_size=16,
                num_experts=4,
                num_experts_per_tok=2,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
                output_router_logits=True,
                router_aux_loss_coef=0.1,
            )
        )

    rows = _rows(6)
    plain = _losses(_trainer(SFTTrainer, experts(), Dataset.from_dict(rows), tmp_path, tokenizer, max_steps=2))
    data = _with_weights(rows, [1.0] * 6)
    kept = _losses(_trainer(WeightedSFTTrainer, experts(), data, tmp_path, tokenizer, max_steps=2))
    without = _losses(
        _trainer(WeightedSFTTrainer, experts(), data, tmp_path, tokenizer, max_steps=2, router_aux_loss_coef=0.0)
    )
    assert kept == plain
    assert kept[0] - without[0] > 0.05


def test_packed_and_padded_examples_have_the_same_weighted_loss(tiny_model, tokenizer, tmp_path):
    data = _with_weights(_rows(6), [0.5, 2.0, 0.25, 1.25, 1.0, 3.0])
    losses = []
    for rows, options in ((data, {}), (pack_dataset(data, 32, "bfd"), {"padding_free": True})):
        losses.append(
            _losses(
                _trainer(
                    WeightedSFTTrainer,
                    AutoModelForCausalLM.from_pretrained(tiny_model),
                    rows,
                    tmp_path,
                    tokenizer,
                    per_device_train_batch_size=8,
                    max_steps=3,
                    **options,
                )
            )
        )
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_evaluation_is_weighted_too(model, tokenizer, tmp_path):
    rows, found = _rows(4), []
    for weights in ([1.0] * 4, [2.0] * 4):
        data = _with_weights(rows, weights)
        args = SFTConfig(output_dir=str(tmp_path), **PLAIN)
        trainer = WeightedSFTTrainer(
            model=model, args=args, train_dataset=data, eval_dataset={"held_out": data}, processing_class=tokenizer
        )
        found.append(trainer.evaluate()["eval_held_out_loss"])
    assert found[1] == pytest.approx(2 * found[0], rel=1e-5)


# Refusal: the silent places


def test_data_without_weights_is_refused(model, tokenizer, tmp_path):
    trainer = _trainer(WeightedSFTTrainer, model, Dataset.from_dict(_rows(4)), tmp_path, tokenizer)
    with pytest.raises(DataError, match=r"input_ids, labels, expected a column `weight` or `loss_weights`; add it"):
        trainer.train()


def test_weights_that_trls_own_packing_dropped_are_refused(model, tokenizer, tmp_path):
    data = Dataset.from_dict({**_rows(4), "weight": [1.0, 2.0, 1.0, 2.0]})
    trainer = _trainer(
        WeightedSFTTrainer, model, data, tmp_path, tokenizer, packing=True, max_length=32, dataset_kwargs=None
    )
    with pytest.raises(DataError, match=r"TRL's packing drops the column"):
        trainer.train()


def test_a_collator_that_would_lose_the_weights_is_refused(model, tokenizer, tmp_path):
    trainer = _trainer(WeightedSFTTrainer, model, _with_weights(_rows(4), [1.0] * 4), tmp_path, tokenizer)
    trainer.data_collator = lambda rows: rows
    with pytest.raises(DataError, match=r"derive it from alignkeep\.train\.WeightedCollator"):
        trainer.train()


def test_a_batch_without_weights_is_refused(model, tokenizer, tmp_path):
    trainer = _trainer(WeightedSFTTrainer, model, _with_weights(_rows(4), [1.0] * 4), tmp_path, tokenizer)
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[1, 2, 3]])}
    with pytest.raises(DataError, match="example weights"):
        trainer.compute_loss(model, batch)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"loss_type": "dft"}, "loss_type=dft"), ({"label_smoothing_factor": 0.1}, "label_smoothing_factor")],
)
def test_a_loss_that_the_weights_do_not_reach_is_refused(model, tokenizer, tmp_path, options, named):
    trainer = _trainer(WeightedSFTTrainer, model, _with_weights(_rows(4), [1.0] * 4), tmp_path, tokenizer, **options)
    with pytest.raises(RecipeError, match=named):
        trainer.train()
