"""A tune that is killed and started again ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from alignkeep.train.config import TrainConfig
from alignkeep.train.stage import train
from killed import killed, tune

ADAPTER = "adapter_model.safetensors"


def test_a_killed_tune_continues_to_the_very_bytes_of_one_never_killed(tiny_model, tmp_path):
    words = ["sort", "bread", "numbers", "bike"]
    rows = [{"prompt": f"how to fix {n % 10} ?", "completion": " ".join(words[: 1 + n % 4])} for n in range(22)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = TrainConfig(
        model=str(tiny_model),
        data=str(tmp_path / "data.jsonl"),
        batch_size=4,
        epochs=3,
        learning_rate=1e-2,
        lora={"dropout": 0.1},
        load={"device": "cpu"},
        trainer={"save_steps": 4},
    )
    killed(tune, config, tmp_path / "out", 11)
    assert not (tmp_path / "out").exists()
    kept = tmp_path / ".out.partial" / "trainer" / "checkpoint-8"
    assert (kept / "trainer_state.json").exists()
    # A kill while a checkpoint is being written leaves a part of it.
    torn = kept.with_name("checkpoint-10")
    torn.mkdir()
    (torn / "trainer_state.json").write_text("{")
    # Threads decide the order of sums: the same number as in the killed process.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = train(config, out=tmp_path / "out")
        whole = train(config, out=tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "out" / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()
    assert result.log.read_bytes() == whole.log.read_bytes()
    assert result.steps == 18


DAMAGES: dict[str, tuple[Callable[[Path], object], int]] = {  # and the step that is gone on from
    "a flipped byte of the optimizer": (lambda trainer: flip(trainer / "checkpoint-8" / "optimizer.pt"), 4),
    "no state of the random numbers": (lambda trainer: (trainer / "checkpoint-8" / "rng_state.pth").unlink(), 4),
    "weights cut short": (lambda trainer: os.truncate(trainer / "checkpoint-8" / ADAPTER, 900), 4),
    "garbage in every state": (
        lambda trainer: [file.write_bytes(b"\0" * 50) for file in trainer.glob("*/trainer_state.json")],
        0,
    ),
}


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_tune_whose_checkpoints_were_damaged_after_a_kill_ends_in_the_same_bytes(tiny_model, tmp_path, caplog):
    rows = [{"prompt": f"how to fix {n} ?", "completion": "sort bread numbers"} for n in range(9)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = TrainConfig(
        model=str(tiny_model),
        data=str(tmp_path / "data.jsonl"),
        batch_size=2,
        learning_rate=1e-2,
        lora={"dropout": 0.1},
        load={"device": "cpu"},
        trainer={"save_steps": 4, "max_steps": 10},
    )
    killed(tune, config, tmp_path / "out", 9)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = train(config, out=tmp_path / "whole")
        for number, (spoil, step) in enumerate(DAMAGES.values()):
            shutil.copytree(tmp_path / ".out.partial", tmp_path / f".{number}.partial")
            spoil(tmp_path / f".{number}.partial" / "trainer")
            caplog.clear()
            steps = Steps()
            result = train(config, out=tmp_path / str(number), progress=steps)
            assert steps.first == (step or 1), number
            assert "is made again" in caplog.text
            assert (tmp_path / str(number) / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()
            assert result.log.read_bytes() == whole.log.read_bytes()
    finally:
        torch.set_num_threads(threads)


class Steps:
    """Progress that remembers by how much it advanced first."""

    def __init__(self) -> None:
        self.first = 0

    def start(self, label: str, total: int | None) -> None:
        pass

    def advance(self, n: int = 1, note: str = "") -> None:
        self.first = self.first or n

    def done(self) -> None:
        pass
