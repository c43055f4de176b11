"""Merges in processes of their own: killed at any instant they end as one that was not, and they need little memory."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from alignkeep.checkpoint.rewrite import rewrite
from alignkeep.checkpoint.shards import JOURNAL
from alignkeep.merge.config import MergeConfig
from alignkeep.merge.edits import edits_of
from alignkeep.merge.inputs import read_models
from alignkeep.merge.linear import Linear
from alignkeep.merge.method import TensorMerge
from alignkeep.merge.sparsify import Magnitude
from alignkeep.merge.stage import merge
from alignkeep.merge.task_vectors import TaskVectors
from checkpoints import noise, results, write_adapter, write_checkpoint
from command import start, wait_until

SHARDS = 6


def merge_here(config: dict[str, object], out: Path, begun: Path) -> None:
    begun.touch()
    merge(MergeConfig.model_validate(config), out=out)


def journaled(work: Path) -> list[str]:
    """Shards that are said to be finished; a kill may have torn the last line."""
    text = (work / JOURNAL).read_text() if (work / JOURNAL).exists() else ""
    return [json.loads(line)["file"] for line in text.split("\n")[:-1]]


def test_a_merge_killed_at_any_instant_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """Kills are spread over the time that a merge takes; what was finished before one is not made again after it."""
    tensors = {f"layer{n}": noise(512, 1024, seed=n, dtype=torch.bfloat16) for n in range(4 * SHARDS)}
    base = write_checkpoint(tmp_path / "base", tensors, shards=SHARDS)
    moved = {name: (tensor.float() + noise(512, 1024, seed=99)).bfloat16() for name, tensor in tensors.items()}
    tuned = write_checkpoint(tmp_path / "tuned", moved, shards=SHARDS)
    config = {"base": str(base), "tuned": [str(tuned)], "method": "dare"}
    out, begun = tmp_path / "out", tmp_path / "begun"
    merge(MergeConfig.model_validate(config), out=tmp_path / "whole")
    child = start(merge_here, config, tmp_path / "another", begun)
    wait_until(begun.exists, child)
    started = time.monotonic()
    child.join()
    usual, draw = time.monotonic() - started, random.Random(0)
    expected, work, kills, kept = results(tmp_path / "whole"), out.with_name(".out.partial"), 0, 0
    while kills < 10 or (not kept and kills < 100):  # on a busy machine few get as far as a whole shard
        begun.unlink(missing_ok=True)
        child = start(merge_here, config, out, begun)
        wait_until(begun.exists, child)
        child.join(timeout=draw.uniform(0, usual))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        kills += child.exitcode != 0
        finished = {} if out.exists() else {name: os.stat(work / name).st_ino for name in journaled(work)}
        if not out.exists() and len(finished) < SHARDS - 1 and kills % 10:
            continue
        merge(MergeConfig.model_validate(config), out=out)
        assert results(out) == expected
        assert {name: os.stat(out / name).st_ino for name in finished} == finished, "what was finished is made again"
        assert not list(tmp_path.glob(".*"))
        kept += len(finished)
        shutil.rmtree(out)
    assert kept > 0


def peak_of(task: Callable[[], object]) -> int:
    """Bytes of anonymous memory that this process needs for the task at its worst, beyond what it had before."""

    def now() -> int:
        with open("/proc/self/status") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("RssAnon"))

    peak = before = now()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, now())

    watcher = threading.Thread(target=watch)
    watcher.start()
    task()
    done.set()
    watcher.join()
    return peak - before


def measure(pairs: list[tuple[Path, Path]], method: TensorMerge, told: Path) -> None:
    """The peaks of merging these pairs; one before them loads what is loaded once."""
    peaks: list[int] = []
    for base, tuned in (pairs[0], *pairs):
        edits = partial(edits_of, rule=lambda name: method)
        out = told.with_name("out")
        out.mkdir()
        models = read_models(str(base), [str(tuned)])
        peaks.append(peak_of(lambda: rewrite(models.entries, edits(models), out, workers=1)))  # noqa: B023
        shutil.rmtree(out)
    told.write_text(json.dumps(peaks[1:]))


def measured(pairs: list[tuple[Path, Path]], method: TensorMerge, root: Path) -> list[int]:
    child = start(measure, pairs, method, root / "peaks")
    child.join(timeout=120)
    return json.loads((root / "peaks").read_text())


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")


@needs_proc
@pytest.mark.parametrize("method", [Linear((0.4, 0.6)), TaskVectors((1.0,), (Magnitude(0.2),), consensus="sum")])
def test_memory_does_not_grow_with_a_tensor(method: TensorMerge, tmp_path: Path) -> None:
    """8 MB and 64 MB stored; held whole, the second would take 256 MB more as two models in float32."""
    numbers = noise(1 << 20, dtype=torch.bfloat16)

    def written(name: str, count: int, factor: float) -> Path:
        return write_checkpoint(tmp_path / f"{name}{count}", {"a": (factor * numbers).repeat(count)})

    pairs = [(written("base", count, 1.0), written("tuned", count, 1.5)) for count in (4, 32)]
    small, large = measured(pairs, method, tmp_path)
    assert large - small < 24e6


@needs_proc
def test_memory_does_not_grow_with_the_matrices_of_an_adapter(tmp_path: Path) -> None:
    """4 and 32 matrices (64, 16384), a change of which is 4 MB in float32: 112 MB more if all of them were kept."""
    pairs: list[tuple[Path, Path]] = []
    for count in (4, 32):
        base = write_checkpoint(
            tmp_path / f"base{count}", {f"m{n}.weight": noise(64, 16384, dtype=torch.bfloat16) for n in range(count)}
        )
        factors = {f"m{n}": (torch.ones(1, 16384), torch.ones(64, 1)) for n in range(count)}
        pairs.append((base, write_adapter(tmp_path / f"adapter{count}", base, factors)))
    few, many = measured(pairs, Linear((0.4, 0.6)), tmp_path)
    assert many - few < 24e6
