"""Writing an injected checkpoint beside `cp -r` and `sync`: time and peak anonymous memory, in one run.

    python benchmarks/bench_inject.py [--work DIR] [--rounds 3]

The checkpoint is that of bench_merge.py: 1.7 GB in bfloat16, four shards. Direction, right factors and strength are
given, so that no model is loaded; imports are left out, reading the headers, hashing, checking and flushing to the disk
are not. Every round is a process of its own; the two take turns, the table gives medians.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_merge import LAYERS, cleared, shapes, timed, write_pair


def inject(base: Path, out: Path) -> None:
    """One round; prints its seconds as JSON."""
    import numpy as np

    from alignkeep.checkpoint.files import flush_tree
    from alignkeep.inject.writing import Factors, edits_of, write_model
    from alignkeep.models.folders import tensor_entries

    started = time.perf_counter()
    entries = tensor_entries(base, adapter=False)
    draw = np.random.default_rng(0)
    factors = {
        name: {0: Factors(*(draw.standard_normal(size).astype(np.float32) * 0.03 for size in entry.shape))}
        for name, entry in entries.items()
        if name.endswith(("o_proj.weight", "down_proj.weight"))
    }
    out.mkdir()
    written, equal = write_model(base, entries, edits_of(entries, factors), out)
    flush_tree(out)
    changed = sum(tensor.change == "changed" for tensor in written)
    if equal or changed != len(factors):
        raise SystemExit(f"{changed} tensors changed of {len(factors)}")
    print(json.dumps({"seconds": time.perf_counter() - started, "changed": changed}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where the checkpoint is made and kept (default: a temporary folder)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", nargs=2, type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.once:
        inject(*chosen.once)
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        base, _ = write_pair(work / "1.7-GB", shapes(LAYERS), LAYERS)
        compare(base, work, chosen.rounds)


def compare(base: Path, work: Path, rounds: int) -> None:
    copied, edited, peaks = [], [], []
    for _ in cleared(work / "out", rounds):
        shutil.rmtree(work / "copy", ignore_errors=True)
        copied.append(timed(["cp", "-r", str(base), str(work / "copy")]).flushed)
        shutil.rmtree(work / "copy")
        command = [sys.executable, __file__, "--once", str(base), str(work / "out")]
        peaks.append(timed(command).peak)
        shutil.rmtree(work / "out")
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        edited.append(json.loads(done.stdout)["seconds"])
    ratio = statistics.median(mine / copy for mine, copy in zip(edited, copied, strict=True))
    print("| cp -r and sync | inject | ratio | peak anonymous memory |\n| --- | --- | --- | --- |")
    print(
        f"| {statistics.median(copied):.2f} s | {statistics.median(edited):.2f} s | {ratio:.2f} | {max(peaks):.0f} MB |"
    )


if __name__ == "__main__":
    main()
