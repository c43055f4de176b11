"""Time of a weighted training step against a plain TRL step: same model, same rows, in turns within one run.

    python benchmarks/bench_weights.py --hidden 256 --layers 4 --pairs 60

Both trainers are warmed up, then take steps in turns (plain, weighted, weighted, plain, ...), so that whatever else the
machine does falls on both. Printed: the median time of each, and the median of the ratios of neighbouring steps with a
bootstrap interval of 95 %. Target: at most 3 % slower.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    options = _options()
    import numpy as np
    from trl import SFTTrainer

    from alignkeep.train.trainer import WeightedSFTTrainer

    with tempfile.TemporaryDirectory() as folder:
        steps = [_step(kind, options, folder) for kind in (SFTTrainer, WeightedSFTTrainer)]
        for step in steps * options.warmup:
            step()
        seconds = np.empty((options.pairs, 2))
        for pair in range(options.pairs):
            for which in (0, 1) if pair % 2 else (1, 0):
                started = time.perf_counter()
                steps[which]()
                seconds[pair, which] = time.perf_counter() - started
    ratios = seconds[:, 1] / seconds[:, 0]
    draws = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    plain, weighted = np.median(seconds, axis=0)
    print(
        json.dumps(
            {
                "plain_ms": round(1000 * plain, 2),
                "weighted_ms": round(1000 * weighted, 2),
                "ratio": round(float(np.median(ratios)), 4),
                "interval_95": [round(float(low), 4), round(float(high), 4)],
                "pairs": options.pairs,
                "tokens_per_step": options.batch * options.length,
            }
        )
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"hidden": 256, "layers": 4, "length": 128, "batch": 8, "pairs": 60, "warmup": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def _step(kind: type, options: argparse.Namespace, folder: str):
    """One optimizer step of this trainer, everything included but logging and saving."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import SFTConfig

    torch.manual_seed(0)
    vocabulary = 4096
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=options.hidden,
            intermediate_size=4 * options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
        )
    )
    words = {f"w{index}": index for index in range(vocabulary)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="w1", eos_token="w2"
    )
    rows = torch.randint(3, vocabulary, (64, options.length)).tolist()
    weights = [[0.5 + index % 3] * options.length for index in range(64)]
    trainer = kind(
        model=model,
        args=SFTConfig(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            activation_checkpointing=False,
            report_to="none",
            save_strategy="no",
            per_device_train_batch_size=options.batch,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows, "loss_weights": weights}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
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
        trainer.training_step(trainer.model, batch[0], count)
        optimizer.step()
        optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


if __name__ == "__main__":
    main()
