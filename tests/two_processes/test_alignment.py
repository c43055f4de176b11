"""What an alignment learns under two processes is what one learns (gloo on the CPU), where sampling is not chance; and
one that was killed continues on the trajectory it was on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_two_processes import ADAPTER, launched

from alignkeep.align.config import AlignConfig
from alignkeep.align.stage import align

SCRIPT = Path(__file__).with_name("alignment.py")


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> AlignConfig:
    """12 prompts in steps of 4, each with 2 samples, and 5 held-out ones."""
    words = ["sort", "bread", "numbers", "bike"]
    for name, first, count in (("data", 0, 12), ("held_out", 12, 5)):
        rows = [
            {"prompt": f"how to fix {number % 10} {number // 10} ?", "reference": " ".join(words[: 1 + number % 4])}
            for number in range(first, first + count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return AlignConfig.model_validate(
        {
            "model": str(tiny_model), "data": str(tmp_path / "data.jsonl"), "reward": "rewards:overlap",
            "held_out": {"data": str(tmp_path / "held_out.jsonl"), "every": 3}, "batch_size": 4, "epochs": 3,
            "learning_rate": 1e-2, "sampling": {"group": 2, "max_new_tokens": 6}, "load": {"device": "cpu"},
            "trainer": {"save_steps": 4},
        }
    )  # fmt: skip


def _log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]


def _environment() -> dict[str, str]:
    here = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    paths = os.pathsep.join(filter(None, here))
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": paths,
    }


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_learn_what_one_does(accumulate, config, tmp_path):
    changes = {"accumulate": accumulate, "trainer": {"top_k": 1, "save_strategy": "no"}}
    config = AlignConfig(**{**config.model_dump(), **changes})
    (tmp_path / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    ended = launched(SCRIPT, tmp_path / "config.json", tmp_path / "two", environment=_environment())
    assert ended.returncode == 0, ended.stderr[-2000:]
    one = align(config, out=tmp_path / "one")
    for rank in (0, 1):
        assert json.loads((tmp_path / f"two.rank{rank}.json").read_text()) == {"steps": one.steps, "world": 2}
    for ours, theirs in zip(_log(tmp_path / "one"), _log(tmp_path / "two"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    parts = [load_file(tmp_path / name / ADAPTER) for name in ("one", "two")]
    assert max((parts[0][key] - parts[1][key]).abs().max().item() for key in parts[0]) < 1e-5
    assert (tmp_path / "one" / "held_out.jsonl").read_bytes() == (tmp_path / "two" / "held_out.jsonl").read_bytes()


@pytest.mark.parametrize("method", ["grao", "grpo"])
def test_a_killed_alignment_continues_to_the_very_bytes_of_one_never_killed(method, config, tmp_path, monkeypatch):
    config = config.model_copy(update={"method": method})
    (tmp_path / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    # The bar of the held-out prompts does not exist: a step is a step.
    command = [sys.executable, str(SCRIPT), str(tmp_path / "config.json"), str(tmp_path / "out"), "6"]
    ended = subprocess.run(command, env=_environment(), capture_output=True, timeout=600)
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.partial" / "trainer" / "checkpoint-4" / "complete").exists()
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result, whole = (align(config, out=tmp_path / name) for name in ("out", "whole"))
    finally:
        torch.set_num_threads(threads)
    for name in (ADAPTER, "training_log.jsonl", "held_out.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert result.steps == whole.steps == 9
    assert result.ras == whole.ras
