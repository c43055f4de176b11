"""Supervised tuning in which every answer token has a weight: TRL's SFTTrainer, its loss weighted and no line copied.

    loss = sum_t w_t * -log p_t / T,   T = answer tokens of the step, over accumulation and all processes

The parent computes the loss from the log-probabilities of its fused head; we hand it a model whose log-probabilities
leave already multiplied by `w`. So the MoE auxiliary loss, accumulation, packing and the metrics stay the parent's, and
weights of 1 give the parent's numbers bit for bit. The weights come as a column of the training data: `weight`, one
number per example, or `loss_weights`, one per token (which survives `trl.pack_dataset`).

TRL loses such a column silently in two places, its list of known columns and its packing; here both raise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import DataLoader, Sampler
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer
from trl.trainer.utils import pad

from alignkeep.errors import DataError, RecipeError, ShapeError
from alignkeep.train.order import ExampleOrder

PER_TOKEN = "loss_weights"
PER_EXAMPLE = "weight"


class WeightedCollator(DataCollatorForLanguageModeling):
    """TRL's collator, which also pads (with 0) or flattens the weights into `loss_weights`, shaped as `input_ids`."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        weights = [torch.tensor(_token_weights(example), dtype=torch.float32) for example in examples]
        batch = super().torch_call(examples)
        if self.padding_free:
            weights = [torch.cat(weights)]
        batch[PER_TOKEN] = pad(
            weights, padding_value=0, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of
        )
        return batch


class WeightedSFTTrainer(SFTTrainer):
    """`trl.SFTTrainer` for data with a column `weight` or `loss_weights`; the constructor is the parent's.

    Under several processes the last batch of an epoch is filled up with blank rows (no answer, weight 0) instead of
    examples seen already, so that two processes learn what one does. `train_sampling_strategy="group_by_length"` is the
    grouping of train/order.py: it resumes exactly and is the same for any number of processes. Raises DataError where
    the weights are lost on the way, RecipeError for settings whose loss never passes the weighted log-probabilities.
    (The router loss of a mixture of experts is a mean per process, as in TRL: there two processes differ from one.)
    """

    args: Any  # SFTConfig: the base classes promise less

    def get_train_dataloader(self) -> DataLoader:
        self._refuse_unweighted_losses()
        self._carry_weights(self.train_dataset)
        if self.args.world_size > 1 and self.args.train_sampling_strategy in ("random", "group_by_length"):
            self._fill_last_batch()
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        named: Any = self.eval_dataset
        if isinstance(eval_dataset, str):
            self._carry_weights(named[eval_dataset])
        else:
            self._carry_weights(named if eval_dataset is None else eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if PER_TOKEN not in inputs:
            raise _lost(f"a batch with {', '.join(inputs)}", "leave the trainer's collator as it is")
        weights = inputs.pop(PER_TOKEN)[:, 1:]

        def weighted(**arguments: Any) -> Any:
            outputs = model(**arguments)
            if arguments.get("fused_lm_head"):
                if outputs.log_probs.shape != weights.shape:
                    raise ShapeError(
                        "loss_weights",
                        seen=f"{tuple(weights.shape)} weights for {tuple(outputs.log_probs.shape)} tokens",
                        expected="one weight per token",
                        remedy="switch off prompt learning and context parallelism",
                    )
                outputs.log_probs = outputs.log_probs * weights.to(outputs.log_probs.dtype)
            return outputs

        stand_in: Any = weighted  # the parent only calls its model
        return super().compute_loss(stand_in, inputs, return_outputs, num_items_in_batch)

    def _set_signature_columns_if_needed(self) -> None:
        # The first silent place: the parent keeps input_ids, labels and seq_lengths, and drops the rest.
        super()._set_signature_columns_if_needed()
        known = self._signature_columns or []
        self._signature_columns = [*known, *({PER_TOKEN, PER_EXAMPLE} - set(known))]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        blanks = getattr(self, "_blanks", 0)
        grouped = self.args.train_sampling_strategy == "group_by_length" and isinstance(dataset, Dataset)
        if not (blanks or grouped):
            return super()._get_train_sampler(train_dataset)
        rows = len(dataset) - blanks
        lengths = [len(ids) for ids in dataset["input_ids"]] if grouped else None
        batch = self.args.per_device_train_batch_size * self.args.world_size
        return ExampleOrder(rows, self.args.data_seed, lengths=lengths, batch=batch, blanks=blanks)

    def _carry_weights(self, dataset: Any) -> None:
        """Make sure that the weights are in the data and that a collator takes them along."""
        columns = getattr(dataset, "column_names", None) or []
        if PER_TOKEN not in columns and PER_EXAMPLE not in columns:
            # The second silent place: TRL's own packing selects input_ids and labels.
            remedy = (
                "tokenise first and pack with trl.pack_dataset and loss_weights, since TRL's packing drops the column"
                if self.args.packing
                else "add it (1.0 everywhere for plain tuning)"
            )
            raise _lost(f"data with {', '.join(columns) or 'no columns'}", remedy)
        collator = self.data_collator
        if isinstance(collator, WeightedCollator):
            return
        if type(collator) is not DataCollatorForLanguageModeling:
            raise _lost(f"the collator {type(collator).__name__}", "derive it from alignkeep.train.WeightedCollator")
        self.data_collator = WeightedCollator(**vars(collator))

    def _refuse_unweighted_losses(self) -> None:
        """Each of these computes a loss that the weights do not reach."""
        parallel = self.accelerator.parallelism_config
        found = {
            f"loss_type={self.args.loss_type}": self.args.loss_type != "nll",
            "label_smoothing_factor": self.args.label_smoothing_factor > 0,
            "compute_loss_func": self.compute_loss_func is not None,
            "sequence parallelism": parallel is not None and (parallel.sp_enabled or parallel.cp_enabled),
        }
        for name, is_on in found.items():
            if is_on:
                raise RecipeError(
                    "train.trainer",
                    seen=name,
                    expected="the plain token loss, which the example weights multiply",
                    remedy="remove the setting",
                )

    def _fill_last_batch(self) -> None:
        rows: Any = self.train_dataset
        batch = self.args.per_device_train_batch_size * self.args.world_size
        if hasattr(self, "_blanks") or not isinstance(rows, Dataset):
            return
        self._blanks = -len(rows) % batch
        if self._blanks:
            blank = {name: [_blank(name, feature)] * self._blanks for name, feature in rows.features.items()}
            self.train_dataset = concatenate_datasets([rows, Dataset.from_dict(blank, features=rows.features)])


def _token_weights(example: Mapping[str, Any]) -> list[float]:
    if PER_TOKEN in example:
        return example[PER_TOKEN]
    if PER_EXAMPLE in example:
        return [example[PER_EXAMPLE]] * len(example["input_ids"])
    raise _lost(f"an example with {', '.join(example)}", "give every example its weight")


def _blank(name: str, feature: Any) -> object:
    """One padding token without a label: it costs a forward pass of one token and adds exactly 0 to loss and count."""
    values = {"input_ids": [0], "labels": [-100], PER_TOKEN: [0.0], PER_EXAMPLE: 0.0, "seq_lengths": [1]}
    return values.get(name)


def _lost(seen: str, remedy: str) -> DataError:
    return DataError("example weights", seen=seen, expected=f"a column `{PER_EXAMPLE}` or `{PER_TOKEN}`", remedy=remedy)
