"""Families that no list names: what writes to the residual stream is found and proven, the edit of it in memory, on
disk and as an adapter is one; and what cannot be proven is refused with what was seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkeep.errors import CheckpointError, RecipeError
from alignkeep.inject.adapter_form import check_adaptable, write_adapter
from alignkeep.inject.config import InjectConfig
from alignkeep.inject.in_memory import edited
from alignkeep.inject.stage import inject, plan
from alignkeep.models.activations import writer_inputs
from alignkeep.models.adapters import attach_adapter
from alignkeep.models.architecture import _tokens, writers
from checkpoints import read_checkpoint, refused
from families import RECENT, TINY, WIDTH, write_tiny
from made_up import SpiralConfig, SpiralForCausalLM, WhirlConfig, WhirlForCausalLM
from test_families import TEXTS, Tiny, at_the_end, differing, load, loaded, logits, state, tiny_of, written

NO_ADAPTER = ("falcon_h1", "mamba2", "nemotron_h")  # PEFT does not adapt Mamba's out_proj in these


def check_edit(tiny: Tiny, folder: Path) -> None:
    """In memory the edit moves the model and is undone; on disk and as an adapter it says the same."""
    before, said = state(tiny.model), logits(tiny.model)
    with edited(tiny.writers, tiny.edits):
        wanted = logits(tiny.model)
    assert differing(before, state(tiny.model)) == set()
    assert (wanted - said).abs().max() > 0.1
    assert (logits(load(written(tiny, tiny.edits, folder / "out"))) - wanted).abs().max() <= 1e-6
    seen = writer_inputs(loaded(tiny), at_the_end(TEXTS), tiny.writers)
    assert all(len(seen[one.name]) == len(TEXTS) for one in tiny.writers if one.expert is None)
    if tiny.family in NO_ADAPTER:
        with pytest.raises(RecipeError, match=r"form: found adapter, of \S+\.out_proj, which PEFT does not adapt"):
            check_adaptable(tiny.model, tiny.writers)
        return
    check_adaptable(tiny.model, tiny.writers)
    write_adapter(tiny.folder, str(tiny.folder), tiny.writers, tiny.edits, folder / "adapter")
    adapted = attach_adapter(load(tiny.folder), folder / "adapter").eval()
    assert (logits(adapted) - wanted).abs().max() <= 1e-5 * (1 + wanted.abs().max())
    assert [one.name for one in writers(adapted)] == [one.name for one in tiny.writers]


@pytest.mark.parametrize("family", sorted(RECENT))
def test_a_recent_family_is_edited_in_memory_on_disk_and_as_an_adapter(family: str, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    check_edit(tiny_of(family, tmp_path / "model"), tmp_path)


def made_up(config: Any, model: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    made = model(config())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.3)
    made.save_pretrained(folder)
    return folder


def test_a_family_nobody_has_heard_of_works_by_structure_alone(tmp_path: Path) -> None:
    folder = made_up(SpiralConfig, SpiralForCausalLM, tmp_path / "model")
    model = load(folder)
    found = writers(model)
    assert [(one.place, one.parameter, one.inputs_first, one.scale) for one in found] == [
        entry
        for floor in range(3)
        for entry in (
            (f"floors.{floor}.gather.back", "weight", False, 0.5),
            (f"floors.{floor}.ponder", "home", True, 1.0),
        )
    ]
    draw = torch.Generator().manual_seed(3)
    tiny = Tiny("spiral", folder, model, found, torch.nn.functional.normalize(torch.randn(WIDTH).double(), dim=0))
    for one in found:
        tiny.alphas[one.name], tiny.rights[one.name] = 0.3, torch.randn(one.width, generator=draw)
    (tmp_path / "adapter").mkdir()
    check_edit(tiny, tmp_path)
    changed = differing(read_checkpoint(folder), read_checkpoint(tmp_path / "out"))
    assert changed == {f"floors.{n}.{name}" for n in range(3) for name in ("gather.back.weight", "ponder.home")}


def test_a_family_whose_proof_fails_is_refused_with_what_was_seen(tmp_path: Path) -> None:
    model = load(made_up(WhirlConfig, WhirlForCausalLM, tmp_path / "model"))
    with pytest.raises(CheckpointError, match=r"floors\.0 \(Turn\): found gather\.back, which moves the"):
        writers(model)


def test_several_streams_side_by_side_are_refused(tmp_path: Path) -> None:
    model = load(write_tiny(tmp_path / "model", "gemma3n_text"))
    with pytest.raises(CheckpointError, match=r"\(Gemma3nTextDecoderLayer\): found a block that takes \[4, 1, 7, 32\]"):
        writers(model)


def test_a_matrix_of_half_precision_is_proven_as_well(tmp_path: Path) -> None:
    model = load(write_tiny(tmp_path / "model", "gemma2"))
    names = [(one.name, len(one.norms)) for one in writers(model)]
    assert [(one.name, len(one.norms)) for one in writers(model.bfloat16())] == names
    assert model.dtype == torch.bfloat16


def test_a_model_may_have_several_ends_as_llama_3_does(tmp_path: Path) -> None:
    """Its config says eos_token_id: [128001, 128008, 128009], and none of them is among the tokens that are tried."""
    tiny = tiny_of("llama", tmp_path)
    tiny.model.config.eos_token_id = [1, 2, 3]
    assert not {1, 2, 3} & set(_tokens(tiny.model))
    assert [one.name for one in writers(tiny.model)] == [one.name for one in tiny.writers]


def test_a_quantised_folder_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model", "llama")
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(settings))
    config = InjectConfig(model=str(folder), harmful="h.jsonl", harmless="n.jsonl")
    with refused(CheckpointError, r"config\.json: quantization_config: found weights quantised by fp8", tmp_path):
        inject(config, out=tmp_path / "out")
    with pytest.raises(CheckpointError, match="fp8"):
        plan(config)


# ---- language models within models that see

_SEES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                         "image_size": 28, "patch_size": 14}  # fmt: skip
_QWEN_SEES = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": WIDTH}
_ROPE = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
_SHORT_ROPE = {**_ROPE, "mrope_section": [2, 1, 1]}
_IMAGES = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 58, "vision_end_token_id": 59}
WRAPPERS: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": TINY["gemma3_text"], "vision_config": _SEES, "mm_tokens_per_image": 4,
               "boi_token_index": 58, "eoi_token_index": 59, "image_token_index": 60},
    "llava": {"text_config": {"model_type": "llama", **TINY["llama"]},
              "vision_config": {"model_type": "clip_vision_model", **_SEES}, "image_token_index": 60},
    "mistral3": {"text_config": {"model_type": "mistral", **TINY["mistral"]},
                 "vision_config": {"model_type": "pixtral", **_SEES}, "image_token_index": 60},
    "qwen2_5_vl": {"text_config": {**TINY["qwen2"], "rope_parameters": _SHORT_ROPE},
                   "vision_config": _QWEN_SEES, **_IMAGES},
    "qwen3_vl": {"text_config": {**TINY["qwen3"], "rope_parameters": _ROPE},
                 "vision_config": {**_QWEN_SEES, "deepstack_visual_indexes": [1]}, **_IMAGES},
    "qwen3_5": {"text_config": RECENT["qwen3_5_text"], "vision_config": _QWEN_SEES, **_IMAGES},
}  # fmt: skip


@pytest.mark.parametrize("family", sorted(WRAPPERS))
def test_of_a_model_that_sees_the_language_part_is_edited_and_nothing_else(family: str, tmp_path: Path) -> None:
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(CONFIG_MAPPING[family](**WRAPPERS[family]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    found = writers(model)
    tiny = Tiny(family, folder, model, found, torch.nn.functional.normalize(torch.randn(WIDTH).double(), dim=0))
    for one in found:
        tiny.alphas[one.name], tiny.rights[one.name] = 0.3, torch.randn(one.width)
    with edited(tiny.writers, tiny.edits):
        wanted = logits(model)
    out = written(tiny, tiny.edits, tmp_path / "out")
    assert (logits(AutoModelForImageTextToText.from_pretrained(out).eval()) - wanted).abs().max() <= 1e-6
    changed = differing(read_checkpoint(folder), read_checkpoint(out))
    assert len(changed) == len(found)
    assert not any("vision" in name or "visual" in name for name in changed)
    (tmp_path / "adapter").mkdir()
    write_adapter(folder, str(folder), tiny.writers, tiny.edits, tmp_path / "adapter")
    adapted = attach_adapter(AutoModelForImageTextToText.from_pretrained(folder), tmp_path / "adapter").eval()
    assert (logits(adapted) - wanted).abs().max() <= 1e-5 * (1 + wanted.abs().max())
