"""Where an injection would go wrong in silence: packed numbers, lost memory, shards of another run, a saved matrix."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from alignkeep.checkpoint.files import write_tensors
from alignkeep.checkpoint.parts import seal
from alignkeep.errors import MachineError
from alignkeep.inject.output import _are_stored, packed
from alignkeep.inject.writing import EditedTensor, Factors, edits_of
from alignkeep.models.activations import Tokens, next_token_log_probs, residual_states
from alignkeep.models.architecture import Writer, writers
from alignkeep.models.folders import tensor_entries
from families import write_tiny


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return SimpleNamespace(model=AutoModelForCausalLM.from_pretrained(folder).eval())


@pytest.mark.parametrize(
    ("dtype", "is_matrix"),
    [(torch.float32, True), (torch.bfloat16, True), (torch.float8_e4m3fn, False), (torch.uint8, False)],
)
def test_only_plain_numbers_are_a_matrix(dtype: torch.dtype, is_matrix: bool) -> None:
    """8-bit floats are floating point to torch, but mean nothing without the scale beside them."""
    module = SimpleNamespace(weight=torch.zeros(2, 3).to(dtype))
    assert Writer("model.layers.0.mlp.down_proj", 0, module).is_matrix is is_matrix
    assert not Writer("model.layers.0.mlp.down_proj", 0, SimpleNamespace()).is_matrix


@pytest.mark.parametrize("read", [next_token_log_probs, residual_states])
def test_memory_that_runs_out_in_the_forward_pass_is_the_machines_fault(read: Any, tmp_path: Path) -> None:
    one = loaded(write_tiny(tmp_path / "model", "llama"))

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError

    one.model.model.norm.register_forward_pre_hook(full)
    with pytest.raises(MachineError, match="batch_size: found out of memory with 2 prompts at once"):
        read(one, [Tokens((5, 6), (1,)), Tokens((7, 8), (1,))])
    assert not torch.is_inference_mode_enabled()


def test_factors_of_another_run_are_told_from_the_same(tmp_path: Path) -> None:
    """By them a killed run knows whether its finished shards carry this edit."""
    file = tmp_path / "rank_one.safetensors"
    ours = {"a": {0: Factors(np.ones(3, np.float32), np.arange(2, dtype=np.float32), False)}}
    assert not _are_stored(ours, file)
    seal(write_tensors(file, *packed(ours)))
    assert _are_stored(ours, file)
    nudged = {"a": {0: Factors(np.ones(3, np.float32), np.array([0, np.nextafter(np.float32(1), 2)]), False)}}
    assert not _are_stored(nudged, file)
    assert not _are_stored({**ours, "b": ours["a"]}, file)
    assert not _are_stored({}, file)
    file.write_bytes(file.read_bytes()[:-3] + b"\0\0\0")
    assert not _are_stored(ours, file), "damaged since"


def test_a_matrix_that_an_adapter_stores_whole_is_the_one_that_is_edited(tmp_path: Path) -> None:
    entries = tensor_entries(write_tiny(tmp_path / "base", "llama"), adapter=False)
    saved = tensor_entries(write_tiny(tmp_path / "saved", "llama", seed=1), adapter=False)
    model = loaded(tmp_path / "base").model
    name = f"{writers(model)[-1].place}.weight"
    rows, columns = entries[name].shape
    factors = {name: {0: Factors(np.ones(rows, np.float32), np.ones(columns, np.float32), False)}}
    adapter: Any = SimpleNamespace(changes={}, replaced={name: saved[name]})
    edit = edits_of(entries, factors, adapter)[name]
    assert isinstance(edit, EditedTensor)
    assert edit.entry == saved[name] != entries[name]
