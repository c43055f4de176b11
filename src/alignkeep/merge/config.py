"""What a merge is: the settings of `alignkeep merge`, the recipe's `merge:` and the Python call."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from alignkeep.formats import Columns
from alignkeep.models.config import GenerationConfig, LoadConfig
from alignkeep.settings import Checked

MethodName = Literal[
    "linear", "slerp", "nuslerp", "model_stock", "task_arithmetic", "ties",
    "dare", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "fisher", "alignment_subspace",
]  # fmt: skip
SPACED = ("fisher", "alignment_subspace")  # look at the inputs of every matrix
INTERPOLATIONS = ("linear", "slerp", "nuslerp", "fisher", "alignment_subspace")  # their weight lies in [0, 1]


class MethodOptions(Checked):
    """What single methods want to know beyond the weight; None is the method's own default.

    `density` is the share of a task vector that is kept (dare and della 0.5, breadcrumbs 0.9, ties 0.2), `gamma` the
    share of the largest entries that breadcrumbs drops, `epsilon` the half-width of della's range of probabilities.
    `rescale` makes up for what was dropped: `probability` divides by the share kept, `l1` keeps the sum of magnitudes.
    `share` bounds the alignment subspace: the smallest rank that holds this share of the Fisher's trace. `most` is the
    largest rank kept of a Fisher factor (fisher 32, alignment_subspace 64), `examples` how many of the alignment and of
    the tuning data it is measured on at most, drawn with the seed.
    """

    density: float | None = Field(default=None, ge=0, le=1)
    gamma: float = Field(default=0.01, ge=0, le=1)
    epsilon: float = Field(default=0.15, ge=0, le=1)
    rescale: Literal["none", "probability", "l1"] | None = None
    share: float = Field(default=0.9, gt=0, le=1)
    most: int | None = Field(default=None, gt=0, le=1_000_000_000)
    examples: int = Field(default=256, gt=0, le=1_000_000_000)


class SweepConfig(Checked):
    """Choosing the weight by measurement, on validation data.

    `task` is a file of prompts with one right answer each, in which our columns may have other names (`columns`:
    `prompt=question,completion=answer`), `prompts` one of harmful prompts (a column `kind` may mark
    harmless, borderline and skill prompts among them). `pick` `task` takes the weight of the best task score, `safe`
    the largest one whose refusal is at most `margin` below the base's.
    """

    task: str
    columns: Columns = Field(default_factory=dict)
    prompts: str
    weights: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    pick: Literal["task", "safe"] = "safe"
    margin: float = Field(default=0.05, ge=0, le=1)
    judge: str = "keyword"
    limit: int | None = Field(default=None, gt=0, le=1_000_000_000)
    generation: GenerationConfig = GenerationConfig()

    @field_validator("weights")
    @classmethod
    def _rising(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if len(weights) < 2 or any(not 0 <= weight <= 1 for weight in weights) or len(set(weights)) < len(weights):
            raise ValueError("at least two different weights in [0, 1]")
        return tuple(sorted(weights))


class MergeConfig(Checked):
    """One merge of a base with models tuned from it.

    `weight` is that of the tuned model (of their mean, where there are several); `form` says what is written: whole
    weights, or an adapter (linear, fisher and alignment_subspace merges of one adapter). `fisher` and
    `alignment_subspace` need `alignment_data`, examples answered as the aligned base answers; `fisher` does better with
    `tuning_data` too, what the model was tuned on. `mergekit` is a file in mergekit's format: it names the models and
    the method, and nothing else may. `chat_template` chooses where the two differ.
    """

    # One field more than our budget of 12: each is a word of the command line.
    base: str = ""
    tuned: tuple[str, ...] = ()
    method: MethodName = "linear"
    weight: float = Field(default=0.6, allow_inf_nan=False)
    options: MethodOptions = MethodOptions()
    alignment_data: str | None = None
    tuning_data: str | None = None
    form: Literal["model", "adapter"] = "model"
    chat_template: Literal["base", "tuned"] | None = None
    mergekit: str | None = None
    sweep: SweepConfig | None = None
    load: LoadConfig = LoadConfig()
    seed: int = Field(default=0, ge=0, lt=2**32)
