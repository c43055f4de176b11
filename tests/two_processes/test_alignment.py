"""What an alignment learns under two processes is what one learns (gloo on the CPU), where sampling is not chance; and
one that was killed continues on the trajectory it was on."""

from __future__ import annotations

import json
from pathlib import Path

import alignment
import pytest
import torch
from safetensors.torch import load_file
from test_two_processes import ADAPTER

from alignkeep.align.config import AlignConfig
from alignkeep.align.stage import align
from command import side_by_side
from killed import killed


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


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_learn_what_one_does(accumulate, config, tmp_path):
    changes = {"accumulate": accumulate, "trainer": {"top_k": 1, "save_strategy": "no"}}
    config = AlignConfig(**{**config.model_dump(), **changes})
    (tmp_path / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    side_by_side(alignment.main, tmp_path / "config.json", tmp_path / "two", folder=tmp_path)
    one = align(config, out=tmp_path / "one")
    for rank in (0, 1):
        assert json.loads((tmp_path / f"two.rank{rank}.json").read_text()) == {"steps": one.steps, "world": 2}
    for ours, theirs in zip(_log(tmp_path / "one"), _log(tmp_path / "two"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    parts = [load_file(tmp_path / name / ADAPTER) for name in ("one", "two")]
    assert max((parts[0][key] - parts[1][key]).abs().max().item() for key in parts[0]) < 1e-5
    assert (tmp_path / "one" / "held_out.jsonl").read_bytes() == (tmp_path / "two" / "held_out.jsonl").read_bytes()


@pytest.mark.parametrize("method", ["grao", "grpo"])
def test_a_killed_alignment_continues_to_the_very_bytes_of_one_never_killed(method, config, tmp_path):
    config = config.model_copy(update={"method": method})
    (tmp_path / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    # The bar of the held-out prompts does not exist: a step is a step.
    killed(alignment.main, tmp_path / "config.json", tmp_path / "out", 6)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.partial" / "trainer" / "checkpoint-4" / "complete").exists()
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
