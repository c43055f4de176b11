"""What a curation is: the settings of `alignkeep curate`, the recipe's `curate:` and the Python call."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from alignkeep.errors import NoEffectError, RecipeError
from alignkeep.formats import Columns
from alignkeep.models.config import LoadConfig
from alignkeep.settings import Checked

Method = Literal["sot", "mean_cosine", "dsir", "bidirectional", "random"]
ON_VECTORS = ("sot", "mean_cosine")


class EmbedSettings(Checked):
    """How an example becomes a vector: the hidden state of its last token (the paper's) or the mean over its tokens,
    behind the model's final norm or before block `layer`; or `encoder`, a sentence-transformers model. `max_length` in
    tokens; what is longer is cut at its end. An example whose answer only begins beyond it is `too_long`: its last ones
    are taken (cut), or it is left out (drop). `keep` leaves the vectors beside the weights, for `embeddings` of another
    try."""

    layer: int | None = Field(default=None, ge=0, le=1_000_000_000)
    pooling: Literal["last", "mean"] = "last"
    encoder: str | None = None
    batch_size: int = Field(default=32, gt=0, le=1_000_000_000)
    max_length: int = Field(default=1024, gt=1, le=1_000_000_000)
    too_long: Literal["cut", "drop"] = "cut"
    keep: bool = False


class SotSettings(Checked):
    """Push and pull (eqs. 6 and 7). `push` is lambda, 0 only pulls. `epsilon` is a share of the median cost, or the
    number itself with `epsilon_is: absolute`. `sample_size` is the share of the examples below which the effective
    sample size may not fall. `weights` is omega: softmax of the logits, exponential of the masses (the paper's, nearly
    uniform), or equal. `block` examples at a time are held against the references."""

    push: float = Field(default=1.0, ge=0, le=1e3)
    epsilon: float = Field(default=0.05, ge=1e-6, le=1e6)
    epsilon_is: Literal["relative", "absolute"] = "relative"
    sample_size: float = Field(default=0.8, gt=0, lt=1)
    weights: Literal["softmax", "exponential", "equal"] = "softmax"
    precision: Literal["float32", "float64"] = "float32"
    block: int = Field(default=4096, gt=0, le=1_000_000_000)


class CurateConfig(Checked):
    """One choice of examples to learn from.

    `data` are the examples, `safe` clean examples of the same task, `harmful` answered harmful requests. `model` makes
    the vectors, unless `embeddings` are given: a .safetensors or .npz file with `data`, `safe` and `harmful`, or a
    folder of such .npy files. `keep` is the share that is kept. `evaluation` names files of prompts that will measure
    the tune: anchors that repeat one of them are an error. `columns` says what our columns are called in `data`
    (`prompt=question,completion=answer`), and in `safe` and `harmful` where they have these columns;
    `evaluation_columns` the same of `evaluation`.
    """

    # Two fields more than our budget of 12: what columns are called belongs to the files.
    model: str | None = Field(default=None, min_length=1)
    embeddings: str | None = Field(default=None, min_length=1)
    data: str | None = Field(default=None, min_length=1)
    safe: str | None = Field(default=None, min_length=1)
    harmful: str | None = Field(default=None, min_length=1)
    columns: Columns = Field(default_factory=dict)
    method: Method = "sot"
    keep: float = Field(default=0.8, gt=0, le=1)
    evaluation: tuple[str, ...] = ()
    evaluation_columns: Columns = Field(default_factory=dict)
    embed: EmbedSettings = EmbedSettings()
    sot: SotSettings = SotSettings()
    load: LoadConfig = LoadConfig()
    seed: int = Field(default=0, ge=0, lt=2**32)

    @property
    def loads_model(self) -> bool:
        """Whether the model itself is looked into."""
        if self.method == "bidirectional":
            return True
        return self.method in ON_VECTORS and self.embeddings is None and self.embed.encoder is None

    def _read(self) -> set[str]:
        """What this choice looks at, of `embed` and `sot` and beside the texts."""
        read = {f"sot.{name}" for name in SotSettings.model_fields} if self.method == "sot" else set[str]()
        if self.method in ON_VECTORS and self.embeddings is not None:
            return read | {"embeddings"}
        if self.method in ON_VECTORS and self.embed.encoder is not None:
            return read | {"embed.encoder", "embed.batch_size", "embed.keep"}
        own = {
            "batch_size",
            "max_length",
            "too_long",
            *(("layer", "pooling", "keep") if self.method in ON_VECTORS else ()),
        }
        return read | {f"embed.{name}" for name in own if self.loads_model}

    @model_validator(mode="after")
    def _whole(self) -> CurateConfig:
        if self.keep == 1 and (self.method != "sot" or self.sot.weights == "equal"):
            raise NoEffectError(
                "keep", seen=f"1 with {self.method}, which drops nothing and weighs all alike", expected="below 1",
                remedy="give a smaller share, as 0.8",
            )  # fmt: skip
        if self.embeddings is not None and (self.embed.encoder is not None or self.method == "bidirectional"):
            raise RecipeError(
                "embeddings",
                seen="vectors beside " + ("embed.encoder" if self.embed.encoder else "a method on gradients"),
                expected="one source of vectors, and --model where gradients are asked for",
                remedy="drop one of the two",
            )
        if self.loads_model and self.model is None:
            raise RecipeError(
                "model", seen=f"none for {self.method}", expected="the model that will be tuned, or its embeddings",
                remedy="give --model M" + (", or --embeddings E" if self.method in ON_VECTORS else ""),
            )  # fmt: skip
        needs = ["data"] if self.method == "random" else ["data", "safe"] if self.method == "dsir" else (
            [] if self.embeddings is not None else ["data", "safe", "harmful"]
        )  # fmt: skip
        missing = [name for name in needs if getattr(self, name) is None]
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
        idle = sorted(given - self._read())
        if idle:
            given_vectors = self.method in ON_VECTORS and self.embeddings is not None
            beside = " beside given vectors" if given_vectors else " beside an encoder" if self.embed.encoder else ""
            raise NoEffectError(
                idle[0], seen=f"a setting that {self.method}{beside} does not look at",
                expected="settings that have a part", remedy="leave it out",
            )  # fmt: skip
        return self
