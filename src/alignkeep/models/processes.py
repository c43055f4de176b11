"""Several processes of one launch (torchrun, accelerate) that divide examples among themselves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process is number `rank` of `count`; alone it is 0 of 1."""

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls, *, cpu: bool) -> Processes:
        """Those of the launch, with the group they talk in opened; one where nothing launched several."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=cpu)
        return cls(state.process_index, state.num_processes)

    def share(self, size: int) -> slice:
        """This one's part of `size` rows."""
        return slice(self.rank * size // self.count, (self.rank + 1) * size // self.count)

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def total(self, vector: Tensor) -> Tensor:
        """The sum over all."""
        if self.count == 1:
            return vector
        import torch.distributed as dist
        from accelerate import PartialState

        shared = vector.to(PartialState().device, copy=True)
        dist.all_reduce(shared)
        return shared.to(vector.device)
