"""What a curation is: the settings of `alignkeep curate`, the recipe's `curate:` and the Python call."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from alignkeep.curate.method import CurationMethod
from alignkeep.curate.methods import FORMS, NAMES, load_method
from alignkeep.curate.methods.sot import SotSettings
from alignkeep.errors import NoEffectError, RecipeError
from alignkeep.models.config import LoadConfig
from alignkeep.objects import is_spec
from alignkeep.settings import Checked


class EmbedSettings(Checked):
    """How an example becomes a vector: the mean of its answer's hidden states, or that over all its tokens, over its
    prompt's and its answer's side by side, or the state of its last token (the paper's), behind the model's final norm
    or before block `layer`; or `encoder`, a sentence-transformers model. `whiten` measures by what varies within the
    references. With `pooling: auto` known harmful rows, planted among the data, decide on pooling and whitening.

    `max_length` in tokens; what is longer is cut at its end. An example whose answer only begins beyond it is
    `too_long`: its last ones are taken (cut), or it is left out (drop). `keep` leaves the vectors beside the weights,
    for `embeddings` of another try."""

    layer: int | None = Field(default=None, ge=0, le=1_000_000_000)
    pooling: Literal["last", "mean", "answer", "prompt+answer", "auto"] = "answer"
    whiten: bool = False
    encoder: str | None = None
    batch_size: int = Field(default=32, gt=0, le=1_000_000_000)
    max_length: int = Field(default=1024, gt=1, le=1_000_000_000)
    too_long: Literal["cut", "drop"] = "cut"
    keep: bool = False

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: object) -> object:
        """`embed: auto` is `embed: {pooling: auto}`."""
        return {"pooling": given} if isinstance(given, str) else given


class CurateConfig(Checked):
    """One choice of examples to learn from.

    `data` are the examples, `safe` clean examples of the same task, `harmful` answered harmful requests. `model` makes
    the vectors, unless `embeddings` are given: a .safetensors or .npz file with `data`, `safe` and `harmful`, or a
    folder of such .npy files. `keep` is the share that is kept. `method` is the name of one of ours, its options in the
    group of its name, or `package.module:object`, with them in `options`. `evaluation` names files of prompts that will
    measure the tune: anchors that repeat one of them are an error.
    """

    model: str | None = Field(default=None, min_length=1)
    embeddings: str | None = Field(default=None, min_length=1)
    data: str | None = Field(default=None, min_length=1)
    safe: str | None = Field(default=None, min_length=1)
    harmful: str | None = Field(default=None, min_length=1)
    method: str = "sot"
    keep: float = Field(default=0.8, gt=0, le=1)
    evaluation: tuple[str, ...] = ()
    embed: EmbedSettings = EmbedSettings()
    sot: SotSettings = SotSettings()
    options: dict[str, Any] = Field(default_factory=dict, exclude_if=lambda given: not given)
    load: LoadConfig = LoadConfig()
    seed: int = Field(default=0, ge=0, lt=2**32)

    @cached_property
    def rule(self) -> CurationMethod:
        """The method itself."""
        return load_method(self.method)

    @cached_property
    def rule_options(self) -> BaseModel:
        """The method's options: the group of its name where there is one, else `options`."""
        group = getattr(self, self.rule.name, None)
        return group if isinstance(group, self.rule.options) else self.rule.options.model_validate(self.options)

    @property
    def on_vectors(self) -> bool:
        return self.rule.needs == "vectors"

    @property
    def loads_model(self) -> bool:
        """Whether the model itself is looked into."""
        if self.on_vectors:
            return self.embeddings is None and self.embed.encoder is None
        return self.rule.needs == "gradients"

    def _read(self) -> set[str]:
        """What this choice looks at, of `embed` and the options and beside the texts."""
        group = "sot" if self.rule_options is self.sot else "options"
        read = {f"{group}.{name}" for name in self.rule.options.model_fields}
        if self.on_vectors and self.embeddings is not None:
            return read | {"embeddings", "embed.whiten"}
        if self.on_vectors and self.embed.encoder is not None:
            return read | {"embed.encoder", "embed.batch_size", "embed.keep", "embed.whiten"}
        of_vectors = {"layer", "pooling", "keep", *(() if self.embed.pooling == "auto" else ("whiten",))}
        own = {"batch_size", "max_length", "too_long", *(of_vectors if self.on_vectors else ())}
        return read | {f"embed.{name}" for name in own if self.loads_model}

    @field_validator("method")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in NAMES and not is_spec(name):
            offered = ", ".join(f"'{one}'" for one in NAMES)
            raise PydanticCustomError("method", FORMS, {"expected": offered})  # pyright: ignore[reportArgumentType]
        return name

    @model_validator(mode="after")
    def _has_its_options(self) -> CurateConfig:
        try:
            _ = self.rule_options
        except ValidationError as error:
            first = error.errors()[0]
            raise RecipeError(
                ".".join(("options", *map(str, first["loc"]))), seen=f"{first['input']!r:.80} for {self.method}",
                expected=first["msg"], remedy="its options: " + (", ".join(self.rule.options.model_fields) or "none"),
            ) from error  # fmt: skip
        return self

    @model_validator(mode="after")
    def _whole(self) -> CurateConfig:
        if self.keep == 1 and not self.rule.weighs(self.rule_options):
            raise NoEffectError(
                "keep", seen=f"1 with {self.method}, which drops nothing and weighs all alike", expected="below 1",
                remedy="give a smaller share, as 0.8",
            )  # fmt: skip
        if self.embeddings is not None and (self.embed.encoder is not None or self.rule.needs == "gradients"):
            raise RecipeError(
                "embeddings",
                seen="vectors beside " + ("embed.encoder" if self.embed.encoder else "a method on gradients"),
                expected="one source of vectors, and --model where gradients are asked for",
                remedy="drop one of the two",
            )
        if self.loads_model and self.model is None:
            raise RecipeError(
                "model", seen=f"none for {self.method}", expected="the model that will be tuned, or its embeddings",
                remedy="give --model M" + (", or --embeddings E" if self.on_vectors else ""),
            )  # fmt: skip
        sets = ("data", *self.rule.reads) if self.rule.needs in ("texts", "nothing") else ("data", "safe", "harmful")
        needed = () if self.embeddings is not None and self.on_vectors else sets
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise RecipeError(
                " and ".join(missing), seen="nothing", expected=f"files of examples for {self.method}",
                remedy="give " + ", ".join(f"--{name} FILE" for name in missing),
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _acts(self) -> CurateConfig:
        """Raises NoEffectError for a setting that this choice does not look at."""
        given = {"embeddings"} if self.embeddings is not None else set[str]()
        for name, group in (("embed", self.embed), ("sot", self.sot)):
            fields = type(group).model_fields.items()
            given |= {f"{name}.{key}" for key, one in fields if getattr(group, key) != one.get_default()}
        given |= {f"options.{key}" for key in self.options}
        idle = sorted(given - self._read())
        if idle:
            given_vectors = self.on_vectors and self.embeddings is not None
            beside = " beside given vectors" if given_vectors else " beside an encoder" if self.embed.encoder else ""
            raise NoEffectError(
                idle[0], seen=f"a setting that {self.method}{beside} does not look at",
                expected="settings that have a part", remedy="leave it out",
            )  # fmt: skip
        return self
