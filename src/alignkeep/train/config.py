"""What a tune is: the settings of `alignkeep train`, the recipe's `train:` and the Python call."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from alignkeep.models.config import LoadConfig


class LoraSettings(BaseModel):
    """A low-rank adapter: each targeted matrix gains alpha / rank * B A, B starting at 0.

    `target_modules` is "all-linear" (every linear layer but the head, as PEFT understands it) or a list of module
    names, whole or the last part; each of them has to match something.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=8, gt=0)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[str] = "all-linear"


class TrainConfig(BaseModel):
    """One supervised tune.

    `batch_size` counts examples per forward pass over *all* processes, `accumulate` forward passes per step, so the
    number of processes changes nothing but the time. `learning_rate` None is 2e-4 for lora and 2e-5 for full.
    `weights` is a folder holding `weights.parquet`, or such a file (.parquet, .jsonl, ...), with `index`, `weight` and
    optionally `kept`. `trainer` takes any other field of `trl.SFTConfig` (`packing`, `warmup_steps`, `save_steps`,
    `max_steps`, `report_to`, ...).
    """

    # One field more than our budget of 12: each is a word of the command line.
    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1)
    data: str = Field(min_length=1)
    method: Literal["full", "lora"] = "lora"
    weights: str | None = None
    lora: LoraSettings = LoraSettings()
    learning_rate: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    epochs: float = Field(default=1, gt=0, allow_inf_nan=False)
    batch_size: int = Field(default=16, gt=0)
    accumulate: int = Field(default=1, gt=0)
    max_length: int = Field(default=1024, gt=1)
    load: LoadConfig = LoadConfig()
    trainer: dict[str, Any] = Field(default_factory=dict)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @property
    def rate(self) -> float:
        """The learning rate that is used."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 2e-4 if self.method == "lora" else 2e-5
