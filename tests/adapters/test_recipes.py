"""Every recipe of PEFT's LoRA that people use, made by PEFT itself: right in every verb, or refused by name.

Right is what the tuned model said in memory, before anything was saved: loaded to be evaluated (and folded in there),
merged at weight 1 into full weights, merged at weight 0.5 as an adapter, and taken by an injection (in memory and on
disk). A sample runs always, everything with `make test-adapters`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkeep.checkpoint.adapters import read_adapter
from alignkeep.errors import AlignkeepError
from alignkeep.inject.writing import edits_of, write_model
from alignkeep.merge.config import MergeConfig
from alignkeep.merge.stage import merge
from alignkeep.models.adapters import attach_adapter, fold_adapter, folded
from alignkeep.models.folders import tensor_entries
from alignkeep.progress import Silent
from conftest import build_tiny_model
from recipes import CELLS, RECIPES, build_adapter, build_base, load_base, logits

# What is refused, by a word of the message; all else is right. PEFT itself cannot do the cells of None.
EVERYWHERE = ("evaluate", "merge", "half", "inject")
_SHARED = "embeddings and head that differ"
_NO_SCALE = "not proportional to alpha"
REFUSED: dict[tuple[str, str], dict[str, str]] = {
    **{("untied", f"dora{rest}"): {"half": _NO_SCALE} for rest in ("", " rslora")},
    ("untied", "embeddings, dora"): {"half": _NO_SCALE},
    **{("untied", f"tokens{rest}"): {"half": _NO_SCALE} for rest in ("", " of the head")},
    **{("untied", f"starts: {start}"): {"half": _NO_SCALE} for start in ("pissa", "olora")},
    **{
        ("untied", f"starts: {start}"): dict.fromkeys(EVERYWHERE, "init_lora_weights")
        for start in ("pissa by iterations", "corda", "lora_ga", "loftq")
    },
    ("untied", "repeated layers"): dict.fromkeys(EVERYWHERE[1:], "layer_replication"),
    **{
        ("tied", name): {"merge": _SHARED, "inject": _SHARED}
        for name in ("a head", "embeddings", "both ends", "saved head", "saved embeddings", "saved ends")
    },
    ("tied", "embeddings, dora"): {"merge": _SHARED, "half": _NO_SCALE, "inject": _SHARED},
    **{
        ("tied", f"{name}, tying kept"): {"inject": "serve two modules"}
        for name in ("embeddings", "both ends")
    },
    ("tied", "tokens"): {"half": _NO_SCALE, "inject": "serve two modules"},
    ("tied", "tokens of the head"): {"merge": _SHARED, "half": _NO_SCALE, "inject": _SHARED},
    **{("gpt2", name): {"half": _NO_SCALE} for name in ("dora", "starts: pissa")},
    ("gpt2", "embeddings"): {"merge": _SHARED, "inject": _SHARED},
    ("gpt2", "tokens"): {"half": _NO_SCALE, "inject": "serve two modules"},
    ("qwen2", "lora bias without a bias"): dict.fromkeys(EVERYWHERE[1:], "no bias"),
    **{
        (base, "dora"): {"half": _NO_SCALE}
        for base in ("mixtral", "minimax", "qwen3 moe", "gpt_oss", "gemma3", "qwen3_5")
    },
    ("gemma3", "embeddings"): {"merge": _SHARED, "inject": _SHARED},
}  # fmt: skip
SAMPLE = [
    ("untied", "dora"), ("untied", "tokens"), ("untied", "starts: pissa"), ("untied", "starts: lora_ga"),
    ("tied", "embeddings"), ("tied", "both ends, tying kept"), ("tied", "saved embeddings"), ("gpt2", "lora bias"),
    ("gpt2", "dora"), ("mixtral", "all-linear"), ("gpt_oss", "experts"), ("gemma3", "all-linear"),
    ("nemotron_h", "a list"),
]  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT on tied weights, patterns, embeddings


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("bases")
    tokenizer = build_tiny_model(root / "tokenizer")
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            made[name] = build_base(name, root / name, tokenizer)
        return made[name]

    return find


def halfway(base: Path, merged: Path | None, adapter: Path) -> torch.Tensor:
    """What lies in the middle of base and tuned: the mean of their weights, or PEFT's adapter at half its scale."""
    if merged is not None:
        model, other = load_base(base), load_base(merged).state_dict()
        model.load_state_dict({name: tensor.lerp(other[name], 0.5) for name, tensor in model.state_dict().items()})
        return logits(model)
    from peft import PeftModel
    from peft.helpers import rescale_adapter_scale
    from peft.utils.other import ModulesToSaveWrapper

    tuned: Any = PeftModel.from_pretrained(load_base(base), str(adapter)).eval()
    for wrapper in [module for module in tuned.modules() if isinstance(module, ModulesToSaveWrapper)]:
        pairs = zip(wrapper.modules_to_save["default"].parameters(), wrapper.original_module.parameters(), strict=True)
        for own, stored in pairs:
            own.data = own.data.lerp(stored.data, 0.5)
    with rescale_adapter_scale(tuned, 0.5):
        return logits(tuned)


def verbs(base: Path, adapter: Path, work: Path) -> dict[str, Callable[[], list[torch.Tensor]]]:
    """What each verb makes of the adapter, as logits."""

    def evaluate() -> list[torch.Tensor]:
        model = attach_adapter(load_base(base), adapter).eval()
        found = [logits(model)]
        fold_adapter(model)
        return [*found, logits(model)]

    def merged() -> list[torch.Tensor]:
        merge(MergeConfig(base=str(base), tuned=(str(adapter),), weight=1), out=work / "merged")
        return [logits(load_base(work / "merged"))]

    def half() -> list[torch.Tensor]:
        merge(MergeConfig(base=str(base), tuned=(str(adapter),), weight=0.5, form="adapter"), out=work / "half")
        return [logits(attach_adapter(load_base(base), work / "half").eval())]

    def inject() -> list[torch.Tensor]:
        entries = tensor_entries(base, adapter=False)
        found = read_adapter(adapter, entries)
        found.refuse_untied()
        in_memory = logits(folded(attach_adapter(load_base(base), adapter), adapter).eval())
        (work / "injected").mkdir()
        write_model(base, entries, edits_of(entries, {}, found), work / "injected", progress=Silent())
        return [in_memory, logits(load_base(work / "injected"))]

    return {"evaluate": evaluate, "merge": merged, "half": half, "inject": inject}


def states_of(base: Path, settings: dict[str, Any], work: Path) -> dict[str, str]:
    """By verb: how far it is from the tuned model (right: within rounding), or why it refuses."""
    tuned = logits(build_adapter(base, work / "adapter", settings))
    assert (tuned - logits(load_base(base))).abs().max() > 0.05, "the recipe changes nothing"
    states: dict[str, str] = {}
    for verb, run in verbs(base, work / "adapter", work).items():
        try:
            found = run()
        except AlignkeepError as error:
            states[verb] = f"refused: {error}"
            continue
        middle = work / "merged" if states.get("merge") == "right" else None
        expected = tuned if verb != "half" else halfway(base, middle, work / "adapter")
        gap = max((one - expected).abs().max().item() for one in found)
        states[verb] = "right" if gap <= 2e-4 * (1 + expected.abs().max().item()) else f"wrong by {gap:.3g}"
    return states


def check(cell: tuple[str, str], base_of: Callable[[str], Path], work: Path) -> None:
    name, recipe = cell
    states = states_of(base_of(name), RECIPES[name][recipe], work)
    wanted = REFUSED.get(cell, {})
    for verb, state in states.items():
        if verb in wanted:
            assert state.startswith("refused"), f"{verb}: {state}"
            assert wanted[verb] in state, f"{verb}: {state}"
        else:
            assert state == "right", f"{verb}: {state}"


@pytest.mark.parametrize("cell", SAMPLE, ids=" - ".join)
def test_a_recipe_is_right_in_every_verb_or_refused_by_name(
    cell: tuple[str, str], base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    check(cell, base_of, tmp_path)


@pytest.mark.slow_adapters
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell not in SAMPLE], ids=" - ".join)
def test_every_recipe_is_right_in_every_verb_or_refused_by_name(
    cell: tuple[str, str], base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    check(cell, base_of, tmp_path)
