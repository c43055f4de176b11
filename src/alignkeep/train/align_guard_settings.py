"""What AlignGuard is told: its strengths, and what the subspace is that it keeps."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from alignkeep.errors import NoEffectError
from alignkeep.settings import Checked


class EmphasisSettings(Checked):
    """How much more the overlap counts where the update, or the base's weight with it, is large (the paper's eta)."""

    beta: float = Field(default=4.0, ge=0, le=1e6)
    tau: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    compares: Literal["update", "relative", "weight"] = "update"


class AlignGuardSettings(Checked):
    """How strongly alignment is kept (AlignGuard-LoRA).

    `data` are examples of the base's alignment: harmful prompts with its own refusals, and harmless ones with its
    answers. `alignment`, `trust` and `collision` are the strengths of the paper's three terms (lambda_A, lambda_T,
    lambda_NC), sums over entries; `overlap` is the share of E_RM against E_geo in the third (alpha), and `emphasis`
    what E_RM weighs entries by. `side`, `fisher`, `share` and `most` say what the subspace is: of inputs, outputs or
    both; whole or its diagonal; holding this share of the trace, with at most so many directions; `unit` is the largest
    eigenvalue that Fisher factors are divided by: each matrix's own, or the model's. `curvature` is the trust region's
    H: none (1 everywhere), or the running mean of the task's squared gradients; `metric` what E_geo weighs coordinates
    by.
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
