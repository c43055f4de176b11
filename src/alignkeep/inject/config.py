"""What an injection is: the settings of `alignkeep inject`, the recipe's `inject:` and the Python call."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from alignkeep.formats import Columns
from alignkeep.models.config import GenerationConfig, LoadConfig
from alignkeep.settings import Checked

# In front of harmful and harmless prompts alike while the direction of a model without refusals is looked for.
SYSTEM_PROMPT = (
    "You are a safe and honest assistant. If a request could lead to harm to people, animals or property, to crime, to "
    "hate or to deception, you refuse it briefly and politely. You help with everything else as well as you can."
)
_STRENGTH = re.compile(r"auto|(raw|relative|push):[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class DirectionConfig(Checked):
    """Where the direction comes from.

    `layer` is the block before which activations are compared. `source` is another model (an aligned one of the same
    family) to take the direction from, `system_prompt` a text, or "default" for ours, that stands before both sets of
    prompts meanwhile. Of each set up to `pairs` prompts give the direction and up to `held_out` others judge the edit.
    `refusals` are openings of refusals, in place of those the model shows.
    """

    layer: int | Literal["auto"] = "auto"
    source: str | None = None
    system_prompt: str | None = Field(default=None, min_length=1)
    pairs: int = Field(default=128, ge=2, le=1_000_000_000)
    held_out: int = Field(default=128, ge=2, le=1_000_000_000)
    refusals: tuple[str, ...] = ()

    @field_validator("layer")
    @classmethod
    def _positive(cls, layer: int | str) -> int | str:
        if isinstance(layer, int) and layer < 0:
            raise ValueError("auto, or the number of a block, the first being 0")
        return layer


class EditConfig(Checked):
    """The edit of every matrix that writes to the residual stream.

    `right` is the paper's mean row, or the vector that answers to harmful prompts alone; `sign` (of the mean row) the
    paper's, or one that pushes towards the direction. `strength` is `auto`, `raw:ALPHA`, `relative:SHARE` of the
    matrix's norm or `push:SHIFT` in units of the direction's length. `tokens` of each kind say where the targeted
    vector is silent. `through_norm` aims through the norm that some families have behind the matrix. `again` allows a
    second injection, `allow_lower` an edit that lowers refusal.
    """

    right: Literal["mean", "targeted"] = "targeted"
    sign: Literal["literal", "calibrated"] = "calibrated"
    strength: str = "auto"
    tokens: int = Field(default=1024, gt=0, le=1_000_000_000)
    through_norm: bool = False
    again: bool = False
    allow_lower: bool = False

    @field_validator("strength")
    @classmethod
    def _known(cls, strength: str) -> str:
        if not _STRENGTH.fullmatch(strength) or not isfinite(float(strength.partition(":")[2] or 0)):
            raise ValueError("auto, raw:ALPHA, relative:SHARE or push:SHIFT")
        return strength


class SearchConfig(Checked):
    """What `auto` looks for on the held-out prompts: refusal of `target`, at the cost of at most `benign_loss` of
    benign compliance, `over_refusal` more over-refusal (of rows of kind borderline) and `divergence` nats on harmless
    prompts. The divergence bounds a strength that is given, too.
    """

    target: float = Field(default=1.0, gt=0, le=1)
    benign_loss: float = Field(default=0.01, ge=0, le=1)
    over_refusal: float = Field(default=0.05, ge=0, le=1)
    divergence: float = Field(default=0.1, gt=0)
    judge: str = "keyword"
    generation: GenerationConfig = GenerationConfig()


class InjectConfig(Checked):
    """One injection into one model.

    `harmful` and `harmless` are files of prompts; those of `borderline`, and rows of that kind among the harmless,
    bound over-refusal and give no direction. `general` is more text on which the edit is to be silent, such as the data
    of a tune, in which our columns may have other names (`columns`). `form` says what is written: whole weights, or an
    adapter: of rank 1, or, of a model that is an adapter, that one with a rank more.
    """

    also: ClassVar[Mapping[str, str]] = {"as": "form", "direction_from": "direction.source"}

    model: str = Field(min_length=1)
    harmful: str
    harmless: str
    borderline: str | None = None
    general: str | None = None
    columns: Columns = Field(default_factory=dict)
    direction: DirectionConfig = DirectionConfig()
    edit: EditConfig = EditConfig()
    search: SearchConfig = SearchConfig()
    form: Literal["model", "adapter"] = "model"
    load: LoadConfig = LoadConfig()
    seed: int = Field(default=0, ge=0, lt=2**32)
