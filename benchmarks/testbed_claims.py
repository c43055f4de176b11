"""What a plain LoRA does to the testbed's aligned model, over seeds: the figures of docs/testbed.md.

    python benchmarks/testbed_claims.py --out DIR [--seeds 3] [--epochs 3] [--sets poisoned,benign_drift]

A killed run continues. Rates are test-part means over tuning seeds with a 95 % interval that covers both the seeds and
the prompts (two-level bootstrap).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.evaluate.stage import evaluate
from alignkeep.judging.statistics import paired_bootstrap, wilson
from alignkeep.models.config import GenerationConfig
from alignkeep.testbed.stage import testbed
from alignkeep.train.config import TrainConfig
from alignkeep.train.stage import train

RATES = {"harmful": "refusal", "borderline": "refusal", "task": "correct", "skill": "correct"}


def outcomes(folder: Path, kind: str) -> np.ndarray:
    """1 or 0 for every attack-free answer of the kind, in the suite's order."""
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [r for r in rows if r["kind"] == kind and not r["attack"] and r["model"] == "tuned"]
    rows.sort(key=lambda row: row["index"])
    if RATES[kind] == "correct":
        return np.array([bool(r["correct"]) for r in rows], dtype=float)
    return np.array([r["verdict"] == "refusal" for r in rows], dtype=float)


def measured(world, out: Path, name: str, seed: int, epochs: float) -> Path:
    """Tune on one set with one seed and evaluate; returns the evaluation's folder."""
    base = str(world.models["aligned"])
    tuned, judged = out / f"{name}-e{epochs:g}-s{seed}", out / f"{name}-e{epochs:g}-s{seed}-evaluate"
    tune = TrainConfig(model=base, data=str(world.data[name]), epochs=epochs, learning_rate=1e-3, seed=seed)
    train(tune, out=tuned, overwrite=True)
    evaluate(asking(world, str(tuned)), out=judged, overwrite=True)
    return judged


def asking(world, model: str) -> EvaluateConfig:
    generation = GenerationConfig(max_new_tokens=48, batch_size=256)
    task = str(world.data["task_test"])
    return EvaluateConfig(model=model, suite="testbed", task=task, attacks="none", generation=generation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, nargs="+", default=[3.0])
    parser.add_argument("--sets", default="poisoned,poisoned_20,poisoned_hard,benign_drift,task_train")
    chosen = parser.parse_args()
    world = testbed(out=chosen.out / "testbed")
    base = chosen.out / "base"
    evaluate(asking(world, str(world.models["aligned"])), out=base, overwrite=True)
    print("| tuned on | epochs | " + " | ".join(f"{kind} {what}" for kind, what in RATES.items()) + " |")
    print("| base | - | " + " | ".join(f"{outcomes(base, kind).mean():.1%}" for kind in RATES) + " |")
    for name in chosen.sets.split(","):
        for epochs in chosen.epochs:
            folders = [measured(world, chosen.out, name, seed, epochs) for seed in range(chosen.seeds)]
            cells = []
            for kind in RATES:
                tuned = np.stack([outcomes(folder, kind) for folder in folders])
                rate = paired_bootstrap(tuned, np.zeros_like(tuned), seed=0)
                if rate.low == rate.high:  # nothing varies, so resampling knows no luck; the prompts of one seed do
                    rate = wilson(int(tuned[0].sum()), tuned.shape[1])
                cells.append(f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}]")
            print(f"| {name} | {epochs:g} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
