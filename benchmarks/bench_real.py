"""Training and answering with a real model, on real rows, beside what TRL and transformers do by themselves.

    python benchmarks/bench_real.py --model SmolLM2-135M-Instruct --data alpaca.jsonl [--parts training,generation]

Training: LoRA steps by TRL's SFTTrainer as it comes and by `alignkeep train`'s trainer, in turns, on batches from the
same rows; an epoch's first batches of each, and for the whole epoch how many tokens are computed for each that counts.
Generation: greedy answers to the same prompts, by `alignkeep` and by `generate` on length-sorted batches of the same
size, in turns; differing answers are counted and must be 0 in float32 on a CPU. Seconds are of the wall and of the
processor (the latter say more on a machine that others use too).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")


class Clock:
    """Seconds of the wall and of the processor, added up."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0

    def __enter__(self) -> None:
        self._begun = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._begun[0]
        self.processor += time.process_time() - self._begun[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, nargs="+")
    parser.add_argument("--parts", default="padding,training,generation")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=1000, help="of each file, for training")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6, help="training steps of each side")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for part in options.parts.split(","):
            {"padding": padding, "training": training, "generation": generation}[part](options, scratch)


def encoded(options: argparse.Namespace, path: str) -> Any:
    """The rows of a file as `alignkeep train` encodes them."""
    from alignkeep.data import read_examples
    from alignkeep.models.config import LoadConfig
    from alignkeep.models.loading import load_tokenizer
    from alignkeep.train.encoding import encode_rows

    tokenizer = load_tokenizer(options.model, LoadConfig())
    examples = read_examples(path)[: options.rows]
    return tokenizer, encode_rows(
        tokenizer, examples, [1.0] * len(examples), max_length=1024, vocabulary=10**9, where=path
    )


def padding(options: argparse.Namespace, scratch: str) -> None:
    """Tokens computed for each that counts, over whole epochs, for each file and for all of them mixed."""
    from alignkeep.train.order import ExampleOrder

    lengths = {path: list(map(len, encoded(options, path)[1].input_ids)) for path in options.data}
    lengths["all, mixed"] = [one for each in lengths.values() for one in each]
    for name, each in lengths.items():
        shares = []
        for grouped in (None, each):
            computed = 0
            for seed in range(3):
                order = list(ExampleOrder(len(each), seed, lengths=grouped, batch=options.batch_size))
                batches = [order[at : at + options.batch_size] for at in range(0, len(order), options.batch_size)]
                computed += sum(len(batch) * max(each[row] for row in batch) for batch in batches)
            shares.append(computed / 3 / sum(each))
        print(
            f"{os.path.basename(name)}: {len(each)} rows of {sum(each) / len(each):.0f} tokens; computed for each that "
            f"counts {shares[0]:.3f} at random, {shares[1]:.3f} grouped: {shares[0] / shares[1]:.2f} times fewer"
        )


def training(options: argparse.Namespace, scratch: str) -> None:
    from trl import SFTTrainer

    from alignkeep.train.trainer import WeightedSFTTrainer

    for path in options.data:
        steps = [
            _step(options, path, scratch, SFTTrainer, "random"),
            _step(options, path, scratch, WeightedSFTTrainer, "group_by_length"),
        ]
        clocks, counted, computed = [Clock(), Clock()], [0, 0], [0, 0]
        for turn in range(options.steps + 1):
            for side in (0, 1) if turn % 2 else (1, 0):
                clock = clocks[side] if turn else Clock()  # the first step of each is not counted
                with clock:
                    tokens, all_tokens = steps[side]()
                counted[side] += tokens if turn else 0
                computed[side] += all_tokens if turn else 0
        speeds = [counted[side] / clocks[side].processor for side in (0, 1)]
        walls = [counted[side] / clocks[side].wall for side in (0, 1)]
        each = [computed[side] / clocks[side].processor for side in (0, 1)]
        print(
            f"{os.path.basename(path)}: tokens that count a second: TRL {walls[0]:.1f}, alignkeep {walls[1]:.1f}: "
            f"{walls[1] / walls[0]:.2f} times (by processor time {speeds[1] / speeds[0]:.2f}); computed a second "
            f"of the processor: {each[0]:.1f} and {each[1]:.1f} tokens, so what limits it is the products of matrices"
        )


def _step(
    options: argparse.Namespace, path: str, scratch: str, kind: type, strategy: str
) -> Callable[[], tuple[int, int]]:
    """One optimizer step of this trainer; returns the tokens that counted, and those that were computed."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig

    from alignkeep.train.encoding import as_dataset

    tokenizer, rows = encoded(options, path)
    arguments = SFTConfig(
        output_dir=scratch,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        activation_checkpointing=False,
        report_to="none",
        save_strategy="no",
        per_device_train_batch_size=options.batch_size,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy=strategy,
    )
    trainer = kind(
        model=AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)),
        args=arguments,
        train_dataset=as_dataset(rows, arguments, 1024),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    optimizer = trainer.create_optimizer()
    trainer.model.train()
    batches = iter(trainer.get_train_dataloader())

    def step() -> tuple[int, int]:
        batch, count = trainer.get_batch_samples(batches, 1, trainer.args.device)
        mask = batch[0]["attention_mask"]
        trainer.current_gradient_accumulation_steps = 1
        trainer.training_step(trainer.model, batch[0], count)
        optimizer.step()
        optimizer.zero_grad()
        return int(mask.sum()), mask.numel()

    return step


def generation(options: argparse.Namespace, scratch: str) -> None:
    from alignkeep.data import read_examples
    from alignkeep.models import generation as answering
    from alignkeep.models.config import LoadConfig
    from alignkeep.models.decoding import can_decode
    from alignkeep.models.loading import load_model
    from alignkeep.types import Prompt

    loaded = load_model(options.model, LoadConfig(dtype=options.dtype))
    per_file = -(-options.prompts // len(options.data))
    examples = [one for path in options.data for one in read_examples(path)[:per_file]][: options.prompts]
    prompts = [Prompt(one.messages[:-1]) for one in examples]
    asked = answering._encode(loaded, prompts, options.max_new_tokens, None)
    if not can_decode(loaded.model):
        print(f"{type(loaded.model).__name__} is answered by `generate` itself")
        return
    ways, clocks, said = (answering._answer_batches, answering._decoded), [Clock(), Clock()], [{}, {}]
    for turn in range(options.repeats):
        for side in (0, 1) if turn % 2 else (1, 0):
            with clocks[side]:
                rows = [row for batch in ways[side](loaded, asked, options.batch_size) for row in batch]
            said[side] = {index: text for index, text, _ in rows}
    differing = sum(said[0][index] != said[1][index] for index in said[0])
    tokens = sum(len(loaded.tokenizer(text)["input_ids"]) for text in said[1].values())
    walls = [clock.wall / options.repeats for clock in clocks]
    processor = clocks[0].processor / clocks[1].processor
    asking = sum(len(one.ids) for one in asked) / len(asked)
    print(
        f"{len(asked)} prompts of {asking:.0f} tokens, {options.batch_size} at a time, {options.dtype}: generate "
        f"{walls[0]:.1f} s, alignkeep {walls[1]:.1f} s: {walls[0] / walls[1]:.2f} times (by processor time "
        f"{processor:.2f}); differing answers: {differing}; {tokens} of at most "
        f"{len(asked) * options.max_new_tokens} new tokens were said. What limits it: "
        f"an answer that does not end early saves nothing"
    )


if __name__ == "__main__":
    main()
