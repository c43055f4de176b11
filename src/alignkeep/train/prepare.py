"""All that can be said about a tune before its weights are loaded: every fault of the user's is found here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from alignkeep.data import read_examples
from alignkeep.errors import CheckpointError
from alignkeep.models.folders import localise, resolve, tensor_entries
from alignkeep.models.loading import load_tokenizer
from alignkeep.train.alignment import read_alignment
from alignkeep.train.arguments import lora_config, sft_config, training_dtype
from alignkeep.train.config import ProbeSettings, TrainConfig
from alignkeep.train.encoding import EncodedRows, encode_rows
from alignkeep.train.weights import example_weights

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerBase
    from trl.trainer.sft_config import SFTConfig

    from alignkeep.train.probe import SafetyProbe
    from alignkeep.types import Checkpoint, Example

_WORDS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Prepared:
    """A checked tune. `skeleton` is the model without numbers (on torch's meta device), `max_length` what is used."""

    base: Path
    arguments: SFTConfig
    adapter: LoraConfig | None
    tokenizer: PreTrainedTokenizerBase
    skeleton: Any
    rows: EncodedRows
    max_length: int
    dtype: str
    base_dtype: str
    alignment: tuple[Example, ...] = ()
    probe: SafetyProbe | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a careful person would want to be told."""
        found = []
        if self.dtype != self.base_dtype:
            found.append(f"the base is {self.base_dtype} and is tuned in {self.dtype}")
        if self.rows.dropped:
            found.append(f"{self.rows.dropped} examples of weight 0 were left out")
        if self.rows.truncated:
            found.append(f"{self.rows.truncated} answers were cut off at {self.max_length} tokens")
        return tuple(found)


def full_model(config: TrainConfig) -> Checkpoint:
    """The base. Raises CheckpointError where it is an adapter, which cannot carry a second one."""
    checkpoint = resolve(config.model, config.load.revision)
    if checkpoint.is_adapter:
        raise CheckpointError(
            "train.model",
            seen=f"{config.model}, an adapter",
            expected="a full model",
            remedy="merge the adapter into its base first (PEFT: merge_and_unload, save_pretrained)",
        )
    return checkpoint


def prepare(config: TrainConfig) -> Prepared:
    """Check settings, data, weights, tokenizer and target modules. Raises what each of them raises."""
    arguments = sft_config(config)
    checkpoint = localise(full_model(config), with_code=config.load.trust_remote_code)
    base = cast(Path, checkpoint.folder)
    alignment = read_alignment(config.alignguard.data) if config.is_guarded else ()
    probe = None if config.probe is None else _probe(config.probe)
    examples = read_examples(config.data)
    weights = example_weights(examples, config.data, config.weights)
    skeleton = _skeleton(base, config)
    adapter = lora_config(config.lora, skeleton) if config.has_adapter else None
    tokenizer = load_tokenizer(config.model, config.load)
    context = getattr(skeleton.config.get_text_config(), "max_position_embeddings", None)
    max_length = min(config.max_length, context or config.max_length)
    rows = encode_rows(
        tokenizer,
        examples,
        weights,
        max_length=max_length,
        vocabulary=skeleton.get_input_embeddings().weight.shape[0],
        where=config.data,
    )
    base_dtype = _dtype_of(base)
    dtype = training_dtype(config)
    return Prepared(
        base=base,
        arguments=arguments,
        adapter=adapter,
        tokenizer=tokenizer,
        skeleton=skeleton,
        rows=rows,
        max_length=max_length,
        dtype=base_dtype if dtype == "auto" else dtype,
        base_dtype=base_dtype,
        alignment=alignment,
        probe=probe,
    )


def _probe(settings: ProbeSettings) -> SafetyProbe:
    from alignkeep.train.probe import SafetyProbe

    return SafetyProbe(
        settings.harmful, settings.harmless, every=settings.every, stop_below=settings.stop_below,
        put_back=settings.stop_below is not None, refusals=settings.refusals, key="train.probe",
    )  # fmt: skip


def _skeleton(base: Path, config: TrainConfig) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    trusted = config.load.trust_remote_code
    try:
        settings = AutoConfig.from_pretrained(base, trust_remote_code=trusted, local_files_only=True)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(settings, trust_remote_code=trusted)
    except (ValueError, KeyError, OSError, TypeError, AttributeError, ImportError) as error:
        raise CheckpointError(
            f"{base / 'config.json'}",
            seen=f"{type(error).__name__}: {str(error)[:240]}",
            expected="the config of a causal language model that transformers knows",
            remedy="mend or copy the model again",
        ) from error


def _dtype_of(base: Path) -> str:
    """The dtype that most of the base's tensors have on disk."""
    dtype = Counter(entry.dtype for entry in tensor_entries(base, adapter=False).values()).most_common(1)[0][0]
    if dtype not in _WORDS:
        raise CheckpointError(
            str(base), seen=f"weights in {dtype}", expected=" | ".join(_WORDS), remedy="take an unquantised checkpoint"
        )
    return _WORDS[dtype]
