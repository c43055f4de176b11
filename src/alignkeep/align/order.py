"""The order of the prompts, the same whether or not a run was interrupted.

TRL's sampler draws every epoch's order from one generator, of which a checkpoint keeps nothing: continued in its second
epoch, a run would meet the prompts in the order of the first.
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import Sampler
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler


class EpochOrder(RepeatSampler):
    """TRL's sampler, whose order depends on seed and epoch alone; the first epoch's is TRL's own."""

    def set_epoch(self, epoch: int) -> None:
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)


class OrderedGRPOTrainer(GRPOTrainer):
    """`trl.GRPOTrainer`, continued where it was."""

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        sampler = super()._get_train_sampler(dataset)
        if type(sampler) is RepeatSampler:
            sampler.__class__ = EpochOrder  # of the parent's own arguments
        return sampler
