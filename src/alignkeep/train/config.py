"""What a tune is: the settings of `alignkeep train`, the recipe's `train:` and the Python call."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from alignkeep.errors import NoEffectError
from alignkeep.models.config import LoadConfig
from alignkeep.settings import Checked
from alignkeep.trainers.config import LoraSettings


class EmphasisSettings(Checked):
    """How much more the overlap counts where the update, or the base's weight with it, is large (the paper's eta)."""

    beta: float = Field(default=4.0, ge=0, le=1e6)
    tau: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    compares: Literal["update", "relative", "weight"] = "update"


class AlignGuardSettings(Checked):
    """How strongly alignment is kept (AlignGuard-LoRA).

    `data` are examples of the base's alignment: harmful prompts with its own refusals, and harmless ones with its
    answers. `alignment`, `trust` and `collision` are the strengths of the paper's three terms (lambda_A, lambda_T,
    lambda_NC), sums over entries; `overlap` is the share of E_RM against E_geo in the third (alpha). `side`, `fisher`,
    `share` and `most` say what the subspace is: of inputs, outputs or both; whole or its diagonal; holding this share
    of the trace, with at most so many directions; `unit` is the largest eigenvalue that Fisher factors are divided by:
    each matrix's own, or the model's. `curvature` is the trust region's H: none (1 everywhere), or the
    running mean of the task's squared gradients; `metric` what E_geo weighs coordinates by.
    """

    data: str | None = None
    alignment: float = Field(default=0.05, ge=0, le=1e6)
    trust: float = Field(default=0.0, ge=0, le=1e6)
    collision: float = Field(default=0.0, ge=0, le=1e6)
    overlap: float = Field(default=0.5, ge=0, le=1)
    emphasis: EmphasisSettings = EmphasisSettings()
    side: Literal["input", "output", "both"] = "input"
    fisher: Literal["full", "diagonal"] = "full"
    share: float = Field(default=0.9, gt=0, le=1)
    most: int = Field(default=64, gt=0, le=1_000_000_000)
    unit: Literal["matrix", "model"] = "matrix"
    curvature: Literal["none", "running"] = "none"
    metric: Literal["fisher", "curvature"] = "fisher"

    @property
    def is_off(self) -> bool:
        """All strengths 0: plain LoRA, asked for by name."""
        return not (self.alignment or self.trust or self.collision)

    @property
    def measured(self) -> dict[str, Any]:
        """What the subspaces depend on."""
        return {"side": self.side, "fisher": self.fisher, "share": self.share, "most": self.most, "unit": self.unit}

    @classmethod
    def published(cls, data: str | None = None) -> AlignGuardSettings:
        """The constants that reviews of the paper name."""
        return cls(data=data, alignment=0.25, trust=0.5, collision=0.1, overlap=0.5, curvature="running")

    @model_validator(mode="after")
    def _acts(self) -> AlignGuardSettings:
        if self.fisher == "diagonal" and self.collision:
            raise NoEffectError(
                "alignguard.collision",
                seen=f"{self.collision:g} with fisher: diagonal",
                expected="a full Fisher: under a mask of coordinates both collision terms are 0 for every update",
                remedy="set fisher: full, or collision: 0",
            )
        weighs = self.collision > 0 and self.overlap < 1 and self.metric == "curvature"
        if self.metric == "curvature" and not weighs:
            raise NoEffectError(
                "alignguard.metric",
                seen=f"curvature with collision {self.collision:g} and overlap {self.overlap:g}",
                expected="an E_geo term for it to weigh",
                remedy="set collision above 0 and overlap below 1, or metric: fisher",
            )
        if self.curvature == "running" and not (self.trust or weighs):
            raise NoEffectError(
                "alignguard.curvature",
                seen="running with trust 0",
                expected="a term for it to weigh",
                remedy="set trust above 0, or curvature: none",
            )
        if not self.collision and (self.emphasis != EmphasisSettings() or self.overlap != 0.5):
            raise NoEffectError(
                "alignguard.emphasis" if self.emphasis != EmphasisSettings() else "alignguard.overlap",
                seen="a setting of the collision terms with collision 0",
                expected="a term for it to shape",
                remedy="set collision above 0, or leave it out",
            )
        if self.metric == "curvature" and self.curvature == "none":
            raise NoEffectError(
                "alignguard.metric",
                seen="curvature, of which there is none",
                expected="coordinates that weigh differently: where all are 1, E_geo is 0 for every update",
                remedy="set curvature: running, or metric: fisher",
            )
        return self


class ProbeSettings(Checked):
    """A look at safety every `every` steps (train/probe.py): files of prompts that the model refuses before the tune,
    and of harmless ones, of which 32 each are asked. `stop_below` ends the tune once the log-odds of refusal have
    fallen by more than so many nats, with the weights of the last look that was within; `refusals` are openings of
    refusals, in place of those read off the model.
    """

    harmful: str = Field(min_length=1)
    harmless: str = Field(min_length=1)
    every: int = Field(default=50, gt=0, le=1_000_000_000)
    stop_below: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    refusals: tuple[str, ...] = ()


class TrainConfig(Checked):
    """One supervised tune.

    `batch_size` counts examples per forward pass over *all* processes, `accumulate` forward passes per step, so the
    number of processes changes nothing but the time. `learning_rate` None is 2e-5 for full and 2e-4 otherwise.
    `alignguard` is looked at by the method of that name, which is LoRA with penalties.
    `group_by_length` lets examples of like length share a batch, so that little is padded (train/order.py; nothing to
    do where examples are packed).
    `weights` is a folder holding `weights.parquet`, or such a file (.parquet, .jsonl, ...), with `index`, `weight` and
    optionally `kept`. `trainer` takes any other field of `trl.SFTConfig` (`packing`, `warmup_steps`, `save_steps`,
    `max_steps`, `report_to`, ...).
    """

    # Four fields more than our budget of 12: each is a word of the command line, or a group of settings.
    model: str = Field(min_length=1)
    data: str = Field(min_length=1)
    method: Literal["full", "lora", "alignguard"] = "lora"
    weights: str | None = None
    lora: LoraSettings = LoraSettings()
    alignguard: AlignGuardSettings = AlignGuardSettings()
    probe: ProbeSettings | None = None
    learning_rate: float | None = Field(default=None, ge=0, le=1e38)
    epochs: float = Field(default=1, gt=0, le=1_000_000)
    batch_size: int = Field(default=16, gt=0, le=1_000_000_000)
    accumulate: int = Field(default=1, gt=0, le=1_000_000_000)
    max_length: int = Field(default=1024, gt=1, le=1_000_000_000)
    group_by_length: bool = True
    load: LoadConfig = LoadConfig()
    trainer: dict[str, Any] = Field(default_factory=dict)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _acts(self) -> TrainConfig:
        """Raises NoEffectError for settings of a method that is not taken: a guard that was only half asked for."""
        if self.method != "alignguard" and self.alignguard != AlignGuardSettings():
            raise NoEffectError(
                "train.alignguard", seen=f"settings of alignguard with method {self.method}",
                expected="method alignguard for them",
                remedy="give --method alignguard, or leave them out (--set train.alignguard={})",
            )  # fmt: skip
        return self

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained, and not the model itself."""
        return self.method != "full"

    @property
    def is_guarded(self) -> bool:
        """Whether penalties are added. With all strengths 0 it is plain LoRA, asked for by name."""
        return self.method == "alignguard" and not self.alignguard.is_off

    @property
    def rate(self) -> float:
        """The learning rate that is used."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 2e-5 if self.method == "full" else 2e-4
