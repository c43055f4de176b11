"""From the trainer's model to the folder a user gets: in the base's dtype, with the base's own files, opened again.

Departure from `trainer.save_model`: config, tokenizer and chat template are copied from the base byte for byte. The
trainer's would carry what tuning changed for its own use (dtype, padding token, cache), and a pickle of its arguments.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from alignkeep.checkpoint.beside import CONFIG, INDEX, TOKENIZER, copy_beside
from alignkeep.checkpoint.files import write_json
from alignkeep.checkpoint.verify import check_adapter, check_same_files, check_tuned, planned
from alignkeep.models.folders import tensor_entries


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
    copied = copy_beside(base, work, TOKENIZER)
    check_same_files(work, base, copied)
    # save_embedding_layers: left to itself PEFT asks the hub whether the vocabulary has grown; it has not.
    return check_adapter(work, planned(get_peft_model_state_dict(model, save_embedding_layers=False)))


def place_model(made: Path, work: Path, base: Path, model: Any) -> list[str]:
    """Put the tuned model into `work`, every tensor in its base's dtype; returns those that came out equal.

    Raises as `check_tuned` does.
    """
    dtypes = {name: entry.dtype for name, entry in tensor_entries(base, adapter=False).items()}
    for file in sorted(made.glob("*.safetensors")):
        _cast_file(file, work / file.name, dtypes)
    if (made / INDEX).exists():
        index = json.loads((made / INDEX).read_text(encoding="utf-8"))
        index["metadata"] = {"total_size": _bytes_of_tensors(work)}
        write_json(work / INDEX, index)
    copied = copy_beside(base, work, (*TOKENIZER, *CONFIG))
    check_same_files(work, base, copied)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    return check_tuned(work, base, may_lack={*tied, *_unused(model, dtypes)})


def _cast_file(source: Path, target: Path, dtypes: dict[str, str]) -> None:
    """Shard by shard and by the names on disk, so that a base of mixed dtypes comes out as it was."""
    import torch
    from safetensors.torch import load_file, save_file

    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
    tensors = load_file(source)
    for name, tensor in tensors.items():
        kind = kinds.get(dtypes.get(name, ""), tensor.dtype)
        tensors[name] = tensor.to(kind) if tensor.is_floating_point() else tensor
    save_file(tensors, target, metadata={"format": "pt"})


def _bytes_of_tensors(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _unused(model: Any, names: dict[str, str]) -> set[str]:
    """Tensors of old checkpoints that the model leaves aside when loading (rotary caches), and so does not save."""
    import re

    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return {name for name in names if any(re.search(pattern, name) for pattern in patterns)}
