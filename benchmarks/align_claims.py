"""GRAO beside SFT, DPO and GRPO on the testbed's preference sets, with its rule as the judge: docs/alignment.md.

    python benchmarks/align_claims.py --out DIR [--seeds 3] [--part test|validation] [--models aligned,moe]
        [--starts warm,cold] [--tables methods,terms] [--workers 2]
    python benchmarks/align_claims.py --out DIR --starts cold --tables methods,floors
    python benchmarks/align_claims.py --out DIR --models aligned --starts warm --tables methods,references

`cold` starts at the testbed's model, which cannot do the task of the preference set; `warm` behind four epochs of
supervised tuning on the references. From there every method takes 200 steps (cold: 400) of 8 prompts, the same ones in
the same order; GRPO and GRAO sample 8 answers each. Answers on held-out prompts are greedy, every 25 steps. Learning
rates were chosen with `--part validation --tables rates`, of 200 steps. `references` learns from references without
a slip; the held-out ones stay. A killed run goes on.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from merge_claims import _points, _rate

from alignkeep.judging.statistics import paired_bootstrap

STEPS = {"warm": 200, "cold": 400}
PROMPTS, GROUP, EVERY, NEW_TOKENS = 8, 8, 25, 32
REWARD = "testbed"
# Chosen on the validation part, one seed, by the RAS of the last look; each method has its own.
RATES = {
    "warm": {"sft": 3e-4, "dpo": 1e-6, "grpo": 1e-4, "grao": 1e-4},
    "cold": {"sft": 3e-4, "dpo": 1e-6, "grpo": 1e-4, "grao": 1e-4},
}
# fmt: off
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "methods": {name.upper(): {"method": name} for name in ("sft", "dpo", "grpo", "grao")},
    "terms": {
        "without imitation": {"method": "grao", "imitation": 0.0},
        "without exploration": {"method": "grao", "exploration": 0.0},
        "without the regulariser": {"method": "grao", "regulariser": 0.0},
        "sums over G, as printed": {"method": "grao", "reference_in_group": False},
    },
    # A_y falls below 0 where most samples win, and the reference is then unlearned without bound.
    "floors": {"GRAO, A_y at least 0": {"method": "grao", "min_reference_advantage": 0.0}},
    # So is what is unlearned by its probability, and not by the logarithm of it, with a bound.
    "bounds": {
        "GRAO, bounded": {"method": "grao", "bounded": True},
        "GRAO, bounded, imitation 0.125": {"method": "grao", "bounded": True, "imitation": 0.125},
    },
    "references": {
        "SFT, right references": {"method": "sft", "right": True},
        "GRPO, right references": {"method": "grpo", "right": True},
        "GRAO, right references": {"method": "grao", "right": True},
        "without imitation, right references": {"method": "grao", "imitation": 0.0, "right": True},
    },
    "rates": {
        f"{name.upper()}, rate {rate:g}": {"method": name, "rate": rate}
        for name in ("sft", "dpo", "grpo", "grao") for rate in (3e-5, 1e-4, 3e-4)
    } | {f"DPO, rate {rate:g}": {"method": "dpo", "rate": rate} for rate in (1e-6, 1e-5)},
}
# fmt: on


class Job(NamedTuple):
    """One alignment: which model from which start, by which variant, under which seed; measured on which part."""

    out: Path
    model: str
    start: str
    label: str
    variant: dict[str, Any]
    seed: int
    part: str

    @property
    def folder(self) -> Path:
        name = self.label.replace(",", "").replace(" ", "-")
        return self.out / f"{self.part}-{self.model}-{self.start}" / f"{name}-s{self.seed}"

    @property
    def rate(self) -> float:
        return self.variant.get("rate", RATES[self.start][self.variant["method"]])


def world(out: Path) -> Any:
    from alignkeep.testbed.stage import testbed

    return testbed(out=out / "testbed")


def warm(out: Path, name: str) -> Path:
    """The model behind supervised tuning on the references of the training part."""
    from alignkeep.train.config import TrainConfig
    from alignkeep.train.stage import train

    found, data = world(out), out / "references.jsonl"
    if not data.exists():
        rows = _rows(found.data["preference_train"])
        lines = [json.dumps({"prompt": row["prompt"], "completion": row["reference"]}) for row in rows]
        data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    tune = TrainConfig(model=str(found.models[name]), data=str(data), method="full", learning_rate=3e-4, epochs=4)
    return train(tune, out=out / f"warm-{name}", overwrite=True).folder


def preferences(job: Job, found: Any) -> Path:
    """The training part; with `right` every reference is the best answer there is."""
    given = found.data["preference_train"]
    if not job.variant.get("right"):
        return given
    data = job.out / f"{job.folder.name}-right.jsonl"
    lines = [json.dumps({**row, "reference": row["expected"]}) for row in _rows(given)]
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return data


def run(job: Job) -> Path:
    """The folder with `training_log.jsonl` (looks at the held-out prompts) and `held_out.jsonl` (the last look)."""
    import torch

    torch.set_num_threads(1)
    found = world(job.out)
    start = job.out / f"warm-{job.model}" if job.start == "warm" else found.models[job.model]
    if (job.folder / "held_out.jsonl").exists():
        return job.folder
    if job.variant["method"] in ("sft", "dpo"):
        _offline(job, found, start)
    else:
        _online(job, found, start)
    return job.folder


def _online(job: Job, found: Any, start: Path) -> None:
    from alignkeep.align.config import AlignConfig
    from alignkeep.align.stage import align

    own = {name: value for name, value in job.variant.items() if name not in ("method", "rate", "right")}
    config = {
        "model": str(start), "data": str(preferences(job, found)), "reward": REWARD,
        "method": job.variant["method"], "learning_rate": job.rate, "objective": own, "lora": None,
        "batch_size": PROMPTS,
        "sampling": {"group": GROUP, "max_new_tokens": NEW_TOKENS}, "seed": job.seed,
        "held_out": {"data": str(found.data[f"preference_{job.part}"]), "every": EVERY, "limit": 1000},
        "trainer": {"max_steps": STEPS[job.start], "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 10},
        "load": {"device": "cpu"},
    }  # fmt: skip
    align(AlignConfig.model_validate(config), out=job.folder, overwrite=True)


def _offline(job: Job, found: Any, start: Path) -> None:
    """TRL's trainers on the prompts that the online methods meet, in their order."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.dpo_trainer import DPOConfig, DPOTrainer
    from trl.trainer.sft_trainer import SFTConfig, SFTTrainer
    from trl.trainer.utils import RepeatSampler

    from alignkeep.align.config import RewardSettings
    from alignkeep.align.held_out import HeldOut
    from alignkeep.align.reward import load_reward
    from alignkeep.data import read_references
    from alignkeep.models.config import GenerationConfig, LoadConfig
    from alignkeep.models.loading import load_model
    from alignkeep.trainers.log import write_log

    rows = _rows(preferences(job, found))
    sampler = RepeatSampler(rows, 1, PROMPTS, seed=job.seed)
    steps = STEPS[job.start]
    epochs = -(-steps * PROMPTS // (len(rows) // PROMPTS * PROMPTS))
    order: list[int] = []
    for epoch in range(epochs):  # as engine.EpochOrder
        sampler.generator.manual_seed(job.seed + epoch)
        order += sampler
    order = order[: steps * PROMPTS]
    ask = [[{"role": "user", "content": rows[at]["prompt"]}] for at in order]
    say = {
        name: [[{"role": "assistant", "content": rows[at][name]}] for at in order] for name in ("reference", "rejected")
    }
    loaded = load_model(str(start), LoadConfig(device="cpu"))
    arguments: dict[str, Any] = {
        "output_dir": str(job.folder / "trainer"), "max_steps": steps, "per_device_train_batch_size": PROMPTS,
        "learning_rate": job.rate, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 10,
        "weight_decay": 0.01, "seed": job.seed, "report_to": "none", "save_strategy": "no", "use_cpu": True,
        "bf16": False, "disable_tqdm": True, "logging_steps": 1, "train_sampling_strategy": "sequential",
    }  # fmt: skip
    reward = load_reward(RewardSettings(spec=REWARD), LoadConfig(device="cpu"), job.folder / "none")
    held_out = HeldOut(
        read_references(str(found.data[f"preference_{job.part}"])), reward, GenerationConfig(max_new_tokens=NEW_TOKENS),
        every=EVERY, tokenizer=loaded.tokenizer,
    )  # fmt: skip
    if job.variant["method"] == "sft":
        data = Dataset.from_dict({"prompt": ask, "completion": say["reference"]})
        trainer: Any = SFTTrainer(
            loaded.model, SFTConfig(**arguments), train_dataset=data, processing_class=loaded.tokenizer,
            callbacks=[held_out],
        )  # fmt: skip
    else:
        data = Dataset.from_dict({"prompt": ask, "chosen": say["reference"], "rejected": say["rejected"]})
        trainer = DPOTrainer(
            loaded.model, args=DPOConfig(**arguments), train_dataset=data, processing_class=loaded.tokenizer,
            callbacks=[held_out],
        )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    write_log(trainer.state.log_history, job.folder / "training_log.jsonl", {"held_out/ras"})
    held_out.write(job.folder / "held_out.jsonl")


@cache
def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def gaps(folder: Path, when: str) -> np.ndarray:
    """Rewards minus the references' of the answers `before` or `after`."""
    return np.array([row[f"{when}_gap"] for row in _rows(folder / "held_out.jsonl")], dtype=float)


def curve(folder: Path) -> dict[int, float]:
    """RAS at every look."""
    looks = [row for row in _rows(folder / "training_log.jsonl") if "held_out/ras" in row]
    return {row["step"]: row["held_out/ras"] for row in looks}


def table(jobs: dict[str, list[Job]], title: str) -> None:
    """RAS, RAS with ties and NAG of every variant, over seeds and prompts; GRAO against each, on the same prompts."""
    print(f"\n## {title}\n")
    print("| method | RAS | of the task | win or tie | NAG | RAS of GRAO, less this | best RAS of the looks, at step |")
    print("| --- |" + " --- |" * 6)
    after = {label: np.stack([gaps(job.folder, "after") for job in seeds]) for label, seeds in jobs.items()}
    first = next(iter(jobs.values()))
    before = np.stack([gaps(job.folder, "before") for job in first])
    rows = _rows(world(first[0].out).data[f"preference_{first[0].part}"])
    task = np.array([row["kind"] == "task" for row in rows])
    cells = [_rate(one * 1.0) for one in (before > 0, before[:, task] > 0, before >= 0)]
    print("| before | " + " | ".join(cells) + " | | | |")
    best: dict[str, tuple[float, int]] = {}
    curves: dict[str, dict[int, float]] = {}
    for label, found in after.items():
        gain = np.sign(found - before)
        nag = paired_bootstrap(gain, np.zeros_like(gain), seed=0)
        won, tied = (found > 0) * 1.0, (found >= 0) * 1.0
        against = ""
        if "GRAO" in after and label != "GRAO":
            gap = paired_bootstrap((after["GRAO"] > 0) * 1.0, won, seed=0)
            against = _points(gap.value, gap.low, gap.high)
        looks = [curve(job.folder) for job in jobs[label]]
        curves[label] = {step: float(np.mean([look[step] for look in looks])) for step in looks[0]}
        best[label] = max((value, -step) for step, value in curves[label].items())
        where = f"{best[label][0]:.1%}, {-best[label][1]}"
        print(
            f"| {label} | {_rate(won)} | {_rate(won[:, task])} | {_rate(tied)} | "
            f"{100 * nag.value:+.1f} [{100 * nag.low:+.1f}, {100 * nag.high:+.1f}] | {against} | {where} |",
            flush=True,
        )
    if {"GRPO", "GRAO"} <= best.keys():
        reached = [step for step, value in curves["GRAO"].items() if value >= best["GRPO"][0]]
        when = f"first at step {reached[0]}" if reached else "never"
        print(f"\nGRAO reaches GRPO's best mean RAS ({best['GRPO'][0]:.1%}, step {-best['GRPO'][1]}) {when}.")
    for label, found in curves.items():
        print(f"{label}: " + ", ".join(f"{step}: {value:.1%}" for step, value in found.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=("test", "validation"), default="test")
    parser.add_argument("--models", default="aligned,moe")
    parser.add_argument("--starts", default="warm,cold")
    parser.add_argument("--tables", default="methods,terms")
    parser.add_argument("--only", default="", help="labels that hold one of these words, with commas")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    world(chosen.out)
    variants = {label: one for name in chosen.tables.split(",") for label, one in VARIANTS[name].items()}
    variants = {k: one for k, one in variants.items() if any(word in k for word in chosen.only.split(","))}
    plan: dict[str, dict[str, list[Job]]] = {}
    for model in chosen.models.split(","):
        for start in chosen.starts.split(","):
            if start == "warm":
                warm(chosen.out, model)
            plan[f"{model}, {start}, {chosen.part}"] = {
                label: [Job(chosen.out, model, start, label, one, seed, chosen.part) for seed in range(chosen.seeds)]
                for label, one in variants.items()
            }
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("spawn")) as pool:
        for title, jobs in plan.items():
            list(pool.map(run, [job for seeds in jobs.values() for job in seeds]))
            table(jobs, title)


if __name__ == "__main__":
    main()
