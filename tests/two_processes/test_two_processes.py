"""What a tune computes under two processes equals one process (gloo on the CPU, dropout 0)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from alignkeep.train.config import TrainConfig
from alignkeep.train.stage import train

SCRIPT = Path(__file__).with_name("tune.py")
ADAPTER = "adapter_model.safetensors"
SETTINGS = {"batch_size": 4, "learning_rate": 1e-2, "epochs": 2, "load": {"device": "cpu"}}


def launched(script: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """The script under torchrun with two processes, as users start it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, str(script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> TrainConfig:
    """21 weighted examples in batches of 4: of the last batch one process has nothing."""
    data, weights = tmp_path / "data.jsonl", tmp_path / "weights.jsonl"
    words = ["sort", "bread", "numbers", "bike"]
    rows = [{"prompt": f"how to fix {n % 10} ?", "completion": " ".join(words[: 1 + n % 4])} for n in range(21)]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    lines = [json.dumps({"index": n, "weight": 0.5 + n % 3}) for n in range(21)]
    weights.write_text("\n".join(lines), encoding="utf-8")
    return TrainConfig(model=str(tiny_model), data=str(data), weights=str(weights), **SETTINGS)


def _losses_in(folder: Path) -> list[float]:
    lines = (folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_two_processes_learn_what_one_does(config, tmp_path):
    changes = {
        "lora": {"accumulate": 2},
        "full": {"method": "full"},
        "packed": {"max_length": 32, "trainer": {"packing": True}},
    }
    kinds = {name: TrainConfig(**{**config.model_dump(), **changed}) for name, changed in changes.items()}
    for name, kind in kinds.items():
        (tmp_path / f"{name}.json").write_text(kind.model_dump_json(), encoding="utf-8")
    ended = launched(SCRIPT, *(tmp_path / f"{name}.json" for name in kinds))
    assert ended.returncode == 0, ended.stderr[-2000:]
    for name, kind in kinds.items():
        one = train(kind, out=tmp_path / f"{name}.one")
        for rank in (0, 1):
            assert json.loads((tmp_path / f"{name}.rank{rank}.json").read_text()) == {"steps": one.steps, "world": 2}
        two = _losses_in(tmp_path / f"{name}.two")
        assert two == pytest.approx(_losses_in(one.folder), abs=1e-5)
        file = "model.safetensors" if name == "full" else ADAPTER
        parts = [load_file(tmp_path / f"{name}.{count}" / file) for count in ("one", "two")]
        assert max((parts[0][key] - parts[1][key]).abs().max().item() for key in parts[0]) < 1e-5
