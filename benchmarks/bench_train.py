"""An AlignGuard step beside the same TRL LoRA step, and the Fisher pass beside a training pass, in one run.

    python benchmarks/bench_train.py [--hidden 256,512,1024] [--pairs 20]

Random Llamas of these widths, 2,048 tokens a step in float32 (bfloat16 on a GPU), LoRA of rank 8 on every linear layer.
Both trainers are warmed up, then take steps in turns, so that whatever else the machine does falls on both; the ratio
is the median of the ratios of neighbouring steps, with a bootstrap interval of 95 %. The guarded one steps as in a
tune, every tenth time with the look at its gradient. Memory is the peak of a process of its own for each. Targets: at
most 1.10 in time and memory from width 512 on, and the Fisher pass at most 1.5 of a training pass over the same rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
VOCABULARY, LENGTH, BATCH, LAYERS = 4096, 256, 8, 4


def trainer_of(width: int, folder: str, guarded: bool, collision: float):
    """An SFTTrainer over a random model, with AlignGuard or without."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=LAYERS,
            num_attention_heads=4, num_key_value_heads=4,
        )
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"w{at}": at for at in range(VOCABULARY)}, unk_token="w0")),
        pad_token="w1",
        eos_token="w2",
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    rows = torch.randint(3, VOCABULARY, (64, LENGTH)).tolist()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            activation_checkpointing=False,
            report_to="none",
            save_strategy="no",
            per_device_train_batch_size=BATCH,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    if guarded:
        guard_of(trainer, collision).attach(trainer)
    return trainer


def guard_of(trainer, collision: float):
    from alignkeep.train.align_guard import AlignGuard
    from alignkeep.train.config import AlignGuardSettings

    settings = AlignGuardSettings(collision=collision)
    return AlignGuard.measure(
        trainer.model, trainer.processing_class, examples(), settings, batch_size=BATCH, max_length=LENGTH
    )


def examples():
    """As many tokens as the training rows have, all but a few of them answers."""
    import random

    from alignkeep.types import Example, Message

    draw = random.Random(0)
    words = [" ".join(f"w{draw.randrange(3, VOCABULARY)}" for _ in range(LENGTH - 4)) for _ in range(64)]
    return [Example((Message("user", "w5 w6 w7"), Message("assistant", answer))) for answer in words]


def stepper(trainer):
    """One optimiser step, everything included but logging and saving."""
    import torch

    optimizer = trainer.create_optimizer()
    trainer.model.train()
    loader = trainer.get_train_dataloader()

    def endless():
        while True:
            yield from loader

    batches = endless()

    def step() -> None:
        batch, count = trainer.get_batch_samples(batches, 1, trainer.args.device)
        trainer.current_gradient_accumulation_steps = 1
        trainer.accelerator.gradient_state._set_sync_gradients(True)
        trainer.training_step(trainer.model, batch[0], count)
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        trainer.state.global_step += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


def ratio_of(width: int, pairs: int, collision: float) -> dict[str, object]:
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        steps = [stepper(trainer_of(width, folder, guarded, collision)) for guarded in (False, True)]
        for step in steps * 3:
            step()
        seconds = np.empty((pairs, 2))
        for pair in range(pairs):
            for which in (0, 1) if pair % 2 else (1, 0):
                started = time.perf_counter()
                steps[which]()
                seconds[pair, which] = time.perf_counter() - started
    ratios = seconds[:, 1] / seconds[:, 0]
    draws = np.median(np.random.default_rng(0).choice(ratios, (2000, pairs)), axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    plain, guarded = np.median(seconds, axis=0)
    return {
        "plain_ms": round(1000 * plain, 1),
        "guarded_ms": round(1000 * guarded, 1),
        "time": [round(float(value), 3) for value in (np.median(ratios), low, high)],
    }


def fisher_of(width: int) -> float:
    """Seconds to measure the subspaces, eigenbases included, over those of forward and backward of the same rows."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(width, folder, False, 0.0)
        trainer.model.train()
        trainer.create_optimizer()
        found = []
        for _ in range(3):
            started = time.perf_counter()
            loader = iter(trainer.get_train_dataloader())
            for _ in range(64 // BATCH):
                batch, count = trainer.get_batch_samples(loader, 1, trainer.args.device)
                trainer.current_gradient_accumulation_steps = 1
                trainer.training_step(trainer.model, batch[0], count)
                trainer.model.zero_grad()
            middle = time.perf_counter()
            guard_of(trainer, 0.0)
            found.append((time.perf_counter() - middle) / (middle - started))
        return sorted(found)[1]


def probe_of(width: int) -> float:
    """The share of a tune that a safety probe takes at its usual interval: one look over that many steps."""
    from alignkeep.train.probe import PROMPTS, SafetyProbe
    from alignkeep.types import Message, Prompt

    words = " ".join(f"w{at}" for at in range(3, LENGTH // 2))
    harmful, harmless = ([Prompt((Message("user", f"{end} {words}"),))] * PROMPTS for end in ("w1000", "w2000"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(width, folder, False, 0.0)
        probe = SafetyProbe(harmful, harmless, refusals=["w7"])
        step = stepper(trainer)
        probe.prepare(trainer.model, trainer.processing_class)
        step()
        found = []
        for _ in range(3):
            started = time.perf_counter()
            probe._look()
            middle = time.perf_counter()
            for _ in range(3):
                step()
            found.append((middle - started) / (time.perf_counter() - middle) * 3 / probe.every)
        return sorted(found)[1]


def memory_of(width: int, guarded: bool, collision: float) -> float:
    """Peak resident MB of a process that takes a few steps. (On a GPU: of its memory.)"""
    command = [sys.executable, __file__, "--one", str(width), str(int(guarded)), str(collision)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def one(width: int, guarded: bool, collision: float) -> None:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        step = stepper(trainer_of(width, folder, guarded, collision))
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            step()
    if torch.cuda.is_available():
        print(torch.cuda.max_memory_allocated() / 1e6)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", default="256,512,1024")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        width, guarded, collision = chosen.one
        one(int(width), guarded == "1", float(collision))
        return
    for width in map(int, chosen.hidden.split(",")):
        for collision in (0.0, 0.1):
            plain, guarded = (memory_of(width, which, collision) for which in (False, True))
            row = {"width": width, "terms": "all" if collision else "alignment"}
            row |= ratio_of(width, chosen.pairs, collision)
            row |= {"plain_MB": round(plain), "guarded_MB": round(guarded), "memory": round(guarded / plain, 3)}
            print(json.dumps(row), flush=True)
        print(json.dumps({"width": width, "Fisher pass / training pass": round(fisher_of(width), 2)}), flush=True)
        print(json.dumps({"width": width, "probe's share of the time, %": round(100 * probe_of(width), 2)}), flush=True)


if __name__ == "__main__":
    main()
