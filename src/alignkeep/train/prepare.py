"""All that can be said about a tune before its weights are loaded: every fault of the user's is found here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from alignkeep.data import read_examples
from alignkeep.errors import RecipeError
from alignkeep.models.folders import localise
from alignkeep.models.loading import check_loads, check_packing, load_tokenizer
from alignkeep.train.arguments import sft_config
from alignkeep.train.config import ProbeSettings, TrainConfig
from alignkeep.train.defence import Before
from alignkeep.train.defences import Chosen
from alignkeep.train.encoding import EncodedRows, encode_rows
from alignkeep.train.weights import example_weights, normalised
from alignkeep.trainers.adapters import lora_config, put_on
from alignkeep.trainers.arguments import training_dtype
from alignkeep.trainers.base import dtype_of, full_model, skeleton_of

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerBase
    from trl.trainer.sft_config import SFTConfig

    from alignkeep.train.probe import SafetyProbe
    from alignkeep.types import Checkpoint


@dataclass(frozen=True)
class Prepared:
    """A checked tune. `skeleton` is the model without numbers (on torch's meta device), `max_length` what is used;
    `defence` takes part in it, None where there is none or it is off, knowing what was known `before`."""

    config: TrainConfig
    base: Path
    arguments: SFTConfig
    adapter: LoraConfig | None
    tokenizer: PreTrainedTokenizerBase
    skeleton: Any
    rows: EncodedRows
    max_length: int
    dtype: str
    base_dtype: str
    before: Before
    defence: Chosen | None = None
    probe: SafetyProbe | None = None
    data_notes: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a careful person would want to be told."""
        found = [*self.data_notes]
        if self.dtype != self.base_dtype:
            found.append(f"the base is {self.base_dtype} and is tuned in {self.dtype}")
        if self.rows.dropped:
            found.append(f"{self.rows.dropped} examples of weight 0 were left out")
        if self.rows.late:
            done = "were left out" if self.config.too_long == "drop" else "are learned from their last tokens"
            found.append(
                f"{self.rows.late} examples whose answer only begins beyond {self.max_length} tokens {done} (too_long)"
            )
        if self.rows.truncated:
            found.append(f"{self.rows.truncated} answers were cut off at {self.max_length} tokens")
        return tuple(found)


def base_of(config: TrainConfig) -> Checkpoint:
    """The model to tune. Raises as `full_model` does."""
    return full_model(config.model, config.load.revision, "train")


def prepare(config: TrainConfig) -> Prepared:
    """Check settings, data, weights, tokenizer and target modules. Raises what each of them raises."""
    arguments = sft_config(config)
    checkpoint = localise(
        full_model(config.model, config.load.revision, "train"), with_code=config.load.trust_remote_code
    )
    base = cast(Path, checkpoint.folder)
    probe = None if config.probe is None else _probe(config.probe)
    examples = read_examples(config.data, columns=config.columns)
    weights = example_weights(examples, config.data, config.weights)
    skeleton = skeleton_of(base, config.load)
    _check_base(config, base)
    adapter = lora_config(config.lora, skeleton, "train") if config.has_adapter else None
    adapted = None if adapter is None else put_on(skeleton, adapter, "train")
    tokenizer = load_tokenizer(config.model, config.load)
    context = getattr(skeleton.config.get_text_config(), "max_position_embeddings", None)
    max_length = min(config.max_length, context or config.max_length)
    chosen = config.chosen
    defence = None if chosen is None or chosen.is_off else chosen
    key = "" if defence is None else defence.key
    before = Before(key, tokenizer, skeleton if adapted is None else adapted, max_length, config.has_adapter)
    if defence is not None:
        defence.check(before)
    vocabulary = skeleton.get_input_embeddings().weight.shape[0]
    rows = encode_rows(
        tokenizer, examples, weights, max_length=max_length, vocabulary=vocabulary, where=config.data,
        too_long=config.too_long,
    )  # fmt: skip
    if rows.late and config.too_long == "drop":
        rows.weights = normalised(rows.weights, config.data)  # as if they had never been there
    base_dtype = dtype_of(base)
    dtype = training_dtype(config.load, has_adapter=config.has_adapter)
    return Prepared(
        config=config,
        base=base,
        arguments=arguments,
        adapter=adapter,
        tokenizer=tokenizer,
        skeleton=skeleton,
        rows=rows,
        max_length=max_length,
        dtype=base_dtype if dtype == "auto" else dtype,
        base_dtype=base_dtype,
        before=before,
        defence=defence,
        probe=probe,
        data_notes=examples.notes,
    )


def _check_base(config: TrainConfig, base: Path) -> None:
    """A base that is trained whole is whole on disk, and is not packed."""
    check_packing(base, config.load)
    if config.has_adapter:
        return
    if config.load.quantization is not None:
        raise RecipeError(
            "load.quantization",
            seen=f"{config.load.quantization}, and method full",
            expected="a tune of an adapter, whose base stays as it is",
            remedy="take method lora, or leave load.quantization out",
        )
    check_loads(base, trust_remote_code=config.load.trust_remote_code)


def _probe(settings: ProbeSettings) -> SafetyProbe:
    from alignkeep.train.probe import SafetyProbe

    return SafetyProbe(
        settings.harmful, settings.harmless, every=settings.every, stop_below=settings.stop_below,
        put_back=settings.stop_below is not None, refusals=settings.refusals, key="train.probe",
    )  # fmt: skip
