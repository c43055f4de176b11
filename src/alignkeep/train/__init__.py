"""Tuning, in full, with LoRA, or with LoRA that keeps what alignment rests on: thin over TRL's SFTTrainer and PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkeep.rooms import open_room

if TYPE_CHECKING:
    from alignkeep.train.align_guard import AlignGuard as AlignGuard
    from alignkeep.train.config import AlignGuardSettings as AlignGuardSettings
    from alignkeep.train.config import LoraSettings as LoraSettings
    from alignkeep.train.config import TrainConfig as TrainConfig
    from alignkeep.train.defence import Defence as Defence
    from alignkeep.train.guarded_sft import AlignGuardConfig as AlignGuardConfig
    from alignkeep.train.guarded_sft import AlignGuardSFTTrainer as AlignGuardSFTTrainer
    from alignkeep.train.kl_anchor import KLAnchorSettings as KLAnchorSettings
    from alignkeep.train.loss_terms import Terms as Terms
    from alignkeep.train.loss_terms import add_to_loss as add_to_loss
    from alignkeep.train.probe import SafetyProbe as SafetyProbe
    from alignkeep.train.replay import ReplaySettings as ReplaySettings
    from alignkeep.train.stage import TrainResult as TrainResult
    from alignkeep.train.trainer import WeightedCollator as WeightedCollator
    from alignkeep.train.trainer import WeightedSFTTrainer as WeightedSFTTrainer

open_room(
    __name__,
    public={
        "AlignGuard": "align_guard",
        "AlignGuardConfig": "guarded_sft",
        "AlignGuardSFTTrainer": "guarded_sft",
        "AlignGuardSettings": "config",
        "Defence": "defence",
        "KLAnchorSettings": "kl_anchor",
        "LoraSettings": "config",
        "ReplaySettings": "replay",
        "SafetyProbe": "probe",
        "Terms": "loss_terms",
        "TrainConfig": "config",
        "TrainResult": "stage",
        "WeightedCollator": "trainer",
        "WeightedSFTTrainer": "trainer",
        "add_to_loss": "loss_terms",
    },
)
