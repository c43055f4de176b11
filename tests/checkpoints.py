"""Checkpoints of any tensors, as ordinary folders: made, told apart byte by byte, and told to be left alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignkeep.errors import AlignkeepError
from alignkeep.merge.config import MergeConfig
from conftest import build_tiny_model

Tensors = dict[str, Tensor]
CONFIG = {"model_type": "synthetic", "hidden_size": 8}


def noise(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensor], *, shards: int = 1) -> Path:
    """The tensors in so many files of about as many tensors, with an index where there are several."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names = list(tensors)
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    placed: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


def read_checkpoint(folder: Path) -> Tensors:
    """All tensors of a model or adapter, as the safetensors library reads them."""
    return {
        name: tensor for file in sorted(folder.glob("*model*.safetensors")) for name, tensor in load_file(file).items()
    }


def write_adapter(folder: Path, base: Path, factors: Mapping[str, tuple[Tensor, Tensor]], *, alpha: float = 4) -> Path:
    """A LoRA adapter of the base, of (A, B) by module, as PEFT stores it."""
    folder.mkdir()
    rank = next(iter(factors.values()))[0].shape[0]
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    stored = {
        f"base_model.model.{module}.lora_{kind}.weight": tensor
        for module, pair in factors.items()
        for kind, tensor in zip("AB", pair, strict=True)
    }
    save_file(stored, folder / "adapter_model.safetensors")
    return folder


def changed_copy(source: Path, folder: Path, change: Callable[[Tensors], object]) -> Path:
    """A copy of a folder with one weight file, whose tensors `change` has worked on in place."""
    shutil.copytree(source, folder)
    file = next(folder.glob("*model.safetensors"))
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def tuned_copy(base: Path, folder: Path, *, seed: int = 1, step: float = 0.02) -> Path:
    """The base with noise on every tensor, in the base's types."""

    def change(tensors: Tensors) -> None:
        for place, (name, tensor) in enumerate(sorted(tensors.items())):
            moved = tensor.float() + noise(*tensor.shape, seed=100 * seed + place, scale=step)
            tensors[name] = moved.to(tensor.dtype)

    return changed_copy(base, folder, change)


def edit_json(path: Path, **changes: object) -> Path:
    """The JSON object in a file with other values; `None` as a value is written as null."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def bits(tensor: Tensor) -> Tensor:
    """To compare by: equal bits, also where numbers compare otherwise (-0.0, 8-bit floats)."""
    return tensor.contiguous().flatten().view(torch.uint8)


def same_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        (left[name].dtype, left[name].shape) == (right[name].dtype, right[name].shape)
        and torch.equal(bits(left[name]), bits(right[name]))
        for name in left
    )


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def results(folder: Path) -> dict[str, object]:
    """`hashes`, but of `record.json` all but the seconds."""
    record = json.loads((folder / "record.json").read_text())
    return {**hashes(folder), "record.json": {**record, "seconds": None}}


@contextmanager
def refused(error: type[AlignkeepError], message: str, root: Path) -> Iterator[None]:
    """Within the block this error is raised, and no file below `root` comes, goes or changes."""
    before = hashes(root)
    with pytest.raises(error, match=message) as caught:
        yield
    assert all((caught.value.where, caught.value.seen, caught.value.expected, caught.value.remedy))
    assert "\n" not in str(caught.value)
    assert hashes(root) == before
    assert not [path for path in root.iterdir() if path.name.startswith(".")], "a partial folder is left"


class World:
    """Folders below one root: a base and two tunes in bfloat16, the base also in three shards."""

    def __init__(self, root: Path) -> None:
        self.root = root
        whole = build_tiny_model(root / "whole")
        self.base = changed_copy(whole, root / "base", lambda t: t.update({k: v.bfloat16() for k, v in t.items()}))
        self.tuned = tuned_copy(self.base, root / "tuned", seed=1)
        self.other = tuned_copy(self.base, root / "other", seed=2)
        self.sharded = write_checkpoint(root / "sharded", read_checkpoint(self.base), shards=3)
        for file in self.base.iterdir():
            if file.name != "model.safetensors":
                shutil.copy(file, self.sharded)

    def config(self, *tuned: Path, base: Path | None = None, **settings: Any) -> MergeConfig:
        chosen = tuple(str(path) for path in tuned or (self.tuned,))
        return MergeConfig(base=str(base or self.base), tuned=chosen, **settings)
