"""How a model is loaded and how it answers: the settings every verb that touches a model shares."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from alignkeep.errors import RecipeError
from alignkeep.settings import Checked

DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]
Quantization = Literal["nf4", "fp4"]


class LoadConfig(Checked):
    """Where a model lives and in which numbers.

    `device` "auto" takes cuda, then mps, then cpu. `dtype` "auto" is the checkpoint's own dtype on an accelerator and
    float32 on the CPU, where bfloat16 is slow and an answer can depend on who shares its batch. `template` are
    arguments of the model's chat template (`enable_thinking: false`), for every chat that is written with it.
    `device_map` spreads a model over several devices, as accelerate does; `device` then chooses nothing.
    `quantization` packs the linear layers into 4 bits while they are loaded (bitsandbytes): for answers, for an
    adapter's base in a tune (QLoRA), and for states and gradients, never where weights are changed or written.
    (Not into 8: there an answer depends on who shares its batch.)
    """

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    # Left out of a record where there is none: runs without one are what they were.
    device_map: DeviceMap | None = Field(default=None, exclude_if=lambda name: name is None)
    quantization: Quantization | None = Field(default=None, exclude_if=lambda name: name is None)
    template: dict[str, bool | int | str] = Field(default_factory=dict, exclude_if=lambda arguments: not arguments)

    def refuse_quantization(self, verb: str, remedy: str = "leave it out") -> None:
        """Raises RecipeError where packed weights are asked for by a verb that needs the numbers themselves."""
        if self.quantization is not None:
            raise RecipeError(
                "load.quantization",
                seen=f"{self.quantization}, for {verb}",
                expected="weights as they are stored",
                remedy=remedy,
            )

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ValueError("auto, cpu, mps, cuda or cuda:N")
        return device


class GenerationConfig(Checked):
    """Greedy generation: how long an answer may get, how many prompts share a batch, which engine runs.

    `thinking_tokens` is the longest thought of a model that thinks: a thought that is longer is closed there, and the
    answer behind it has `max_new_tokens` of its own. Without it a thought is a part of the answer.
    """

    max_new_tokens: int = Field(default=256, gt=0, le=1_000_000_000)
    batch_size: int = Field(default=32, gt=0, le=1_000_000_000)
    backend: Literal["transformers", "vllm"] = "transformers"
    # Left out of a record where they are not given.
    vllm: dict[str, Any] = Field(default_factory=dict, exclude_if=lambda arguments: not arguments)
    thinking_tokens: int | None = Field(default=None, gt=0, le=1_000_000_000, exclude_if=lambda most: most is None)

    @model_validator(mode="after")
    def _vllm_reads_them(self) -> GenerationConfig:
        own = sorted({"model", "dtype", "seed", "enable_lora", "max_lora_rank"} & self.vllm.keys())
        if own:
            raise ValueError(f"arguments of vllm other than {own[0]}, which the verb sets")
        if self.vllm and self.backend != "vllm":
            raise ValueError("backend vllm, which alone reads the arguments of vllm")
        return self


class EndpointConfig(Checked):
    """How a model that is named by a URL is asked: so many requests at once, each tried again `retries` times, a try
    given up after `timeout` seconds. `body` has more fields of a request; null takes one out:
    `{max_tokens: null, max_completion_tokens: 2000, temperature: null}`.
    """

    concurrency: int = Field(default=8, gt=0, le=1024)
    timeout: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    retries: int = Field(default=4, ge=0, le=1_000_000_000)
    body: dict[str, Any] = Field(default_factory=dict)

    @field_validator("body")
    @classmethod
    def _ours(cls, body: dict[str, Any]) -> dict[str, Any]:
        return checked_body(body, "the verb")

    @property
    def deciding(self) -> EndpointConfig:
        """What decides on an answer alone."""
        return EndpointConfig(body=self.body)


def checked_body(body: dict[str, Any], filler: str) -> dict[str, Any]:
    """Further fields of a request; ValueError for what `filler` fills itself, and for what JSON cannot hold."""
    taken = sorted({"messages", "model", "n", "stream"} & body.keys())
    if taken:
        raise ValueError(f"fields that {filler} does not fill itself, unlike {taken[0]}")
    try:
        json.dumps(body, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"values that JSON has ({error})") from error
    return body
