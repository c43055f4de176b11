"""AlignGuard under two processes: DDP and FSDP2 (gloo on the CPU, dropout 0) keep what one process keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import shard
import tune
from safetensors.torch import load_file

from alignkeep.testbed import sets
from alignkeep.testbed.stage import materialise
from alignkeep.train.config import TrainConfig
from alignkeep.train.stage import train
from command import side_by_side

ADAPTER = "adapter_model.safetensors"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def test_two_processes_keep_to_the_penalties_of_one(tmp_path: Path) -> None:
    """21 examples in batches of 4, two to a step: the last step is one batch, in which one process has nothing."""
    strengths = {"alignment": 1.0, "trust": 0.05, "collision": 0.1, "curvature": "running"}
    config = TrainConfig(
        model=str(materialise("models/aligned", tmp_path / "T")),
        data=write_rows(tmp_path / "data.jsonl", sets.rows("task_train")[:21]),
        method="alignguard",
        alignguard={"data": write_rows(tmp_path / "kept.jsonl", sets.rows("alignment")[:12]), **strengths},  # pyright: ignore[reportArgumentType]
        batch_size=4,
        accumulate=2,
        epochs=2,
        learning_rate=2e-3,
        load={"device": "cpu"},  # pyright: ignore[reportArgumentType]
    )
    (tmp_path / "guarded.json").write_text(config.model_dump_json(), encoding="utf-8")
    side_by_side(tune.main, tmp_path / "guarded.json", folder=tmp_path)
    one = train(config, out=tmp_path / "guarded.one")
    for rank in (0, 1):
        assert json.loads((tmp_path / f"guarded.rank{rank}.json").read_text()) == {"steps": 6, "world": 2}
    logs = [
        (folder / "training_log.jsonl").read_text().splitlines() for folder in (one.folder, tmp_path / "guarded.two")
    ]
    for ours, theirs in zip(*([json.loads(line) for line in log] for log in logs), strict=True):
        names = [name for name in ours if "alignguard/" in name]
        assert len(names) >= 6
        for name in ("loss", "grad_norm", *names):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-4, abs=1e-6), name
    parts = [load_file(tmp_path / f"guarded.{count}" / ADAPTER) for count in ("one", "two")]
    # Adam divides small gradients by their own size: a rounding there may be a hundredth of a step, never more.
    furthest = max((parts[0][key] - parts[1][key]).abs().max().item() for key in parts[0])
    assert furthest < 0.01 * config.learning_rate
    assert not list(tmp_path.rglob("subspaces*"))


@pytest.fixture(scope="module")
def sharded(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("sharded") / "seen.json"
    side_by_side(shard.main, tiny_model, out, folder=out.parent)
    return json.loads(out.read_text())


def test_of_a_model_in_shards_penalty_and_gradients_are_those_of_the_whole(sharded: dict[str, Any]) -> None:
    assert sharded["shards"] == 1.0
    found, expected = sharded["terms"]
    assert found == pytest.approx(expected, rel=1e-6)
    assert sharded["penalty"] < 1e-6
    assert sharded["with task"] < 1e-5


def test_a_look_at_the_penalty_before_sharding_changes_nothing(sharded: dict[str, Any]) -> None:
    assert sharded["looked at before"] < 1e-6


def test_the_probe_sees_in_shards_what_it_sees_of_the_whole_and_leaves_training_as_it_was(
    sharded: dict[str, Any],
) -> None:
    for found, expected in zip(*sharded["answers"], strict=True):
        assert len(found) > 3
        assert found == pytest.approx(expected, abs=1e-5)
    assert sharded["after a look"] < 1e-5
