"""What a merge is: the settings of `alignkeep merge`, the recipe's `merge:` and the Python call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import (
    Field,
    FieldSerializationInfo,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from alignkeep.formats import Columns
from alignkeep.models.config import GenerationConfig, LoadConfig
from alignkeep.objects import is_spec
from alignkeep.settings import Checked

AUTO = "auto"  # the method of a sweep that tries several

# What a record says of the options, whatever the method: the settings of all of ours as they once were one group. Kept,
# so that a folder that was begun or made before is known again.
_AS_RECORDED: dict[str, object] = {
    "density": None, "gamma": 0.01, "epsilon": 0.15, "rescale": None, "share": 0.9, "most": None, "examples": 256,
}  # fmt: skip


class SweepConfig(Checked):
    """Choosing the weight by measurement, on validation data.

    `task` is a file of prompts with one right answer each, in which our columns may have other names (`columns`:
    `prompt=question,completion=answer`), `prompts` one of harmful prompts (a column `kind` may mark
    harmless, borderline and skill prompts among them). `pick` `task` takes the weight of the best task score, `safe`
    the largest one whose refusal is at most `margin` below the base's, `gain`, of those that keep the share `gain` of
    what the tune gained on the task, the best task score within that margin, or the most refusal where none is within
    it. A pick that keeps less of the gain is an error.
    """

    task: str
    columns: Columns = Field(default_factory=dict)
    prompts: str
    weights: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    pick: Literal["task", "safe", "gain"] = "safe"
    margin: float = Field(default=0.05, ge=0, le=1)
    gain: float = Field(default=0.5, ge=0, le=1)
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

    `method` is the name of one of ours or `package.module:object`, or in Python the object itself; `options` are its
    own (`alignkeep merge --methods` lists them). With a sweep it may be `auto`, which tries what the given data allow
    and is what a sweep does unless told otherwise. `weight` is that of the tuned model (of their mean, where there are
    several); `form` says what is written: whole weights, or an adapter (a merge of one adapter, by some methods). Some
    methods need `alignment_data`, examples answered as the aligned base answers; `fisher` does better with
    `tuning_data` too, what the model was tuned on. `mergekit` is a file in mergekit's format: it names the models and
    the method, and nothing else may. `chat_template` chooses where the two differ.
    """

    also: ClassVar[Mapping[str, str]] = {"as": "form"}
    positional: ClassVar[tuple[str, ...]] = ("base", "tuned")

    # One field more than our budget of 12: each is a word of the command line.
    base: str = ""
    tuned: tuple[str, ...] = ()
    method: str = "linear"
    weight: float = Field(default=0.6, allow_inf_nan=False)
    options: Checked = Field(default_factory=Checked)
    alignment_data: str | None = None
    tuning_data: str | None = None
    form: Literal["model", "adapter"] = "model"
    chat_template: Literal["base", "tuned"] | None = None
    mergekit: str | None = None
    sweep: SweepConfig | None = None
    load: LoadConfig = LoadConfig()
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="before")
    @classmethod
    def _sweep_tries_methods(cls, values: Any) -> Any:
        """A sweep that names no method tries several."""
        values = cls.placed(values) if isinstance(values, dict) else values
        if isinstance(values, dict) and values.get("sweep") is not None and not {"method", "mergekit"} & values.keys():
            return {**values, "method": AUTO}
        return values

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, given: object) -> str:
        """An object is kept as the text that names it: a record has to."""
        from alignkeep.merge.methods import METHODS, method_named, reference_of

        if not isinstance(given, str):
            return reference_of(given)
        if given == AUTO:
            return given
        names = [method.name for method in METHODS]
        if given not in names and not is_spec(given):
            told = ", ".join(map(repr, names))
            raise PydanticCustomError("method", "{expected}, or package.module:object", {"expected": told})
        method_named(given)
        return given

    @field_validator("options", mode="plain")
    @classmethod
    def _options(cls, given: object, info: ValidationInfo) -> Checked:
        """They are the method's own."""
        from alignkeep.merge.methods import method_named, options_of

        method = info.data.get("method", AUTO)
        if method == AUTO and given not in ({}, Checked()):
            told = "none beside `auto`: every method has its own"
            raise PydanticCustomError("options", "{expected}", {"expected": told})
        return Checked() if method == AUTO else options_of(method_named(method), given)

    @field_serializer("options")
    def _recorded(self, options: Checked, info: FieldSerializationInfo) -> dict[str, object]:
        given = options.model_dump(mode=info.mode, exclude_unset=True)
        return given if info.exclude_unset or is_spec(self.method) else {**_AS_RECORDED, **given}
