"""GRAO inside TRL's engine: GRPOTrainer samples, scores and steps; advantages, references and the loss are ours.

    trainer = GRAOTrainer(model, reward_funcs=reward, args=GRAOConfig(...), train_dataset=rows, peft_config=lora)

The data needs a column `reference`, text or messages. Rewards are TRL's: every function is given the references of the
batch behind the samples, in one call, so that both are scored by the same judge; None is "unscored".

The references of a rollout are not rows of its batch (TRL shuffles those and splits them over the steps of an
accumulation): they wait in `_references`, and each step takes its share along in the forward pass of its samples.

Departures from the paper: align/advantage.py and align/objective.py, and
    1. A reference longer than `max_completion_length` is learned up to there, without its end, and scored as a whole;
       the share of such is logged.
    2. With vLLM, whose probabilities differ a little, TRL's importance weights multiply the samples' tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from trl.trainer.utils import pad

from alignkeep.align.advantage import GroupAdvantage, group_advantage
from alignkeep.align.engine import CarefulGRPOTrainer
from alignkeep.align.grao_config import GRAOConfig
from alignkeep.align.objective import Strengths, boundedly_unlearned, coefficients
from alignkeep.align.reference import COLUMN, as_completion, check_reference, check_references, reference_tokens
from alignkeep.errors import MachineError, RecipeError
from alignkeep.masked import mean_over_answer, sum_over_answer
from alignkeep.works import works

_HOPELESS = 8  # chosen: so many references in a row that cannot be scored, and the reward is given up
_WORK = works()["wang2025learning"]


class _References(NamedTuple):
    """The references of the rollout that is being learned from, one per prompt of this process."""

    prompt_ids: Tensor  # (B, P), padded on the left
    prompt_mask: Tensor
    ids: Tensor  # (B, R), padded on the right
    mask: Tensor
    coefficient: Tensor  # (B,) c_y
    advantage: Tensor  # (B,) A_y

    def part(self, index: int, parts: int) -> _References:
        """Every `parts`-th of them."""
        return _References(*(one[index::parts] for one in self))


class GRAOTrainer(CarefulGRPOTrainer):
    """`trl.GRPOTrainer` with GRAO's objective; the constructor is the parent's, its `args` a GRAOConfig.

    Raises, before the first step, RecipeError for settings that have no place in GRAO and DataError for data without
    references; MachineError where not one sample of a batch could be scored, or no reference of eight groups in a row.
    """

    # What TRL writes into the model's tags and its card.
    _tag_names: ClassVar[list[str]] = ["trl", "grao"]
    _name = "GRAO"
    _paper: ClassVar[dict[str, str]] = {
        "title": _WORK.title,
        "id": _WORK.url.rpartition("/")[2],
        "citation": _WORK.bibtex(),
    }

    _unscored_in_a_row = 0

    # The base classes promise less.
    args: Any  # GRAOConfig
    model: Any
    accelerator: Any
    num_generations: Any
    num_generations_eval: Any
    _tokenizer: Any

    rollout_func: Any
    chat_template_kwargs: Any
    pad_to_multiple_of: Any
    tools: Any

    def get_train_dataloader(self) -> Any:
        self._check()
        return super().get_train_dataloader()

    @property
    def strengths(self) -> Strengths:
        return Strengths(self.args.imitation, self.args.exploration, self.args.regulariser)

    def _check(self) -> None:
        if not isinstance(self.args, GRAOConfig):
            raise _unfit("args", type(self.args).__name__, "a GRAOConfig", "give one")
        for name in ("environments", "environment_factories", "rollout_func", "tools"):
            if getattr(self, name, None):
                raise _unfit(name, "one", "answers that the model alone gives, as references are", "use GRPO for it")
        self._check_groups(self.args.per_device_train_batch_size * (self.args.steps_per_generation or 1))
        check_references(self.train_dataset)

    def _check_groups(self, samples: int) -> None:
        if samples % self._group():
            raise _unfit(
                "per_device_train_batch_size",
                f"{samples} samples of a process at once, in groups of {self._group()}",
                "whole groups on every process, each with its reference",
                "raise gradient_accumulation_steps or the batch size, or lower the number of generations",
            )

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> Tensor:
        """The parent's rewards of the samples; those of the references, which it is given behind them, are kept."""
        count = len(prompts)
        self._check_groups(count)
        rows = inputs[:: self._group()]
        tokens, limit = [self._tokens_of(row) for row in rows], self.args.max_completion_length
        cut = torch.tensor([len(one) > limit for one in tokens], dtype=torch.float, device=self.accelerator.device)
        self._log("grao/references_cut", cut.mean())
        self._tokens = [one[:limit] for one in tokens]
        answers = [as_completion(row["prompt"], row[COLUMN]) for row in rows]
        scores = super()._calculate_rewards(
            [*inputs, *rows],
            [*prompts, *prompts[:: self._group()]],
            [*completions, *answers],
            [*completion_ids_list, *self._tokens],
        )
        for values in self._pending_extra_logs.values():
            del values[count:]
        self._scores = scores.view(self.accelerator.num_processes, count + len(rows), -1)
        of_samples = self._scores[:, :count].reshape(-1, scores.shape[-1])
        self._refuse_unscored(of_samples)
        self._count_unscored(self._scores[:, count:].isnan().all(-1))
        if bool(scores.isinf().any()):
            raise _unfit("reward_funcs", "a reward that is infinite", "finite numbers, or None", "bound it")
        return of_samples

    def _count_unscored(self, references: Tensor) -> None:
        """A group whose reference could not be scored learns from its samples alone, whatever else is in its batch.
        Raises MachineError where that is so of too many groups in a row."""
        self._metrics["train" if self.model.training else "eval"]["grao/references_unscored"].append(
            references.float().mean().item()
        )
        self._unscored_in_a_row = self._unscored_in_a_row + references.numel() if bool(references.all()) else 0
        if self._unscored_in_a_row >= _HOPELESS:
            raise MachineError(
                f"align, step {self.state.global_step}",
                seen=f"{self._unscored_in_a_row} references in a row of which none could be scored",
                expected="a reward for some of them",
                remedy="see to the judge or reward function; what was learned so far is kept",
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if "pixel_values" in output:
            raise _unfit("train_dataset", "images", "text", "leave them out, or use GRPO")
        group, count = self._group(), len(inputs)
        weights = self.reward_weights.to(self._scores.device)
        rewards = (self._scores * weights).nansum(-1).masked_fill(self._scores.isnan().all(-1), torch.nan)
        sampled, reference = rewards[:, :count].reshape(-1, group), rewards[:, count:].reshape(-1)
        every = group_advantage(
            sampled,
            reference,
            reference_in_group=self.args.reference_in_group,
            min_reference=self.args.min_reference_advantage,
        )
        self._log_rollout(sampled, reference, every)
        groups, rank = count // group, self.accelerator.process_index
        here = GroupAdvantage(*(one[rank * groups : (rank + 1) * groups] for one in every))
        of_samples, of_references = coefficients(here, self.strengths)
        ids = [torch.tensor(tokens, device=of_references.device) for tokens in self._tokens]
        self._references = _References(
            output["prompt_ids"][::group],
            output["prompt_mask"][::group],
            pad(ids, padding_value=self._tokenizer.pad_token_id, padding_side="right"),
            pad([torch.ones_like(one) for one in ids], padding_value=0, padding_side="right"),
            of_references,
            here.reference,
        )
        output["advantages"] = here.sampled.reshape(-1)
        output["coefficients"] = (of_samples * group).reshape(-1)  # the sum over a group is a mean over rows
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """-J of this step's samples and its share of the references (align/objective.py), in one forward pass."""
        training = self.model.training
        parts = self.args.steps_per_generation if training else 1
        references = self._references.part(self._step % parts, parts)
        share = parts / self._references.ids.shape[0]
        samples = inputs["completion_ids"].shape[0]
        ids, mask, kept = _stacked(inputs, references, self._tokenizer.pad_token_id, self.pad_to_multiple_of or 1)
        log_probs, entropies, router_loss = self._get_per_token_logps_and_entropies(
            model, ids, mask, kept, compute_entropy=True, compute_aux_loss=self.aux_loss_enabled
        )
        answer_mask = mask[:, -kept:].clone()
        width = inputs["completion_ids"].shape[1]
        if "importance_sampling_ratio" in inputs:  # (n, T), or (n, 1) for whole answers
            ratio = torch.ones_like(log_probs)
            ratio[:samples, :width] = inputs["importance_sampling_ratio"]
            log_probs = log_probs * ratio
        if self.args.bounded:
            unlearned = boundedly_unlearned(log_probs[samples:], references.coefficient)
            log_probs = torch.cat([log_probs[:samples], unlearned])
        means = mean_over_answer(log_probs, answer_mask)
        explored, imitated = means[:samples], means[samples:]
        objective = (inputs["coefficients"] * explored).mean() + share * (references.coefficient * imitated).sum()
        exploration = self.strengths.exploration * (inputs["advantages"] * explored).mean()
        imitation = self.strengths.imitation * share * (references.advantage * imitated).sum()
        self._log("grao/exploration", exploration)
        self._log("grao/imitation", imitation)
        self._log("grao/regulariser", objective - exploration - imitation)
        entropy = sum_over_answer(entropies[:samples], answer_mask[:samples]).sum() / answer_mask[:samples].sum()
        self._log("entropy", entropy)
        loss = -objective
        if router_loss is not None:
            loss = loss + self.router_aux_loss_coef * router_loss
            self._log("aux_loss", router_loss)
        return loss / (self.current_gradient_accumulation_steps if training else 1)

    def _group(self) -> int:
        return self.num_generations if self.model.training else self.num_generations_eval

    def _tokens_of(self, row: dict[str, Any]) -> list[int]:
        check_reference(row)
        return reference_tokens(
            self._tokenizer, row["prompt"], row[COLUMN], ends=self.eos_token_ids, template=self.chat_template_kwargs
        )

    def _log(self, name: str, value: Tensor) -> None:
        """The mean over processes, among TRL's own metrics."""
        mode = "train" if self.model.training else "eval"
        self._metrics[mode][name].append(self.accelerator.gather(value.detach().float()).mean().item())

    def _log_rollout(self, sampled: Tensor, reference: Tensor, advantage: GroupAdvantage) -> None:
        """What the rewards of all processes say: already gathered, so that every process logs the same."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        scored = ~(sampled.isnan() | reference.isnan()[:, None])
        wins = sampled > reference[:, None]
        metrics["grao/reference_advantage"].append(advantage.reference.mean().item())
        metrics["grao/groups_ahead"].append(wins.any(1).float().mean().item())
        if bool(scored.any()):
            metrics["grao/wins"].append(wins[scored].float().mean().item())
        metrics["grao/unscored"].append((~scored).float().mean().item())
        metrics["grao/flat"].append((advantage.sampled == 0).all(1).float().mean().item())
        every = advantage.sampled.reshape(-1).tolist()
        for _ in range(min(len(every), len(self._logs["advantages"]))):  # the parent's own make room
            self._logs["advantages"].pop()
        self._logs["advantages"].extend(every)


def _stacked(
    inputs: dict[str, Any], references: _References, padding: int, multiple: int
) -> tuple[Tensor, Tensor, int]:
    """Samples and references as rows of one batch, answers padded on the right to one width, which is returned too."""
    width = max(inputs["completion_ids"].shape[1], references.ids.shape[1])
    width += -width % multiple
    ids, masks = [], []
    for prompt, prompt_mask, answer, answer_mask in (
        (inputs["prompt_ids"], inputs["prompt_mask"], inputs["completion_ids"], inputs["completion_mask"]),
        (references.prompt_ids, references.prompt_mask, references.ids, references.mask),
    ):
        missing = (0, width - answer.shape[1])
        ids.append(torch.cat([prompt, functional.pad(answer, missing, value=padding)], 1))
        masks.append(torch.cat([prompt_mask, functional.pad(answer_mask, missing)], 1))
    return torch.cat(ids), torch.cat(masks), width


def _unfit(where: str, seen: str, expected: str, remedy: str) -> RecipeError:
    return RecipeError(f"GRAOTrainer, {where}", seen=seen, expected=expected, remedy=remedy)
