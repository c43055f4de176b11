"""docs/models.md says what the verbs do: a sample of it, tried again. All of it is `make test-families`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from families.build import kinds, tiny_config
from families.cells import VERBS, examine
from families.page import page, read

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
# Of each kind of architecture one, and of each verb some: dense, experts, wrappers of a vision tower, state spaces.
SAMPLE = {
    "llama": ("inject",),
    "qwen3": ("merge adapter",),
    "glm4": ("inject",),  # it has several ends
    "gemma2": ("train full",),
    "gemma3": ("evaluate", "train full"),
    "llava": ("train lora",),
    "qwen3_5": ("train full",),
    "qwen2_5_vl": ("alignguard",),
    "mistral3": ("train full",),
    "mixtral": ("merge model",),
    "granitemoe": ("train lora",),
    "phimoe": ("train lora",),
    "llama4_text": ("train lora",),
    "falcon_h1": ("alignguard",),
    "mamba2": ("train full",),
    "bert": ("evaluate",),
    "rwkv": ("evaluate",),
    "git": ("alignguard",),
    "reformer": ("train lora",),
}


@pytest.mark.parametrize("kind", SAMPLE)
def test_the_page_says_what_a_verb_does_with_a_family(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = examine(kind, tiny_model, tmp_path / kind, SAMPLE[kind])
    finally:
        torch.set_num_threads(threads)
    told = read(PAGE.read_text(encoding="utf-8"))[kind]
    assert {verb: cell.state for verb, cell in found.items()} == {verb: told[verb] for verb in SAMPLE[kind]}, found


def test_the_sample_tries_every_verb() -> None:
    assert {verb for verbs in SAMPLE.values() for verb in verbs} == VERBS.keys()


def test_every_family_of_transformers_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [kind for kind in kinds() if f"\n| {kind} |" not in text] == []


def test_no_cell_of_the_page_is_a_failure() -> None:
    told = read(PAGE.read_text(encoding="utf-8"))
    assert not {(kind, verb) for kind, cells in told.items() for verb, state in cells.items() if state == "failure"}


def test_a_page_is_read_back() -> None:
    cells = {verb: ["right", ""] for verb in VERBS}
    found = {"a": {**cells, "inject": ["refused", "found a, expected b"]}, "b": {"unbuilt": "no"}}
    assert read(page(found)) == {"a": {**dict.fromkeys(VERBS, "right"), "inject": "refused"}}


def test_a_tiny_config_has_each_kind_of_layer_once() -> None:
    assert set(tiny_config("qwen3_next").layer_types) == {"linear_attention", "full_attention"}
