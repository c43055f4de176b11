"""Online alignment that imitates, explores and transcends (GRAO): thin over TRL's GRPOTrainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkeep.rooms import open_room

if TYPE_CHECKING:
    from alignkeep.align.config import AlignConfig as AlignConfig
    from alignkeep.align.config import RewardSettings as RewardSettings
    from alignkeep.align.grao_config import GRAOConfig as GRAOConfig
    from alignkeep.align.reward import PairwiseReward as PairwiseReward
    from alignkeep.align.stage import AlignResult as AlignResult
    from alignkeep.align.trainer import GRAOTrainer as GRAOTrainer
    from alignkeep.judging.pairs import Comparison as Comparison
    from alignkeep.judging.pairs import PairJudge as PairJudge

open_room(
    __name__,
    public={
        "AlignConfig": "config",
        "AlignResult": "stage",
        "Comparison": "reward",
        "GRAOConfig": "grao_config",
        "GRAOTrainer": "trainer",
        "PairJudge": "reward",
        "PairwiseReward": "reward",
        "RewardSettings": "config",
    },
)
