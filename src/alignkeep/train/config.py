"""What a tune is: the settings of `alignkeep train`, the recipe's `train:` and the Python call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from alignkeep.errors import NoEffectError, RecipeError
from alignkeep.formats import Columns
from alignkeep.models.config import LoadConfig
from alignkeep.settings import Checked
from alignkeep.train.align_guard_settings import AlignGuardSettings as AlignGuardSettings
from alignkeep.train.align_guard_settings import EmphasisSettings as EmphasisSettings
from alignkeep.train.defences import Chosen, choose, expected, is_known
from alignkeep.trainers.config import LoraSettings

_TRAINED = ("full", "lora")


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
    `method` is what is trained, `full` or `lora`, or a defence beside LoRA: its name, or `package.module:object`.
    `defence` holds its options, and beside `full` its `name` too; those of AlignGuard may stand in `alignguard`.
    `group_by_length` lets examples of like length share a batch, so that little is padded (train/order.py; nothing to
    do where examples are packed).
    `weights` is a folder holding `weights.parquet`, or such a file (.parquet, .jsonl, ...), with `index`, `weight` and
    optionally `kept`. `columns` says what our columns are called in `data` (`prompt=question,completion=answer`). An
    example whose answer only begins beyond `max_length` is `too_long`: it is left out (drop), its last tokens are taken
    (cut), or it ends the tune before it begins (refuse). `trainer` takes any other field of `trl.SFTConfig` (`packing`,
    `warmup_steps`, `save_steps`, `max_steps`, `report_to`, ...).
    """

    also: ClassVar[Mapping[str, str]] = {
        "alignment_data": "defence.data", "max_steps": "trainer.max_steps", "lora_rank": "lora.rank",
    }  # fmt: skip

    # Seven fields more than our budget of 12: each is a word of the command line, or a group of settings.
    model: str = Field(min_length=1)
    data: str = Field(min_length=1)
    columns: Columns = Field(default_factory=dict)
    method: str = "lora"
    weights: str | None = None
    lora: LoraSettings = LoraSettings()
    alignguard: AlignGuardSettings = AlignGuardSettings()
    # Left out of a record where there is none: tunes without one are what they were.
    defence: dict[str, Any] = Field(default_factory=dict, exclude_if=lambda options: not options)
    probe: ProbeSettings | None = None
    learning_rate: float | None = Field(default=None, ge=0, le=1e38)
    epochs: float = Field(default=1, gt=0, le=1_000_000)
    batch_size: int = Field(default=16, gt=0, le=1_000_000_000)
    accumulate: int = Field(default=1, gt=0, le=1_000_000_000)
    max_length: int = Field(default=1024, gt=1, le=1_000_000_000)
    too_long: Literal["drop", "cut", "refuse"] = "drop"
    group_by_length: bool = False
    load: LoadConfig = LoadConfig()
    trainer: dict[str, Any] = Field(default_factory=dict)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="before")
    @classmethod
    def _one_way_to_say_it(cls, values: Any) -> Any:
        """A defence beside LoRA is the method; options stand in the group of its name where there is one."""
        values = cls.placed(values) if isinstance(values, dict) else values
        if not isinstance(values, dict) or not values.get("defence"):
            return values
        given = values["defence"]
        given = given.model_dump(exclude_unset=True) if isinstance(given, BaseModel) else given
        if not isinstance(given, dict):
            return values
        given, values = dict(given), dict(values)
        name, method = given.get("name"), values.get("method", "lora")
        if method != "full" and name is not None:
            if method not in ("lora", name):
                raise RecipeError(
                    "train.defence.name", seen=f"{name!r} with method {method}", expected="one defence",
                    remedy="leave one of them out",
                )  # fmt: skip
            values["method"] = given.pop("name")
        own = values.get("method")
        if isinstance(own, str) and own not in _TRAINED and own in cls.model_fields:
            group = values.get(own) or {}
            group = group.model_dump(exclude_unset=True) if isinstance(group, BaseModel) else group
            given, values[own] = {}, {**group, **given}
        return {**values, "defence": given}

    @field_validator("method")
    @classmethod
    def _is_known(cls, method: str) -> str:
        if method not in _TRAINED and not is_known(method):
            raise PydanticCustomError("method", "{expected}", {"expected": expected(_TRAINED)})
        return method

    @model_validator(mode="after")
    def _acts(self) -> TrainConfig:
        """Raises NoEffectError for options of a defence that is not there, one that was only half asked for, and
        RecipeError for options that do not fit."""
        chosen = self.chosen
        if chosen is None and self.defence:
            raise NoEffectError(
                "train.defence", seen=f"options of a defence ({', '.join(self.defence)}) with method {self.method}",
                expected="a defence for them", remedy="name it (--method, or defence.name), or leave them out",
            )  # fmt: skip
        if self.alignguard != AlignGuardSettings() and (chosen is None or chosen.key != "alignguard"):
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
    def chosen(self) -> Chosen | None:
        """The defence with its options; None for a plain tune."""
        options = dict(self.defence)
        name = options.pop("name", None) if self.method in _TRAINED else self.method
        if name is None:
            return None
        if not is_known(str(name)):
            raise RecipeError("train.defence.name", seen=repr(name), expected=expected(), remedy="name one of these")
        own = getattr(self, name) if name in type(self).model_fields else None
        return choose(name, options if own is None else own.model_dump(), "defence" if own is None else name)

    @property
    def rate(self) -> float:
        """The learning rate that is used."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 2e-5 if self.method == "full" else 2e-4
