"""Online alignment that imitates, explores and transcends (GRAO): thin over TRL's GRPOTrainer."""

from alignkeep.rooms import open_room

open_room(
    __name__,
    public={
        "AlignConfig": "config",
        "AlignResult": "stage",
        "Comparison": "reward",
        "GRAOConfig": "grao_config",
        "GRAOTrainer": "trainer",
        "Judge": "reward",
        "PairwiseReward": "reward",
        "RewardSettings": "config",
    },
)
