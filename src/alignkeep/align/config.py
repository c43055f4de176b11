"""What an alignment is: the settings of `alignkeep align`, the recipe's `align:` and the Python call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from alignkeep.errors import NoEffectError
from alignkeep.formats import Columns
from alignkeep.models.config import LoadConfig, checked_body
from alignkeep.settings import Checked
from alignkeep.trainers.config import LoraSettings


class RewardSettings(Checked):
    """What tells a better answer from a worse one.

    `spec` is `package.module:object` (a reward function of TRL's, or an object with `compare`), `judge:MODEL` or
    `judge:https://host/v1#model` (a chat model that compares answer and reference by `criterion`), `scorer:MODEL` (a
    reward model, of which the sign of answer minus reference counts), or `testbed`. `both_orders` asks a judge twice;
    scores of a scorer that differ by at most `tie_margin` are a tie. `retries`, `timeout` (seconds) and `concurrency`
    are for an endpoint, `max_tokens` is the longest judgement. `body` has more fields of an endpoint's requests; null
    takes one out: `{max_tokens: null, max_completion_tokens: 2000, temperature: null}`.
    """

    spec: str = Field(min_length=1)
    criterion: Literal["helpful", "harmless"] = "helpful"
    both_orders: bool = False
    tie_margin: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max_tokens: int = Field(default=256, gt=0, le=1_000_000_000)
    timeout: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    retries: int = Field(default=4, ge=0, le=1_000_000_000)
    concurrency: int = Field(default=8, gt=0, le=1_000_000_000)
    body: dict[str, Any] = Field(default_factory=dict)

    @field_validator("body")
    @classmethod
    def _ours(cls, body: dict[str, Any]) -> dict[str, Any]:
        return checked_body(body, "the judge")

    @model_validator(mode="after")
    def _acts(self) -> RewardSettings:
        """Raises NoEffectError for a setting that this reward does not read."""
        kind = self.spec.partition(":")[0]
        is_endpoint = self.spec.startswith(("judge:http://", "judge:https://"))
        read = {"criterion", "both_orders", "max_tokens"} if kind == "judge" else set[str]()
        read |= {"timeout", "retries", "concurrency", "body"} if is_endpoint else set()
        read |= {"tie_margin"} if kind == "scorer" else set()
        for name, field in type(self).model_fields.items():
            if name not in {"spec", *read} and getattr(self, name) != field.get_default(call_default_factory=True):
                raise NoEffectError(
                    f"align.reward.{name}", seen=f"{getattr(self, name)!r} with {self.spec}",
                    expected="a reward that reads it" + (f" ({kind} reads {', '.join(sorted(read))})" if read else ""),
                    remedy="leave it out",
                )  # fmt: skip
        return self


class ObjectiveSettings(Checked):
    """Strengths of GRAO's three terms (beta, 1, lambda of the paper), and how advantages are taken (advantage.py)."""

    imitation: float = Field(default=0.5, ge=0, le=1e6)
    exploration: float = Field(default=1.0, ge=0, le=1e6)
    regulariser: float = Field(default=0.6, ge=0, le=1e6)
    reference_in_group: bool = True
    min_reference_advantage: float | None = Field(default=None, ge=-1e6, le=1e6)
    bounded: bool = False

    @model_validator(mode="after")
    def _acts(self) -> ObjectiveSettings:
        if not (self.imitation or self.exploration or self.regulariser):
            raise NoEffectError(
                "align.objective",
                seen="imitation, exploration and regulariser all 0",
                expected="a term to learn from",
                remedy="set one of them",
            )
        return self


class SamplingSettings(Checked):
    """How answers are sampled: `group` of them for every prompt."""

    group: int = Field(default=8, ge=2, le=1_000_000_000)
    temperature: float = Field(default=0.7, gt=0, allow_inf_nan=False)
    max_new_tokens: int = Field(default=2048, gt=0, le=1_000_000_000)


class HeldOutSettings(Checked):
    """Prompts with references that are not learned from; `limit` of them are answered (greedily) before the first step,
    every `every` steps and at the end."""

    data: str = Field(min_length=1)
    every: int = Field(default=50, gt=0, le=1_000_000_000)
    limit: int = Field(default=200, gt=0, le=1_000_000_000)


class AlignConfig(Checked):
    """One alignment.

    `batch_size` counts prompts per step over *all* processes, each with its group of samples; `accumulate` says in how
    many forward passes a step is done. `lora` null trains the whole model. `learning_rate` None is the paper's 1e-6 for
    a whole model and 1e-5 for an adapter. `method: grpo` is TRL's own, for comparison. `trainer` takes any other field
    of trl's GRPOConfig (`use_vllm`, `max_steps`, `warmup_steps`, `save_steps`, ...). `columns` says what our columns
    are called in `data` and `held_out.data` (`prompt=question,reference=answer`).
    """

    also: ClassVar[Mapping[str, str]] = {"max_steps": "trainer.max_steps", "lora_rank": "lora.rank"}

    # Four fields more than our budget of 12: each is a word of the command line, or a group of settings.
    model: str = Field(min_length=1)
    data: str = Field(min_length=1)
    columns: Columns = Field(default_factory=dict)
    reward: RewardSettings
    method: Literal["grao", "grpo"] = "grao"
    objective: ObjectiveSettings = ObjectiveSettings()
    sampling: SamplingSettings = SamplingSettings()
    held_out: HeldOutSettings | None = None
    lora: LoraSettings | None = LoraSettings()
    learning_rate: float | None = Field(default=None, ge=0, le=1e38)
    epochs: float = Field(default=1, gt=0, le=1_000_000)
    batch_size: int = Field(default=8, gt=0, le=1_000_000_000)
    accumulate: int = Field(default=1, gt=0, le=1_000_000_000)
    load: LoadConfig = LoadConfig()
    trainer: dict[str, Any] = Field(default_factory=dict)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _acts(self) -> AlignConfig:
        if self.method == "grpo" and self.objective != ObjectiveSettings():
            raise NoEffectError(
                "align.objective", seen="strengths of GRAO's terms with method grpo", expected="method grao for them",
                remedy="leave them out, or take grao",
            )  # fmt: skip
        return self

    @property
    def rate(self) -> float:
        """The learning rate that is used."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-6 if self.lora is None else 1e-5

    @field_validator("reward", mode="before")
    @classmethod
    def _named(cls, reward: object) -> object:
        """`reward: testbed` is short for `reward: {spec: testbed}`."""
        return {"spec": reward} if isinstance(reward, str) else reward
