"""Plain tuning, full or LoRA, with example weights: thin over TRL's SFTTrainer and PEFT."""

from alignkeep.rooms import open_room

open_room(
    __name__,
    public={
        "LoraSettings": "config",
        "TrainConfig": "config",
        "TrainResult": "stage",
        "WeightedCollator": "trainer",
        "WeightedSFTTrainer": "trainer",
    },
)
