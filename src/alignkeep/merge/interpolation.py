"""The merge of any weight as a model in memory, without writing it.

Every merge is shown as it would be written. A linear merge of one LoRA that is written as an adapter, or into a base in
float32, is the adapter with another scale. Any other is made tensor by tensor from the stored models, rounded to the
base's types where whole weights are written, and put into the network that was loaded once. The rounding is no detail:
of a LoRA of SmolLM2, at weight 0.2, bfloat16 leaves 90 % of the entries as they are (docs/merging.md).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from alignkeep.checkpoint.numbers import FORMATS, memory_of, round_into
from alignkeep.checkpoint.reading import StoredBytes
from alignkeep.checkpoint.rewrite import Edit, one_thread_each
from alignkeep.merge.config import MergeConfig
from alignkeep.merge.edits import edits_of
from alignkeep.merge.inputs import Models
from alignkeep.merge.linear import Linear
from alignkeep.merge.method import Rule
from alignkeep.merge.methods import method_named
from alignkeep.models.headers import TensorEntry
from alignkeep.models.loading import LoadedModel, load_model, load_tokenizer
from alignkeep.models.renumber import renumber
from alignkeep.types import Checkpoint

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
}  # fmt: skip


class Interpolation:
    """One model in memory that is shown as the base, as the tuned model, or as the merge of a weight. It has the base's
    tokenizer throughout, and the chat template of the merge."""

    def __init__(self, config: MergeConfig, models: Models, method_at: Callable[[float], Rule]) -> None:
        """Loads the base. Raises as `load_model` does."""
        self._models, self._method_at = models, method_at
        self._exact = config.form == "adapter"
        self._scales = is_scaling(config, models)
        # In half precision a network would round what an adapter does not.
        whole = self._exact and not self._scales
        load = config.load.model_copy(update={"dtype": "float32"}) if whole else config.load
        self._loaded = load_model(config.base, load)
        if config.chat_template == "tuned":
            self._loaded.tokenizer.chat_template = load_tokenizer(config.tuned[0]).chat_template
        if self._scales:
            self._loaded = _with_adapter(self._loaded, models)

    @contextmanager
    def base(self) -> Iterator[LoadedModel]:
        """The base, within the block."""
        if self._scales:
            with self._loaded.as_base() as loaded:
                yield loaded
        else:
            yield self._made(None)

    @contextmanager
    def tuned(self) -> Iterator[LoadedModel]:
        """The one tuned model, within the block."""
        if self._scales:
            yield self._loaded
        elif is_one_lora(self._models):
            yield from self._attached()
        else:
            yield self._made(lambda name: Linear((0.0, 1.0)))

    @contextmanager
    def at(self, weight: float) -> Iterator[LoadedModel]:
        """The merge of this weight, within the block."""
        if self._scales:
            from peft.helpers import rescale_adapter_scale

            with rescale_adapter_scale(self._loaded.model, weight):
                yield self._loaded
        else:
            yield self._made(self._method_at(weight))

    def _attached(self) -> Iterator[LoadedModel]:
        """The base with the adapter as it is stored, which whole weights would round."""
        adapted = _with_adapter(self._made(None), self._models)
        yield adapted
        self._loaded.model = adapted.model.unload()

    def _made(self, rule: Rule | None) -> LoadedModel:
        renumber(self._loaded, merged_tensors(self._models, rule, exact=self._exact))
        return self._loaded


def is_scaling(config: MergeConfig, models: Models) -> bool:
    """Whether every merge is the one adapter with another scale: linear, with nothing but LoRA factors in it, and
    written without a rounding that tells."""
    if method_named(config.method).adapter != "scaled" or not is_one_lora(models):
        return False
    return config.form == "adapter" or not is_rounded(models)


def is_one_lora(models: Models) -> bool:
    """Whether the one tuned model is an adapter with nothing but LoRA factors in it."""
    adapters = [tuned.adapter for tuned in models.tuned]
    return len(adapters) == 1 and adapters[0] is not None and not adapters[0].replaced and adapters[0].fixed is None


def is_rounded(models: Models) -> bool:
    """Whether whole weights of a merge are rounded to fewer bits than it is calculated in."""
    return any(entry.dtype in FORMATS and FORMATS[entry.dtype].itemsize < 4 for entry in models.entries.values())


def merged_tensors(models: Models, rule: Rule | None, *, exact: bool = False) -> dict[str, Tensor]:
    """All tensors of the merge by their names on disk, with the bits that a written merge has, or (`exact`) in float32
    what is made; None: the base's."""
    edits = {} if rule is None else edits_of(models, rule)

    def make(name: str) -> Tensor:
        entry = models.entries[name]
        edit = edits.get(name, entry)
        kind = "F32" if exact else entry.dtype
        return _stored(edit) if isinstance(edit, TensorEntry) else _rounded(edit, kind, entry.shape)

    with one_thread_each(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(models.entries, pool.map(make, models.entries), strict=True))


def _stored(entry: TensorEntry) -> Tensor:
    raw = np.empty(entry.size, np.uint8)
    if entry.size:
        with StoredBytes(entry) as stored:
            stored.read(0, memory_of(raw))
    return torch.from_numpy(raw).view(_TYPES[entry.dtype]).reshape(entry.shape)


def _rounded(edit: Edit, kind: str, shape: Sequence[int]) -> Tensor:
    numbers = np.empty(math.prod(shape), FORMATS[kind])
    start = 0
    for piece in edit:
        round_into(numbers[start : start + len(piece)], piece)
        start += len(piece)
    return torch.from_numpy(numbers.view(np.uint8)).view(_TYPES[kind]).reshape(tuple(shape))


def _with_adapter(base: LoadedModel, models: Models) -> LoadedModel:
    from alignkeep.models.adapters import attach_adapter

    tuned = models.tuned[0]
    checkpoint = Checkpoint(tuned.reference, tuned.folder, is_adapter=True, base=base.checkpoint.reference)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = attach_adapter(base.model, tuned.folder)
    return LoadedModel(model.eval(), base.tokenizer, checkpoint)
