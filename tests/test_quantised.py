"""A model packed into 4 bits while it is loaded: it answers, carries an adapter that learns, and is never written.

bitsandbytes stands beside the environment (`make test` puts it there), so the work is done in processes of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alignkeep.errors import CheckpointError, RecipeError
from alignkeep.models.config import LoadConfig
from alignkeep.models.loading import check_packing, load_model
from alignkeep.testbed import sets
from alignkeep.testbed.stage import materialise
from alignkeep.train.config import TrainConfig
from alignkeep.train.plan import plan_tune as plan
from conftest import build_tiny_model

BESIDE = Path(f"{sys.prefix}-quant")
LOOK = """
import json, sys, torch
from alignkeep.models.config import GenerationConfig, LoadConfig
from alignkeep.models.generation import generate_answers
from alignkeep.models.loading import load_model
from alignkeep.types import Message, Prompt
folder, packing = sys.argv[1:]
loaded = load_model(folder, LoadConfig(device="cpu", quantization=packing or None))
prompts = [Prompt((Message("user", text),)) for text in ("how to sort bread", "fix the bike now please", "numbers")]
one = [generate_answers(loaded, [p], GenerationConfig(max_new_tokens=6))[0].text for p in prompts]
ids = torch.arange(1, 13)[None]
kinds = sorted({type(m).__name__ for m in loaded.model.modules() if "Linear" in type(m).__name__})
print(json.dumps({
    "kinds": kinds, "alone": one, "together": [a.text for a in generate_answers(loaded, prompts, GenerationConfig(max_new_tokens=6))],
    "bytes": loaded.model.get_memory_footprint(), "logits": loaded.model(ids).logits[0].tolist(),
}))
"""  # noqa: E501


def run(*command: str) -> str:
    """A Python process that has bitsandbytes."""
    assert BESIDE.is_dir(), f"{BESIDE} is not there: make test puts bitsandbytes into it"
    paths = os.pathsep.join(filter(None, [*sys.path, str(BESIDE)]))
    named = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([sys.executable, *command], env=named, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("quantised") / "model", seed=0)


@pytest.fixture(scope="module")
def seen(model: Path) -> dict[str, dict[str, object]]:
    return {packing: json.loads(run("-c", LOOK, str(model), packing)) for packing in ("", "nf4")}


def test_linear_layers_are_packed_and_answers_do_not_depend_on_their_neighbours(seen):
    assert seen[""]["kinds"] == ["Linear"]
    assert seen["nf4"]["kinds"] == ["Linear", "Linear4bit"]  # the head stays
    assert seen["nf4"]["alone"] == seen["nf4"]["together"]
    assert seen["nf4"]["bytes"] < seen[""]["bytes"]


def test_its_numbers_are_those_of_the_model_up_to_four_bits(seen):
    plain, packed = (torch.tensor(seen[packing]["logits"]) for packing in ("", "nf4"))
    off = (packed - plain).norm() / plain.norm()
    assert 0.001 < off < 0.2  # packed indeed, and still this model


@pytest.mark.parametrize("method", ["lora", "alignguard"])
def test_an_adapter_learns_over_a_packed_base(tmp_path, method):
    """The adapter moves, the loss falls, and the base's file is what it was."""
    base = materialise("models/aligned", tmp_path / "T")
    files = {"data": sets.rows("task_train")[:64], "kept": sets.rows("alignment")[:12]}
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    before = (base / "model.safetensors").read_bytes()
    kept = [] if method == "lora" else ["--set", f"defence.data={tmp_path / 'kept.jsonl'}"]
    steps = ["--set", "trainer.max_steps=6", "--set", "learning_rate=3e-3"]
    command = ["train", "--model", str(base), "--data", str(tmp_path / "data.jsonl"), "--method", method, "--quiet"]
    out = ["--set", "load.quantization=nf4", "--device", "cpu", "--out", str(tmp_path / "out")]
    run("-m", "alignkeep", *command, *kept, *steps, *out)
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(adapter[name].abs().max() > 0 for name in adapter if "lora_B" in name)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "training_log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert (base / "model.safetensors").read_bytes() == before


def test_a_plan_knows_what_packing_saves(model, tmp_path, monkeypatch):
    """Of the plan's bytes the linear layers' shrink to 4.127 bits a number; nothing else does."""
    monkeypatch.setattr("alignkeep.train.prepare.check_packing", lambda *_: None)
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "how to fix it", "completion": "bread"}))
    config = TrainConfig(model=str(model), data=str(tmp_path / "data.jsonl"), load={"device": "cpu"})  # pyright: ignore[reportArgumentType]
    packed = TrainConfig(**{**config.model_dump(), "load": {"device": "cpu", "quantization": "nf4"}})
    loaded = load_model(str(model)).model
    head = loaded.get_output_embeddings()
    linear = [one for one in loaded.modules() if isinstance(one, torch.nn.Linear) and one is not head]
    numbers = sum(one.weight.numel() for one in linear)
    plain, less = (int(str(plan(one)["memory_bytes"])) for one in (config, packed))
    assert plain - less == pytest.approx(numbers * (4 - 4.127 / 8), abs=2)


def test_what_cannot_be_packed_is_refused(tiny_model, tmp_path, monkeypatch):
    wanted = LoadConfig(quantization="nf4")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"no package to quantise with.*alignkeep\[quant\]"):
        check_packing(tiny_model, wanted)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(CheckpointError, match="quantised already"):
        check_packing(tmp_path, wanted)
    monkeypatch.undo()
    monkeypatch.setattr("alignkeep.train.prepare.check_packing", lambda *_: None)
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "how to fix it", "completion": "bread"}))
    config = TrainConfig(
        model=str(tiny_model), data=str(tmp_path / "data.jsonl"), method="full", load={"quantization": "nf4"}
    )  # pyright: ignore[reportArgumentType]
    with pytest.raises(RecipeError, match=r"nf4, and method full.*take method lora"):
        plan(config)


@pytest.mark.parametrize("verb", ["merge", "inject", "align"])
def test_verbs_that_need_the_numbers_themselves_refuse_packed_ones(tiny_model, verb):
    """A sweep over packed weights measured something else, and ended well."""
    from alignkeep.align.config import AlignConfig
    from alignkeep.align.prepare import prepare as prepare_align
    from alignkeep.inject.config import InjectConfig
    from alignkeep.inject.prepare import prepare as prepare_inject
    from alignkeep.merge.config import MergeConfig
    from alignkeep.merge.prepare import prepare as prepare_merge

    load, model = {"quantization": "nf4"}, str(tiny_model)
    verbs = {
        "merge": lambda: prepare_merge(MergeConfig(base=model, tuned=(model,), load=load)),
        "inject": lambda: prepare_inject(InjectConfig(model=model, harmful="a", harmless="b", load=load)),
        "align": lambda: prepare_align(AlignConfig(model=model, data="a", reward="testbed", load=load)),
    }
    with pytest.raises(
        RecipeError, match=r"load\.quantization: found nf4, for .*, expected weights as they are stored"
    ):
        verbs[verb]()
