"""GRAOTrainer on a tiny model: its loss against loops over the paper's equations, TRL's engine around it unharmed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl.trainer.sft_trainer import SFTConfig, SFTTrainer

from alignkeep.align.grao_config import GRAOConfig
from alignkeep.align.prepare import as_chat
from alignkeep.align.reference import as_completion, reference_tokens
from alignkeep.align.trainer import GRAOTrainer, _stacked
from alignkeep.errors import DataError, MachineError, NoEffectError, RecipeError
from alignkeep.types import Message, Reference

GROUP, PROMPTS = 3, 4


def _rows(chat: bool = True, **columns: list[Any]) -> Dataset:
    questions = [f"how to fix {number} ?" for number in range(2 * PROMPTS)]
    references = [" ".join(["sure", "bread", "numbers"][: 1 + number % 3]) for number in range(2 * PROMPTS)]
    prompts = [[{"role": "user", "content": text}] for text in questions] if chat else questions
    return Dataset.from_dict({"prompt": prompts, "reference": references, **columns})


def _longer_is_better(*, completions: list[Any], **columns: Any) -> list[float | None]:
    """A reward of no meaning that tells answers apart."""
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    return [float(len(text) % 7) for text in texts]


def _trainer(folder: Path, out: Path, reward: Any = _longer_is_better, rows: Dataset | None = None, **settings: Any):
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": GROUP * PROMPTS, "num_generations": GROUP, "max_completion_length": 6,
        "max_steps": 2, "learning_rate": 1e-2, "report_to": "none", "save_strategy": "no", "use_cpu": True,
        "bf16": False, "disable_tqdm": True, "logging_steps": 1, "temperature": 0.7,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer = GRAOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRAOConfig(str(out), **(arguments | settings)),
        train_dataset=_rows() if rows is None else rows,
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _rollout(trainer: GRAOTrainer) -> list[dict[str, Any]]:
    """The inputs of every step of one rollout, as the trainer meets them."""
    loader = trainer.get_train_dataloader()
    trainer.model.train()
    batch = next(iter(loader))
    steps = []
    for step in range(trainer.args.steps_per_generation):
        trainer._step = step
        steps.append(trainer._prepare_inputs(batch))
    return steps


def _mean_log_prob(
    model: Any, prompt: list[int], answer: list[int], temperature: float, *, by_probability: bool = False
) -> Tensor:
    """One text at a time, without padding or masks; each token times its own probability, if that is asked for."""
    logits = model(torch.tensor([prompt + answer])).logits[0].double() / temperature
    log_probs = logits.log_softmax(-1)
    tokens = [log_probs[len(prompt) - 1 + at, token] for at, token in enumerate(answer)]
    return torch.stack([one * one.exp().item() if by_probability else one for one in tokens]).mean()


def _objective_by_loops(trainer: GRAOTrainer, steps: list[dict[str, Any]]) -> Tensor:
    """Equations 2 to 4 of the paper, in loops, with the reference inside the group."""
    tokenizer, args = trainer.processing_class, trainer.args
    groups: dict[tuple[int, ...], list[list[int]]] = {}
    for inputs in steps:
        for at in range(inputs["prompt_ids"].shape[0]):
            prompt = tuple(inputs["prompt_ids"][at][inputs["prompt_mask"][at] == 1].tolist())
            answer = inputs["completion_ids"][at][inputs["completion_mask"][at] == 1].tolist()
            groups.setdefault(prompt, []).append(answer)
    total = torch.zeros((), dtype=torch.float64)
    for prompt, answers in groups.items():
        assert len(answers) == GROUP
        words = tokenizer.decode(prompt, skip_special_tokens=True)
        row = next(one for one in trainer.train_dataset if one["prompt"][0]["content"] == words)
        reference = tokenizer(row["reference"])["input_ids"] + [tokenizer.eos_token_id]
        texts = [tokenizer.decode(one, skip_special_tokens=True) for one in answers]
        rewards = [float(len(text) % 7) for text in [*texts, row["reference"]]]
        mean = sum(rewards) / len(rewards)
        deviation = math.sqrt(sum((one - mean) ** 2 for one in rewards) / len(rewards))
        advantages = [(one - mean) / deviation if deviation else 0.0 for one in rewards]
        coefficient = args.imitation * advantages[-1] - args.regulariser * sum(advantages[:-1]) / GROUP
        unlearned = args.bounded and coefficient < 0
        imitated = _mean_log_prob(trainer.model, list(prompt), reference, args.temperature, by_probability=unlearned)
        for answer, advantage in zip(answers, advantages[:-1], strict=True):
            explored = _mean_log_prob(trainer.model, list(prompt), answer, args.temperature)
            terms = (
                args.exploration * advantage * explored
                + args.imitation * advantages[-1] * imitated
                + args.regulariser * advantage * (explored - imitated)
            )
            total = total + terms / GROUP
    return total / len(groups)


@pytest.mark.parametrize(("passes", "bounded"), [(1, False), (2, False), (3, False), (2, True)])
def test_the_steps_of_a_rollout_add_up_to_equation_2_and_its_gradient(passes, bounded, tiny_model, tmp_path):
    trainer = _trainer(
        tiny_model, tmp_path, per_device_train_batch_size=GROUP * PROMPTS // passes,
        gradient_accumulation_steps=passes, bounded=bounded,
    )  # fmt: skip
    steps = _rollout(trainer)
    assert bool((trainer._references.coefficient < 0).any())
    trainer.current_gradient_accumulation_steps = passes
    for number, inputs in enumerate(steps):
        trainer._step = number
        trainer._compute_loss(trainer.model, inputs).backward()
    ours = {name: one.grad.clone() for name, one in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    trainer.model.double()
    objective = _objective_by_loops(trainer, steps)
    (-objective).backward()
    for name, one in trainer.model.named_parameters():
        torch.testing.assert_close(ours[name].double(), one.grad, rtol=1e-3, atol=2e-5, msg=name)
    logged = trainer._metrics["train"]
    parts = [sum(logged[f"grao/{name}"]) / passes for name in ("imitation", "exploration", "regulariser")]
    assert sum(parts) == pytest.approx(objective.item(), rel=1e-4)
    assert max(map(abs, parts)) > 0.1


def test_the_order_of_the_rows_of_a_rollout_changes_nothing(tiny_model, tmp_path):
    """TRL shuffles them: the loss of a shuffled batch is that of the batch."""
    trainer = _trainer(tiny_model, tmp_path)
    (inputs,) = _rollout(trainer)
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, inputs)
    order = torch.randperm(GROUP * PROMPTS)
    shuffled = {name: one[order] if one.dim() else one for name, one in inputs.items()}
    torch.testing.assert_close(trainer._compute_loss(trainer.model, shuffled), loss)


def test_a_reference_alone_is_learned_as_supervised_tuning_learns_it(tiny_model, tmp_path):
    """Every sample loses (reward 0 for all but the reference), imitation alone: the direction of SFT, per answer."""

    def reward(*, completions: list[Any], reference: list[str], **columns: Any) -> list[float]:
        return [float(one[-1]["content"] == other) for one, other in zip(completions, reference, strict=True)]

    rows = _rows().select([2])
    trainer = _trainer(
        tiny_model, tmp_path, reward, rows, per_device_train_batch_size=GROUP, exploration=0, regulariser=0,
        temperature=1.0,
    )  # fmt: skip
    (inputs,) = _rollout(trainer)
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, inputs).backward()
    ours = torch.cat([one.grad.flatten() for one in trainer.model.parameters()])
    examples = Dataset.from_dict(
        {"prompt": rows["prompt"], "completion": [[{"role": "assistant", "content": one}] for one in rows["reference"]]}
    )
    arguments = SFTConfig(str(tmp_path / "sft"), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    sft = SFTTrainer(model, arguments, train_dataset=examples, processing_class=trainer.processing_class)
    batch = sft._prepare_inputs(next(iter(sft.get_train_dataloader())))
    model.train()
    sft.compute_loss(model, batch).backward()
    theirs = torch.cat([one.grad.flatten() for one in model.parameters()])
    assert torch.nn.functional.cosine_similarity(ours, theirs, 0) > 0.9999
    assert ours.norm() / theirs.norm() == pytest.approx(0.5 * math.sqrt(GROUP), rel=1e-3)  # beta A_y, A_y = sqrt(G)


def test_the_card_and_the_tags_that_trl_writes_name_this_method_and_its_paper(tiny_model, tmp_path):
    trainer = _trainer(tiny_model, tmp_path)
    trainer.create_model_card(model_name="tuned")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "trained with GRAO" in card
    assert "https://huggingface.co/papers/2508.07750" in card
    assert "wang2025learning" in card
    assert not any(other in card for other in ("GRPO", "grpo", "DeepSeekMath", "2402.03300"))
    assert trainer.model.model_tags == ["trl", "grao"]


def test_reference_tokens_are_those_of_the_chat_template_with_the_end_of_the_turn(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    chat = [{"role": "user", "content": "how to fix 1 ?"}]
    expected = [*tokenizer("sure bread")["input_ids"], tokenizer.eos_token_id]
    assert reference_tokens(tokenizer, chat, "sure bread") == expected
    assert reference_tokens(tokenizer, chat, [{"role": "assistant", "content": "sure bread"}]) == expected
    assert reference_tokens(tokenizer, "how to fix 1 ?", "sure bread") == expected
    assert as_completion(chat, "sure") == [{"role": "assistant", "content": "sure"}]
    assert as_completion("how", "sure") == "sure"


TURN = "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {% endfor %}"
CHAT = [{"role": "user", "content": "how to fix 1 ?"}]


@pytest.mark.parametrize(
    ("template", "options", "expected"),
    [
        (TURN + "{% if add_generation_prompt %}<|assistant|> {% endif %}", {}, "sure bread <|end|>"),
        # what follows the end of the turn is no part of the answer, and a template that writes no end has one
        (TURN.replace("<|end|>", "<|end|> no") + "{% if add_generation_prompt %}<|assistant|> {% endif %}", {},
         "sure bread <|end|>"),
        (TURN.replace("<|end|>", "") + "{% if add_generation_prompt %}<|assistant|> {% endif %}", {},
         "sure bread <|end|>"),
        # an empty thought that the prompt opens and closes is not learned
        ("{% for m in messages %}<|{{ m['role'] }}|> {% if m['role'] == 'assistant' %}no yes {% endif %}"
         "{{ m['content'] }} <|end|> {% endfor %}"
         "{% if add_generation_prompt %}<|assistant|> {% if quiet %}no yes {% endif %}{% endif %}",
         {"quiet": True}, "sure bread <|end|>"),
    ],
)  # fmt: skip
def test_a_reference_goes_on_where_a_sample_begins_and_ends_where_one_ends(template, options, expected, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = template
    found = reference_tokens(tokenizer, CHAT, "sure bread", template=options)
    assert found == tokenizer(expected)["input_ids"]


def test_a_prompt_that_opens_a_thought_which_references_lack_is_refused(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = TURN + "{% if add_generation_prompt %}<|assistant|> no {% endif %}"
    with pytest.raises(DataError, match="chat_template_kwargs"):
        reference_tokens(tokenizer, CHAT, "sure bread")


def test_a_system_message_that_a_template_refuses_stands_in_the_users_turn(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    row = Reference((Message("system", "Be low"), Message("user", "sort")), "sure")
    assert [turn["role"] for turn in as_chat(tokenizer, row)] == ["system", "user"]
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refusing + tokenizer.chat_template
    assert as_chat(tokenizer, row) == [{"role": "user", "content": "Be low\n\nsort"}]


def test_a_reward_function_sees_samples_and_references_in_one_call_with_their_columns(tiny_model, tmp_path):
    seen: list[dict[str, Any]] = []

    def reward(*, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        seen.append({"prompts": prompts, "completions": completions, **columns})
        columns["log_extra"]("length", [len(one[-1]["content"]) for one in completions])
        columns["log_metric"]("answers", float(len(completions)))
        return [0.0] * len(prompts)

    trainer = _trainer(tiny_model, tmp_path, reward, _rows(number=list(range(2 * PROMPTS))), max_steps=1)
    _rollout(trainer)
    (call,) = seen
    count = GROUP * PROMPTS
    assert {len(call[name]) for name in ("prompts", "completions", "reference", "number", "completion_ids")} == {
        count + PROMPTS
    }
    references = [[{"role": "assistant", "content": text}] for text in call["reference"][count:]]
    assert call["completions"][count:] == references
    assert call["prompts"][count:] == call["prompts"][:count:GROUP]
    assert call["number"][count:] == call["number"][:count:GROUP]
    assert len(trainer._logs["extra"]["length"]) == len(trainer._logs["advantages"]) == count


def test_an_answer_that_cannot_be_scored_teaches_nothing_and_is_counted(tiny_model, tmp_path):
    def reward(*, completions: list[Any], **columns: Any) -> list[float | None]:
        return [None if at % 4 == 0 else float(at) for at in range(len(completions))]

    trainer = _trainer(tiny_model, tmp_path, reward)
    trainer.model.train()
    output = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    count = GROUP * PROMPTS
    unscored = [at for at in range(count) if at % 4 == 0]
    assert not output["coefficients"][unscored].any()
    assert not output["advantages"][unscored].any()
    assert output["coefficients"].isfinite().all()
    assert output["coefficients"].any()
    references = trainer._references
    assert references.advantage[0] == 0  # row 12 of 16, which is not scored
    assert references.advantage[1:].all()
    pairs = [(at, count + at // GROUP) for at in range(count)]
    shares = [any(one % 4 == 0 for one in pair) for pair in pairs]
    assert trainer._metrics["train"]["grao/unscored"] == [pytest.approx(sum(shares) / count)]


def test_a_batch_of_which_nothing_can_be_scored_ends_with_the_machines_error(tiny_model, tmp_path):
    trainer = _trainer(tiny_model, tmp_path, lambda *, completions, **columns: [None] * len(completions))
    with pytest.raises(MachineError, match="none could be scored"):
        trainer.train()


def test_several_rewards_are_weighted_and_a_part_that_is_missing_is_left_out(tiny_model, tmp_path):
    def other(*, completions: list[Any], **columns: Any) -> list[float | None]:
        return [None if at % 2 else 1.0 for at in range(len(completions))]

    trainer = _trainer(tiny_model, tmp_path, [_longer_is_better, other], reward_weights=[1.0, 10.0])
    trainer.model.train()
    trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    lengths = trainer._scores[0, :, 0]
    count = GROUP * PROMPTS
    total = lengths + torch.tensor([0.0 if at % 2 else 10.0 for at in range(count + PROMPTS)])
    group = torch.cat([total[:GROUP], total[count : count + 1]])
    expected = (group - group.mean()) / group.std(correction=0)
    torch.testing.assert_close(trainer._references.advantage[0], expected[-1])


def test_importance_weights_multiply_the_tokens_of_the_samples_only(tiny_model, tmp_path):
    trainer = _trainer(tiny_model, tmp_path)
    (inputs,) = _rollout(trainer)
    trainer.current_gradient_accumulation_steps = 1
    plain = trainer._compute_loss(trainer.model, dict(inputs))
    width = inputs["completion_ids"].shape
    for ones in (torch.ones(width), torch.ones(width[0], 1)):
        torch.testing.assert_close(
            trainer._compute_loss(trainer.model, {**inputs, "importance_sampling_ratio": ones}), plain
        )
    none = trainer._compute_loss(trainer.model, {**inputs, "importance_sampling_ratio": torch.zeros(width)})
    imitated = trainer._metrics["train"]["grao/imitation"][0]
    mean = -trainer._references.advantage  # sum_i A_i
    share = 0.6 * (mean / GROUP / 0.5 / trainer._references.advantage)  # lambda mean_i A_i I in units of beta A_y I
    assert len(set(share.round(decimals=4).tolist())) == 1
    assert -none.item() == pytest.approx(imitated * (1 - share[0].item()), rel=1e-4)


@pytest.mark.parametrize("size", [6, 24])
def test_it_trains_plain_text_prompts_and_evaluates(size, tiny_model, tmp_path):
    rows = _rows(chat=False)
    trainer = _trainer(tiny_model, tmp_path, rows=rows, per_device_eval_batch_size=size)
    trainer.eval_dataset = rows
    trainer.train()
    found = trainer.evaluate()
    assert math.isfinite(found["eval_loss"])
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))


def test_an_evaluation_has_groups_of_its_own_whole_ones_and_is_not_divided_by_accumulation(tiny_model, tmp_path):
    rows = _rows()
    losses = []
    for passes in (1, 2):
        trainer = _trainer(
            tiny_model, tmp_path, rows=rows, per_device_eval_batch_size=4, num_generations_eval=2, top_k=1,
            per_device_train_batch_size=GROUP * PROMPTS // passes, gradient_accumulation_steps=passes,
        )  # fmt: skip
        trainer.eval_dataset = rows.select(range(4))
        losses.append(trainer.evaluate()["eval_loss"])
        assert trainer._references.ids.shape[0] == 2  # 4 samples in groups of 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    trainer = _trainer(tiny_model, tmp_path, rows=rows, per_device_eval_batch_size=3, num_generations_eval=2)
    trainer.eval_dataset = rows.select(range(3))
    with pytest.raises(RecipeError, match="whole groups"):
        trainer.evaluate()


def test_what_is_logged_counts_samples_that_win_and_groups_with_one(tiny_model, tmp_path):
    """Of every group one sample beats its reference (1), one is as good (0), one is worse (-1)."""

    def reward(*, completions: list[Any], **columns: Any) -> list[float]:
        count = GROUP * PROMPTS
        return [float(1 - at % GROUP) if at < count else 0.0 for at in range(len(completions))]

    trainer = _trainer(tiny_model, tmp_path, reward, min_reference_advantage=0.25)
    (inputs,) = _rollout(trainer)
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert (logged["grao/wins"], logged["grao/groups_ahead"]) == (pytest.approx(1 / 3), 1.0)
    assert (logged["grao/flat"], logged["grao/unscored"]) == (0.0, 0.0)
    assert logged["reward"] == pytest.approx(0)  # of the samples alone
    assert trainer._references.advantage.tolist() == [0.25] * PROMPTS  # it would be 0
    assert len(trainer._logs["advantages"]) == GROUP * PROMPTS
    assert set(trainer._logs["advantages"]) == set(inputs["advantages"].tolist())
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, inputs)
    keep = inputs["completion_ids"].shape[1]
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    _, entropy, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, keep, compute_entropy=True)
    answers = inputs["completion_mask"]
    expected = ((entropy * answers).sum() / answers.sum()).item()
    assert trainer._metrics["train"]["entropy"][-1] == pytest.approx(expected, rel=1e-5)


def test_equal_rewards_make_flat_groups_and_no_loss(tiny_model, tmp_path):
    trainer = _trainer(tiny_model, tmp_path, lambda *, completions, **columns: [2.0] * len(completions))
    (inputs,) = _rollout(trainer)
    trainer.current_gradient_accumulation_steps = 1
    assert trainer._compute_loss(trainer.model, inputs).item() == 0
    assert trainer._metrics["train"]["grao/flat"] == [1.0]


def test_widths_are_multiples_where_they_have_to_be_and_the_loss_is_the_same(tiny_model, tmp_path):
    losses = []
    for multiple in (None, 8):
        trainer = _trainer(tiny_model, tmp_path, pad_to_multiple_of=multiple, top_k=1)
        (inputs,) = _rollout(trainer)
        trainer.current_gradient_accumulation_steps = 1
        losses.append(trainer._compute_loss(trainer.model, inputs).item())
        width = _stacked(inputs, trainer._references, 0, multiple or 1)[2]
        assert multiple is None or width % multiple == 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_mixture_of_experts_keeps_its_router_loss(tmp_path):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    from conftest import build_tiny_model

    folder = build_tiny_model(tmp_path / "dense")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
        router_aux_loss_coef=0.1, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")
    trainer = _trainer(tmp_path / "moe", tmp_path / "out")
    assert trainer.aux_loss_enabled
    (inputs,) = _rollout(trainer)
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, inputs)
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    objective = sum(logged[f"grao/{name}"] for name in ("imitation", "exploration", "regulariser"))
    assert loss.item() == pytest.approx(0.1 * logged["aux_loss"] - objective, rel=1e-5)
    assert logged["aux_loss"] > 0.5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"beta": 0.1}, "beta"),
        ({"num_iterations": 2}, "num_iterations"),
        ({"loss_type": "grpo"}, "loss_type"),
        ({"scale_rewards": "none"}, "scale_rewards"),
        ({"entropy_coef": 0.1}, "entropy_coef"),
        ({"sapo_temperature_pos": 2.0}, "sapo_temperature_pos"),
        ({"mask_truncated_completions": True}, "mask_truncated_completions"),
        ({"steps_per_generation": 2}, "steps_per_generation"),
        ({"imitation": -1.0}, "strengths"),
        ({"regulariser": math.inf}, "strengths"),
        ({"min_reference_advantage": math.nan}, "min_reference_advantage"),
    ],
)
def test_settings_without_a_place_in_grao_are_refused_by_name(settings, named, tmp_path):
    with pytest.raises(RecipeError, match=named):
        GRAOConfig(str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=8, **settings)


def test_all_strengths_0_is_an_error(tmp_path):
    with pytest.raises(NoEffectError, match="all 0"):
        GRAOConfig(str(tmp_path), use_cpu=True, bf16=False, imitation=0, exploration=0, regulariser=0)


def test_data_without_references_is_refused_before_the_first_step(tiny_model, tmp_path):
    with pytest.raises(DataError, match="`reference`"):
        _trainer(tiny_model, tmp_path, rows=_rows().remove_columns("reference")).train()
    empty = _rows().map(lambda row, at: {"reference": " " if at == 2 else row["reference"]}, with_indices=True)
    with pytest.raises(DataError, match=r"row 3.*empty"):
        _trainer(tiny_model, tmp_path, rows=empty).train()


def test_long_references_are_cut_where_answers_are(tiny_model, tmp_path):
    trainer = _trainer(tiny_model, tmp_path, max_completion_length=2)
    _rollout(trainer)
    assert trainer._references.ids.shape[1] == 2
    ends = trainer._references.ids[:, -1] == trainer.processing_class.eos_token_id
    cut = (~ends & (trainer._references.mask[:, -1] == 1)).float().mean().item()
    assert trainer._metrics["train"]["grao/references_cut"] == [cut]


def _of_samples_alone(*, completions: list[Any], reference: list[str], **columns: Any) -> list[float | None]:
    texts = [one[-1]["content"] for one in completions]
    return [None if text == other else float(len(text)) for text, other in zip(texts, reference, strict=True)]


def test_references_that_cannot_be_scored_are_counted_and_too_many_in_a_row_end_with_the_machines_error(
    tiny_model, tmp_path
):
    """Batches of four prompts: the second makes eight."""
    trainer = _trainer(tiny_model, tmp_path, _of_samples_alone)
    with pytest.raises(MachineError, match=r"step 1: found 8 references in a row of which none could be scored"):
        trainer.train()
    assert trainer._metrics["train"]["grao/references_unscored"] == [1.0]


def test_one_reference_that_cannot_be_scored_does_not_end_a_run_of_small_batches(tiny_model, tmp_path):
    calls: list[int] = []

    def reward(**columns: Any) -> list[float | None]:
        """Every other reference has no score; a batch is one group, its reference the last."""
        calls.append(len(columns["completions"]))
        found = _longer_is_better(**columns)
        return [*found[:-1], None] if len(calls) % 2 else found

    trainer = _trainer(tiny_model, tmp_path, reward, per_device_train_batch_size=GROUP, max_steps=18)
    trainer.train()
    told = [row["grao/references_unscored"] for row in trainer.state.log_history if "loss" in row]
    assert told == [1.0, 0.0] * 9


def test_a_reward_without_bound_is_refused(tiny_model, tmp_path):
    def forbidding(*, completions: list[Any], **columns: Any) -> list[float]:
        return [-math.inf, *(float(number) for number in range(1, len(completions)))]

    with pytest.raises(RecipeError, match="infinite"):
        _trainer(tiny_model, tmp_path, forbidding).train()


@pytest.mark.parametrize(
    "reference",
    [[42] * 8, [["a", "b"]] * 8, [[{"role": "user", "content": "sure"}]] * 8, [{"answer": "sure"}] * 8,
     [[{"role": "assistant", "content": [{"type": "text", "text": "hi"}]}]] * 8],
)  # fmt: skip
def test_references_of_another_form_are_refused_with_their_row(reference, tiny_model, tmp_path):
    rows = _rows().remove_columns("reference").add_column("reference", reference)  # pyright: ignore[reportCallIssue]
    with pytest.raises(DataError, match=r"row 1: found the `reference` .*expected an answer: text, or turns"):
        _trainer(tiny_model, tmp_path, rows=rows).train()


def test_the_paper_gives_answers_2048_tokens(tmp_path):
    assert GRAOConfig(str(tmp_path), use_cpu=True, bf16=False).max_completion_length == 2048
