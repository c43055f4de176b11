"""What is done to a model to see how easily it breaks: `alignkeep tamper` and the recipe's `tamper:`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from alignkeep.formats import Columns
from alignkeep.models.config import GenerationConfig, LoadConfig
from alignkeep.settings import Checked
from alignkeep.trainers.config import LoraSettings


class HarmfulTune(Checked):
    """The tunes: one for every count in `examples`, on so many rows of the harmful data, a larger draw containing the
    smaller ones. `learning_rate` None is 2e-4 for LoRA and 2e-5 for a full tune.

    `epochs` and `batch_size` are those of Qi et al. (arXiv:2310.03693, section 4.1): 10 examples are 5 steps, 100 are
    50.
    """

    method: Literal["lora", "full"] = "lora"
    examples: tuple[int, ...] = (10, 20, 50, 100)
    epochs: float = Field(default=5, gt=0, le=1_000_000)
    batch_size: int = Field(default=10, gt=0, le=1_000_000_000)
    learning_rate: float | None = Field(default=None, gt=0, le=1e38)
    max_length: int = Field(default=1024, gt=1, le=1_000_000_000)
    lora: LoraSettings = LoraSettings()

    @field_validator("examples")
    @classmethod
    def _rising(cls, counts: tuple[int, ...]) -> tuple[int, ...]:
        if not counts or counts[0] < 1 or list(counts) != sorted(set(counts)):
            raise ValueError("whole numbers above 0, rising")
        return counts


class TamperConfig(Checked):
    """One model, and its base where there is one, tampered with in the same ways and asked the same prompts.

    `harmful_data` is a file of harmful prompts that are answered, as `train` reads it (rows whose column `kind` says
    something else than harmful are left aside); without it nothing is tuned. `ablation` takes the refusal direction out
    of the weights. Half of the `suite` is asked, the other half gives that direction. `limit` keeps so many prompts of
    each kind, drawn with `seed`, which also draws the examples. `load.revision` is that of `model`.
    """

    also: ClassVar[Mapping[str, str]] = {"lora_rank": "tune.lora.rank"}

    model: str = Field(min_length=1)
    base: str | None = None
    harmful_data: str | None = None
    columns: Columns = Field(default_factory=dict)
    suite: str = "driftcheck"
    judge: str = "keyword"
    tune: HarmfulTune = HarmfulTune()
    ablation: bool = True
    limit: int | None = Field(default=None, gt=0, le=1_000_000_000)
    load: LoadConfig = LoadConfig()
    generation: GenerationConfig = GenerationConfig()
    seed: int = Field(default=0, ge=0, lt=2**32)
