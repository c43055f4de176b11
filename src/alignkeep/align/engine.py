"""TRL's GRPOTrainer where it would go astray: continued runs, silent judges, and bases under vLLM.

1. TRL's sampler draws every epoch's order from one generator, of which a checkpoint keeps nothing: continued in its
   second epoch, a run would meet the prompts in the order of the first.
2. A batch of which nothing could be scored is a warning there, and a step that teaches nothing.
3. With vLLM an adapter's base is worn at every synchronisation (align/sync.py).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Sampler
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from alignkeep.errors import MachineError


class EpochOrder(RepeatSampler):
    """TRL's sampler, whose order depends on seed and epoch alone; the first epoch's is TRL's own."""

    def set_epoch(self, epoch: int) -> None:
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)


class CarefulGRPOTrainer(GRPOTrainer):
    """`trl.GRPOTrainer`, continued where it was. Raises MachineError where no sample of a batch could be scored."""

    def get_train_dataloader(self) -> Any:
        if self.use_vllm:
            from alignkeep.align.sync import keep_base_exact

            keep_base_exact(self)
        return super().get_train_dataloader()

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        sampler = super()._get_train_sampler(dataset)
        if type(sampler) is RepeatSampler:
            sampler.__class__ = EpochOrder  # of the parent's own arguments
        return sampler

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        scores = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._refuse_unscored(scores)
        return scores

    def _refuse_unscored(self, scores: Tensor) -> None:
        if bool(scores.isnan().all()):
            raise MachineError(
                f"align, step {self.state.global_step}",
                seen=f"a batch of {scores.shape[0]} samples of which none could be scored",
                expected="a reward for some of them",
                remedy="see to the judge or reward function; what was learned so far is kept",
            )
