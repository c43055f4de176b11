"""A GGUF file as a model: the same numbers as its folder, and one line for each file that cannot be read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkeep.errors import CheckpointError
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.models.folders import resolve
from alignkeep.models.loading import load_model

WIDTH, HEADS, BLOCKS, INNER = 32, 4, 2, 64
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tensors(vocabulary: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A random Llama in GGUF's names; matrices are (out, in) as everywhere."""
    draw = np.random.default_rng(seed)
    shapes = {"token_embd.weight": (vocabulary, WIDTH), "output_norm.weight": (WIDTH,)}
    for block in range(BLOCKS):
        shapes |= {
            f"blk.{block}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH),
                "attn_v": (WIDTH, WIDTH), "attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH),
                "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER),
            }.items()
        }  # fmt: skip
    return {name: draw.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(file: Path, *, architecture: str = "llama", quantised: bool = False) -> dict[str, np.ndarray]:
    """A tiny model with a byte-level tokenizer; returns its tensors."""
    import gguf

    writer = gguf.GGUFWriter(file, architecture)
    letters = [chr(code) for code in (*range(33, 127), 288)]  # printable bytes, and the byte-level space
    words = ["<|end|>", "<|user|>", "<|assistant|>", *letters, "an", "th", "<|endoftext|>"]
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3, *([1] * (len(words) - 4)), 3])
    writer.add_token_merges(["a n", "t h"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    made = tensors(len(words))
    for name, tensor in made.items():
        if quantised and tensor.ndim > 1:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKEEP_CACHE", str(tmp_path / "cache"))


def test_the_numbers_are_those_of_the_file_and_the_second_time_nothing_is_converted(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    wanted = write_gguf(file)
    loaded: Any = load_model(str(file))
    stored = loaded.model.state_dict()
    assert np.array_equal(stored["model.embed_tokens.weight"].numpy(), wanted["token_embd.weight"])
    down = stored["model.layers.1.mlp.down_proj.weight"].numpy()
    assert np.array_equal(down, wanted["blk.1.ffn_down.weight"])
    assert loaded.tokenizer.chat_template == TEMPLATE
    (folder,) = (tmp_path / "cache" / "gguf").iterdir()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert fingerprint_model(str(file)) == fingerprint_model(str(folder))
    load_model(str(file))
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_quantised_numbers_are_dequantised_as_gguf_does(tmp_path: Path) -> None:
    import gguf
    import torch

    file = tmp_path / "tiny.gguf"
    made = write_gguf(file, quantised=True)
    kind = gguf.GGMLQuantizationType.Q8_0
    wanted = gguf.dequantize(gguf.quantize(made["blk.0.ffn_up.weight"], kind), kind)
    stored: Any = load_model(str(file)).model.state_dict()["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(stored, torch.from_numpy(wanted).to(torch.bfloat16).float())


def test_a_folder_that_a_kill_left_half_made_is_made_again(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    load_model(str(file))
    (folder,) = (tmp_path / "cache" / "gguf").iterdir()
    (folder / "converted.json").unlink()
    (folder / "model.safetensors").write_bytes(b"torn")
    assert load_model(str(file)).model.num_parameters() > 0


@pytest.mark.parametrize("keep", [4, 100, 3000, -1])
def test_a_file_that_is_cut_short_is_named(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"tiny\.gguf: found a file that"):
        load_model(str(file))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_what_only_has_the_name_of_a_gguf_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "not.gguf"
    file.write_text("hello")
    with pytest.raises(CheckpointError, match="does not begin as GGUF"):
        load_model(str(file))


def test_an_architecture_that_the_reader_does_not_know_is_refused_with_what_to_give_instead(tmp_path: Path) -> None:
    file = tmp_path / "odd.gguf"
    write_gguf(file, architecture="nobodys")
    with pytest.raises(CheckpointError, match=r"transformers cannot read.*give the original"):
        load_model(str(file))


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"alignkeep\[gguf\]"):
        load_model(str(file))


def test_a_revision_of_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    with pytest.raises(CheckpointError, match="revision"):
        resolve(str(file), "main")
