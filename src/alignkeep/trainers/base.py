"""The base of a tune before its weights are loaded: what it is, and its shape."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from alignkeep.errors import AlignkeepError, CheckpointError, DataError
from alignkeep.models.config import LoadConfig
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.models.folders import resolve, tensor_entries
from alignkeep.models.loading import model_class
from alignkeep.models.untrusted import check_size
from alignkeep.types import Checkpoint

_WORDS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def full_model(reference: str, revision: str | None, stage: str) -> Checkpoint:
    """The base. Raises CheckpointError where it is an adapter, which cannot carry a second one."""
    checkpoint = resolve(reference, revision)
    if checkpoint.is_adapter:
        raise CheckpointError(
            f"{stage}.model",
            seen=f"{reference}, an adapter",
            expected="a full model",
            remedy="merge the adapter into its base first (PEFT: merge_and_unload, save_pretrained)",
        )
    return checkpoint


def check_unwritten(reference: str, revision: str | None, fingerprint: str) -> None:
    """Raises DataError where the base is not what it was when the tune began."""
    if fingerprint_model(reference, revision) != fingerprint:
        raise DataError(
            reference,
            seen="files that changed during the tune",
            expected="a base that nobody writes to",
            remedy="put the base back and run the tune again",
        )


def skeleton_of(base: Path, load: LoadConfig) -> Any:
    """The model without numbers, on torch's meta device. Raises CheckpointError for a config that is not of a model
    that continues text, or larger than the weights."""
    from transformers import AutoConfig

    trusted = load.trust_remote_code
    try:
        settings = AutoConfig.from_pretrained(base, trust_remote_code=trusted, local_files_only=True)
        entries = tensor_entries(base, adapter=False)
        return check_size(base, entries, trust_remote_code=trusted, kind=model_class(settings))
    except AlignkeepError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{base / 'config.json'}",
            seen=f"{type(error).__name__}: {str(error)[:240]}",
            expected="the config of a causal language model that transformers knows",
            remedy="mend or copy the model again",
        ) from error


def dtype_of(base: Path) -> str:
    """The dtype that most of the base's tensors have on disk."""
    dtype = Counter(entry.dtype for entry in tensor_entries(base, adapter=False).values()).most_common(1)[0][0]
    if dtype not in _WORDS:
        raise CheckpointError(
            str(base), seen=f"weights in {dtype}", expected=" | ".join(_WORDS), remedy="take an unquantised checkpoint"
        )
    return _WORDS[dtype]
