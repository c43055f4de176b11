"""Tuning, in full, with LoRA, or with LoRA that keeps what alignment rests on: thin over TRL's SFTTrainer and PEFT."""

from alignkeep.rooms import open_room

open_room(
    __name__,
    public={
        "AlignGuard": "align_guard",
        "AlignGuardConfig": "guarded_sft",
        "AlignGuardSFTTrainer": "guarded_sft",
        "AlignGuardSettings": "config",
        "LoraSettings": "config",
        "SafetyProbe": "probe",
        "TrainConfig": "config",
        "TrainResult": "stage",
        "WeightedCollator": "trainer",
        "WeightedSFTTrainer": "trainer",
    },
)
