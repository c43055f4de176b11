"""Saved folders opened again: each way in which one can be wrong is an error that names the tensor."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from alignkeep.checkpoint.verify import check_adapter, check_same_files, check_saved, check_tuned, planned
from alignkeep.errors import CheckpointError, NoEffectError

A, B = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"


def _model(folder, **tensors):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return folder


def _adapter(folder, **tensors):
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_a_plan_is_shape_and_dtype():
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}
    assert planned(tensors) == {"a": ((2, 3), "F32"), "b": ((4,), "BF16")}


def test_a_folder_that_holds_the_plan_passes(tmp_path):
    check_saved(_model(tmp_path, a=torch.ones(2)), {"a": ((2,), "F32")})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "tensor a: found no such tensor"),
        ({"a": torch.ones(3)}, r"tensor a: found F32 \[3\], expected F32 \[2\]"),
        ({"a": torch.ones(2, dtype=torch.float16)}, r"tensor a: found F16 \[2\], expected F32 \[2\]"),
        ({"a": torch.tensor([1.0, float("nan")])}, "tensor a: found NaN or infinity"),
        ({"a": torch.tensor([1.0, float("-inf")])}, "tensor a: found NaN or infinity"),
        ({"a": torch.ones(2), "z": torch.ones(1)}, "tensor z: found a tensor that was not planned"),
    ],
)
def test_a_folder_that_is_not_the_plan_is_refused(tmp_path, tensors, message):
    with pytest.raises(CheckpointError, match=message):
        check_saved(_model(tmp_path, **tensors), {"a": ((2,), "F32")})


def test_a_file_cut_short_is_refused(tmp_path):
    file = _model(tmp_path, a=torch.ones(64)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        check_saved(tmp_path, {"a": ((64,), "F32")})


def test_an_adapter_whose_every_b_is_zero_has_no_effect(tmp_path):
    tensors = {A: torch.ones(1, 4), B: torch.zeros(4, 1)}
    with pytest.raises(NoEffectError, match="every one of the 1 lora_B is 0"):
        check_adapter(_adapter(tmp_path, **tensors), planned(tensors))


def test_an_adapter_names_the_b_that_stayed_zero(tmp_path):
    other = {A.replace(".q.", ".k."): torch.ones(1, 4), B.replace(".q.", ".k."): torch.ones(4, 1)}
    tensors = {A: torch.ones(1, 4), B: torch.zeros(4, 1), **other}
    assert check_adapter(_adapter(tmp_path, **tensors), planned(tensors)) == [B]


def test_a_tuned_model_names_the_tensors_that_stayed_as_they_were(tmp_path):
    base = _model(tmp_path / "base", a=torch.ones(2), b=torch.ones(3))
    tuned = _model(tmp_path / "tuned", a=torch.ones(2), b=torch.ones(3) * 1.5)
    assert check_tuned(tuned, base) == ["a"]


def test_a_tuned_model_that_equals_its_base_has_no_effect(tmp_path):
    base = _model(tmp_path / "base", a=torch.ones(2))
    with pytest.raises(NoEffectError, match="all 1 tensors equal"):
        check_tuned(_model(tmp_path / "tuned", a=torch.ones(2)), base)


def test_a_tuned_model_of_another_dtype_than_its_base_is_refused(tmp_path):
    base = _model(tmp_path / "base", a=torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(CheckpointError, match=r"found F32 \[2\], expected BF16 \[2\]"):
        check_tuned(_model(tmp_path / "tuned", a=torch.zeros(2)), base)


def test_a_copied_file_that_differs_is_refused(tmp_path):
    for name, text in (("base", "one"), ("tuned", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        check_same_files(tmp_path / "tuned", tmp_path / "base", ["config.json"])
