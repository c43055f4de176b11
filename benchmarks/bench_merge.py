"""Merging whole checkpoints: time and peak memory beside mergekit and plain copying, in one run.

    python benchmarks/bench_merge.py --mergekit ENV/bin/mergekit-yaml [--work DIR] [--rounds 3] [--methods linear,...]
    python benchmarks/bench_merge.py --memory     # ours alone: a checkpoint four times as large, and one 2 GB tensor

Whole processes are timed, imports included, until the merge is on the disk: alignkeep flushes what it writes itself,
mergekit leaves that to the system, so that `sync` follows it (and us); its time without that stands beside it. The two
take turns, the table gives medians. Memory is the peak of anonymous pages (RssAnon), sampled every 10 ms: mapped
files do not count, for either. mergekit lives in an environment of its own: pip install mergekit==0.1.5.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

WIDTH, INNER, LAYERS, WORDS = 1536, 5504, 22, 32000  # 864 M numbers, 1.7 GB in bfloat16
SHARD_BYTES = 450_000_000
PEER = {
    "linear": "merge_method: linear\nmodels:\n  - {{model: {base}, parameters: {{weight: 0.4}}}}\n"
    "  - {{model: {tuned}, parameters: {{weight: 0.6}}}}\n",
    "slerp": "merge_method: slerp\nbase_model: {base}\nmodels:\n  - {{model: {base}}}\n  - {{model: {tuned}}}\n"
    "parameters: {{t: 0.6}}\n",
    "ties": "merge_method: ties\nbase_model: {base}\nmodels:\n"
    "  - {{model: {tuned}, parameters: {{weight: 1, density: 0.2}}}}\nparameters: {{lambda: 0.6}}\n",
    "dare": "merge_method: dare_linear\nbase_model: {base}\nmodels:\n"
    "  - {{model: {tuned}, parameters: {{weight: 1, density: 0.5}}}}\nparameters: {{lambda: 0.6}}\n",
}


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """A Llama's tensors by name."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, WIDTH)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for name in ("q", "k", "v", "o"):
            found[f"{at}.self_attn.{name}_proj.weight"] = (WIDTH, WIDTH)
        found |= {f"{at}.mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        found[f"{at}.mlp.down_proj.weight"] = (WIDTH, INNER)
        found |= {f"{at}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    return {**found, "model.norm.weight": (WIDTH,), "lm_head.weight": (WORDS, WIDTH)}


def write_pair(folder: Path, tensors: dict[str, tuple[int, ...]], layers: int) -> tuple[Path, Path]:
    """Base and tuned checkpoints of random bfloat16 numbers, in shards; kept where they are there already."""
    base, tuned = folder / "base", folder / "tuned"
    if (folder / "ready").exists():
        return base, tuned
    draw = torch.Generator().manual_seed(0)
    noise, change = (torch.randn(1 << 27, generator=draw) for _ in range(2))
    for path, scale in ((base, 0.0), (tuned, 0.002)):
        path.mkdir(parents=True, exist_ok=True)
        numbers = (0.02 * noise + scale * change).bfloat16()
        write_shards(path, tensors, numbers)
        config = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "vocab_size": WORDS,
            "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 16,
            "num_key_value_heads": 16, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        }  # fmt: skip
        (path / "config.json").write_text(json.dumps(config))
    (folder / "ready").touch()
    return base, tuned


def write_shards(path: Path, tensors: dict[str, tuple[int, ...]], numbers: torch.Tensor) -> None:
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = at = 0
    for name, shape in tensors.items():
        count = torch.Size(shape).numel()
        if size and size + 2 * count > SHARD_BYTES:
            shards.append({})
            size = 0
        at = (at + 7919) % 10_000_019  # another stretch of the numbers for every tensor
        repeated = (
            numbers[at:].repeat(count // (numbers.numel() - at) + 1) if count > numbers.numel() - at else numbers[at:]
        )
        shards[-1][name] = repeated[:count].reshape(shape).clone()
        size += 2 * count
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, path / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


class Timing(NamedTuple):
    """Seconds until the process ended and until everything was on the disk; peak anonymous megabytes."""

    process: float
    flushed: float
    peak: float


def timed(command: list[str]) -> Timing:
    """Of a command, its children included. What others have written is flushed first."""
    os.sync()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{said.read().decode()[-3000:]}")
    os.sync()
    return Timing(seconds, time.perf_counter() - started, peak / 1000)


def anonymous(pid: int) -> int:
    """Anonymous kilobytes of a process and its children."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)
    return own + sum(anonymous(int(child)) for child in children)


def ours(base: Path, tuned: Path, method: str, out: Path) -> list[str]:
    options = ["--density", {"ties": "0.2", "dare": "0.5"}[method]] if method in ("ties", "dare") else []
    verb = [sys.executable, "-m", "alignkeep", "merge", str(base), str(tuned)]
    return [*verb, "--method", method, *options, "--weight", "0.6", "--quiet", "--out", str(out)]


def theirs(mergekit: str, base: Path, tuned: Path, method: str, out: Path, work: Path) -> list[str]:
    recipe = work / f"{method}.yml"
    recipe.write_text(PEER[method].format(base=base, tuned=tuned) + "dtype: bfloat16\n")
    return [mergekit, str(recipe), str(out), "--quiet"]


def compare(chosen: argparse.Namespace, base: Path, tuned: Path, work: Path) -> None:
    copied = [timed(["cp", "-r", str(base), str(work / "copy")]).flushed for _ in cleared(work / "copy", chosen.rounds)]
    print(f"cp -r and sync: {statistics.median(copied):.2f} s", flush=True)
    print("| method | alignkeep s | mergekit s | ratio | mergekit s without sync | alignkeep MB | mergekit MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for method in chosen.methods.split(","):
        mine, peers = [], []
        for _ in range(chosen.rounds):
            out = work / "out"
            shutil.rmtree(out, ignore_errors=True)
            mine.append(timed(ours(base, tuned, method, out)))
            shutil.rmtree(out)
            if chosen.mergekit:
                peers.append(timed(theirs(chosen.mergekit, base, tuned, method, out, work)))
        own = statistics.median(one.flushed for one in mine)
        cells = [f"{own:.2f}", "-", "-", "-"]
        if peers:
            peer = statistics.median(one.flushed for one in peers)
            ratio = statistics.median(theirs.flushed / ours.flushed for theirs, ours in zip(peers, mine, strict=True))
            cells = [f"{own:.2f}", f"{peer:.2f}", f"{ratio:.1f}", f"{statistics.median(p.process for p in peers):.2f}"]
        cells += [f"{max(one.peak for one in side):.0f}" if side else "-" for side in (mine, peers)]
        print(f"| {method} | " + " | ".join(cells) + " |", flush=True)


def cleared(folder: Path, rounds: int) -> Iterator[int]:
    """Counts to `rounds`, removing `folder` before each and after the last."""
    for number in range(rounds):
        shutil.rmtree(folder, ignore_errors=True)
        yield number
    shutil.rmtree(folder, ignore_errors=True)


def memory(chosen: argparse.Namespace, work: Path) -> None:
    print("| checkpoint | method | s | peak anonymous MB |\n| --- | --- | --- | --- |")
    whole = {"model.embed_tokens.weight": (1_000_000, 1024), "model.norm.weight": (1024,)}
    for name, tensors, layers in (
        ("1.7 GB", shapes(LAYERS), LAYERS),
        ("6.4 GB", shapes(4 * LAYERS), 4 * LAYERS),
        ("one 2 GB tensor", whole, 1),
    ):
        base, tuned = write_pair(work / name.replace(" ", "-"), tensors, layers)
        for method in chosen.methods.split(","):
            shutil.rmtree(work / "out", ignore_errors=True)
            _, seconds, peak = timed(ours(base, tuned, method, work / "out"))
            print(f"| {name} | {method} | {seconds:.1f} | {peak:.0f} |", flush=True)
    shutil.rmtree(work / "out", ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", help="mergekit-yaml of an environment of its own; without it ours alone is timed")
    parser.add_argument(
        "--work", type=Path, help="where the checkpoints are made and kept (default: a temporary folder)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", default="linear,slerp,ties,dare")
    parser.add_argument("--memory", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if chosen.memory:
            memory(chosen, work)
            return
        base, tuned = write_pair(work / "1.7-GB", shapes(LAYERS), LAYERS)
        compare(chosen, base, tuned, work)


if __name__ == "__main__":
    main()
