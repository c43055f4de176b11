"""A GRAO step beside TRL's GRPO step with equal groups and token counts, in one run.

    python benchmarks/bench_align.py [--hidden 256,512] [--groups 4,8] [--pairs 15]

Random Llamas in float32 (bfloat16 on a GPU), trained in full; two prompts a step, every sample and every reference has
the same number of tokens. Both trainers are warmed up, then take steps in turns, so that whatever else the machine does
falls on both; a ratio is the median of those of neighbouring steps, with a bootstrap interval of 95 %. Targets: at most
1.10 for a step with generation and rewards; at most 1.05 (G + 1) / G for the update alone, since the reference goes
through the model too.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
VOCABULARY, ASKED, ANSWERED, LAYERS, PROMPTS = 4096, 64, 64, 4, 2


def trainer_of(kind: str, width: int, group: int, folder: str) -> Any:
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    from alignkeep.align.grao_config import GRAOConfig
    from alignkeep.align.trainer import GRAOTrainer

    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({f"w{at}": at for at in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w1", eos_token="w2")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=LAYERS,
            num_attention_heads=4, num_key_value_heads=4, eos_token_id=2, pad_token_id=1,
        )
    )  # fmt: skip

    def text(first: int, count: int) -> str:
        return " ".join(f"w{3 + (first + at) % (VOCABULARY - 3)}" for at in range(count))

    rows = {"prompt": [text(17 * at, ASKED) for at in range(64)]}
    rows["reference"] = [text(29 * at, ANSWERED - 1) for at in range(64)]  # and the end token
    settings: dict[str, Any] = {
        "output_dir": folder, "use_cpu": not torch.cuda.is_available(), "bf16": torch.cuda.is_available(),
        "report_to": "none", "save_strategy": "no", "per_device_train_batch_size": PROMPTS * group,
        "num_generations": group, "max_completion_length": ANSWERED, "learning_rate": 1e-6, "temperature": 0.7,
        "activation_checkpointing": False, "generation_kwargs": {"min_new_tokens": ANSWERED},
    }  # fmt: skip
    config, trainer = (GRAOConfig, GRAOTrainer) if kind == "grao" else (GRPOConfig, GRPOTrainer)
    return trainer(
        model=model, reward_funcs=_reward, args=config(**settings), train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
    )  # fmt: skip


def _reward(*, completions: list[str], **columns: Any) -> list[float]:
    return [float(sum(map(ord, text)) % 11) for text in completions]


def stepper(trainer: Any) -> Any:
    """One optimiser step; returns the seconds of the rollout (generation, rewards) and of the update."""
    import torch

    optimizer = trainer.create_optimizer()
    trainer.model.train()
    loader = trainer.get_train_dataloader()
    trainer.current_gradient_accumulation_steps = 1

    def endless() -> Any:
        while True:
            yield from loader

    batches = endless()

    def step() -> tuple[float, float]:
        batch = next(batches)
        started = time.perf_counter()
        inputs = trainer._prepare_inputs(batch)
        _wait()
        middle = time.perf_counter()
        trainer.accelerator.backward(trainer._compute_loss(trainer.model, inputs))
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        _wait()
        return middle - started, time.perf_counter() - middle

    def _wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


def ratios_of(width: int, group: int, pairs: int) -> dict[str, object]:
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        steps = [stepper(trainer_of(kind, width, group, folder)) for kind in ("grpo", "grao")]
        for step in steps * 2:
            step()
        seconds = np.empty((pairs, 2, 2))
        for pair in range(pairs):
            for which in (0, 1) if pair % 2 else (1, 0):
                seconds[pair, which] = steps[which]()
    found: dict[str, object] = {"width": width, "group": group}
    for name, both in (("update", seconds[:, :, 1]), ("step", seconds.sum(-1))):
        ratio = both[:, 1] / both[:, 0]
        draws = np.median(np.random.default_rng(0).choice(ratio, (2000, pairs)), axis=1)
        low, high = np.quantile(draws, [0.025, 0.975])
        grpo, grao = np.median(both, axis=0)
        found |= {f"{name}_grpo_ms": round(1000 * grpo, 1), f"{name}_grao_ms": round(1000 * grao, 1)}
        found[name] = [round(float(value), 3) for value in (np.median(ratio), low, high)]
    return found | {"update may be": round(1.05 * (group + 1) / group, 3), "step may be": 1.10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", default="256,512")
    parser.add_argument("--groups", default="4,8")
    parser.add_argument("--pairs", type=int, default=15)
    chosen = parser.parse_args()
    for width in map(int, chosen.hidden.split(",")):
        for group in map(int, chosen.groups.split(",")):
            print(json.dumps(ratios_of(width, group, chosen.pairs)), flush=True)


if __name__ == "__main__":
    main()
