"""From the trainer's model to the folder a user gets: in the base's dtype, with the base's own files, opened again.

What was not trained (a vision tower, layers for drafting ahead, caches that old checkpoints store) is the base's.

Departure from `trainer.save_model`: config, tokenizer and chat template are copied from the base byte for byte. The
trainer's would carry what tuning changed for its own use (dtype, padding token, cache), and a pickle of its arguments.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignkeep.checkpoint.companions import CONFIG, INDEX, TOKENIZER, copy_companions
from alignkeep.checkpoint.files import write_json
from alignkeep.checkpoint.numbers import Numbers
from alignkeep.checkpoint.reading import COPY_BYTES, StoredNumbers
from alignkeep.checkpoint.rewrite import Edit, rewrite
from alignkeep.checkpoint.shards import JOURNAL
from alignkeep.checkpoint.verify import check_adapter, check_same_files, check_tuned, planned
from alignkeep.errors import CheckpointError
from alignkeep.models.folders import tensor_entries
from alignkeep.models.headers import TensorEntry
from alignkeep.models.loading import check_loads


def place_adapter(made: Path, work: Path, base: Path, model: Any, *, reference: str, revision: str | None) -> list[str]:
    """Put the trained adapter into `work`; returns the `lora_B` that stayed 0. Raises as `check_adapter` does.

    The base is recorded as an absolute path (PEFT takes a relative one as seen from where it runs), or as hub id.
    """
    from peft import get_peft_model_state_dict

    shutil.move(made / "adapter_model.safetensors", work / "adapter_model.safetensors")
    settings = json.loads((made / "adapter_config.json").read_text(encoding="utf-8"))
    is_local = Path(reference).expanduser().is_dir()
    settings["base_model_name_or_path"] = os.path.realpath(Path(reference).expanduser()) if is_local else reference
    settings["revision"] = revision
    for key in ("target_modules", "target_parameters"):
        if isinstance(settings.get(key), list):
            settings[key] = sorted(settings[key])  # PEFT keeps a set, whose order changes from run to run
    write_json(work / "adapter_config.json", settings)
    copied = copy_companions(base, work, TOKENIZER)
    check_same_files(work, base, copied)
    # save_embedding_layers: left to itself PEFT asks the hub whether the vocabulary has grown; it has not.
    return check_adapter(work, planned(get_peft_model_state_dict(model, save_embedding_layers=False)))


def place_model(made: Path, work: Path, base: Path, model: Any, *, trust_remote_code: bool = False) -> list[str]:
    """Put the tuned model into `work`: the base's files with the trained tensors replaced, in the base's dtypes, and
    all else byte for byte; returns the trained tensors that came out equal.

    Raises CheckpointError for a trained tensor that the base has no place for, and as `check_tuned` and
    `check_loads` do.
    """
    before = tensor_entries(base, adapter=False)
    (work / JOURNAL).unlink(missing_ok=True)
    edits = _trained(before, tensor_entries(made, adapter=False), model)
    written = rewrite(before, edits, work)
    (work / JOURNAL).unlink()
    is_sharded = any(entry.file.name != "model.safetensors" for entry in before.values())
    copied = copy_companions(base, work, (*TOKENIZER, *CONFIG, *([INDEX] if is_sharded else [])))
    check_same_files(work, base, copied)
    check_tuned(work, base)
    check_loads(work, trust_remote_code=trust_remote_code)
    return [tensor.name for tensor in written if tensor.change == "equal"]


@dataclass(frozen=True)
class _Cast:
    """The numbers of a trained tensor, to be rounded to another dtype."""

    entry: TensorEntry

    @property
    def made_of(self) -> Sequence[TensorEntry]:
        return [self.entry]

    def __iter__(self) -> Iterator[Numbers]:
        count, size = math.prod(self.entry.shape), COPY_BYTES // 4
        buffer = np.empty(min(count, size), np.float32)
        with StoredNumbers(self.entry) as stored:
            for start in range(0, count, size):
                part = buffer[: min(size, count - start)]
                stored.fill(start, part)
                yield part


def _trained(
    before: Mapping[str, TensorEntry], after: Mapping[str, TensorEntry], model: Any
) -> dict[str, Edit | TensorEntry]:
    """What replaces which of the base's tensors: of the trained ones alone, by the names they have on disk."""
    edits: dict[str, Edit | TensorEntry] = {}
    prefix = f"{model.base_model_prefix}."
    for name in _names_on_disk(model):
        entry = after.get(name)
        # Old checkpoints are those of the inner model, whose names begin further in.
        place = next((one for one in (name, name.removeprefix(prefix), prefix + name) if one in before), None)
        if entry is None or place is None or before[place].shape != entry.shape:
            raise CheckpointError(
                f"tensor {name}",
                seen="a trained tensor that the base's files do not hold in this shape",
                expected="the base's names and shapes",
                remedy="load the base with transformers, save it again (save_pretrained) and tune that, or take lora",
            )
        edits[place] = entry if entry.dtype == before[place].dtype else _Cast(entry)
    for name, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if name in before and name not in edits and source in edits:  # stored twice in the base
            edits[name] = edits[source]
    return edits


def _names_on_disk(model: Any) -> list[str]:
    """Of the trained parameters, as transformers writes them; a tied one once."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    trained = {
        name: torch.empty(part.shape, dtype=part.dtype, device="meta")
        for name, part in model.named_parameters()
        if part.requires_grad
    }
    return list(revert_weight_conversion(model, trained))
