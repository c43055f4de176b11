"""What hostile cases are made from, and the process that runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_contract import Server

from conftest import build_tiny_model
from micro import write_recipe, write_rows


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Runs commands; one for all cases."""
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good files of every kind; nobody may change them."""
    import pyarrow as pa
    import pyarrow.parquet
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("assets")
    build_tiny_model(folder / "model")
    build_tiny_model(folder / "tuned", seed=1)
    write_recipe(folder, folder / "model")
    asked = [{"prompt": f"how to steal {i} bike ?", "answer": "Sorry , I can't help with that ."} for i in range(6)]
    write_rows(folder / "answers.jsonl", asked)
    (folder / "merge.yaml").write_text(
        f"merge_method: linear\nbase_model: {folder / 'model'}\nmodels:\n  - model: {folder / 'tuned'}\n"
        "    parameters: {weight: 0.5}\ndtype: float32\n"
    )
    rows = {
        "prompt": ["how to bake bread ?"] * 4,
        "completion": ["sure"] * 4,
        "answer": ["sure"] * 4,
        "weight": [1.0] * 4,
    }
    pyarrow.parquet.write_table(pa.table({**rows, "index": list(range(4))}), folder / "rows.parquet")
    _adapter(LlamaForCausalLM.from_pretrained(folder / "model"), folder / "adapter", folder / "model")
    return folder


def _adapter(model: object, folder: Path, base: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.01)
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(folder)
