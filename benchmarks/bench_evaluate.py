"""Batched answers against `model.generate` with one prompt at a time: same model, prompts and length, one run.

    python benchmarks/bench_evaluate.py [MODEL] [--prompts 512] [--max-new-tokens 32] [--batch-size 32]

MODEL is a folder; without one a random Llama of a million parameters is made, which seldom stops by itself, so that
both ways make about the same number of tokens. Times include rendering and tokenising the prompts. Both ways run
float32 greedy decoding with a key-value cache; differing answers are counted and must be 0 on the CPU.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignkeep.models.config import GenerationConfig
from alignkeep.models.generation import Answer, generate_answers, stop_ids
from alignkeep.models.loading import LoadedModel, load_model
from alignkeep.types import Message, Prompt

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
WORDS = [f"word{index}" for index in range(1000)]


def random_llama(folder: Path) -> Path:
    """About a million parameters: width 128, 4 layers, 1007 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    specials = ["<pad>", "<unk>", "<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    inner = Tokenizer(models.WordLevel({word: at for at, word in enumerate([*specials, *WORDS])}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            pad_token_id=0,
            eos_token_id=3,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def varied_prompts(count: int) -> list[Prompt]:
    """4 to 120 words each."""
    chance = random.Random(0)
    texts = (" ".join(chance.choices(WORDS, k=chance.randint(4, 120))) for _ in range(count))
    return [Prompt((Message("user", text),)) for text in texts]


def one_at_a_time(loaded: LoadedModel, prompts: list[Prompt], max_new_tokens: int) -> list[Answer]:
    ends = stop_ids(loaded)
    answers = []
    for prompt in prompts:
        turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
        inputs = loaded.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
        with torch.inference_mode():
            output = loaded.model.generate(
                **inputs.to(loaded.model.device), max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=ends
            )
        new = output[0, inputs["input_ids"].shape[1] :].tolist()
        ended = new[-1] in ends
        answers.append(Answer(loaded.tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=True), not ended))
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        loaded = load_model(options.model or str(random_llama(Path(scratch) / "model")))
    prompts = varied_prompts(options.prompts)
    config = GenerationConfig(max_new_tokens=options.max_new_tokens, batch_size=options.batch_size)
    generate_answers(loaded, prompts[:8], config)
    one_at_a_time(loaded, prompts[:2], options.max_new_tokens)

    begun = time.perf_counter()
    batched = generate_answers(loaded, prompts, config)
    middle = time.perf_counter()
    single = one_at_a_time(loaded, prompts, options.max_new_tokens)
    ended = time.perf_counter()
    differing = sum(one != other for one, other in zip(batched, single, strict=True))
    size = sum(parameter.numel() for parameter in loaded.model.parameters())
    print(f"{size / 1e6:.2f} M parameters, {len(prompts)} prompts, {torch.get_num_threads()} threads")
    print(f"batches of {options.batch_size}: {middle - begun:7.2f} s")
    print(f"one at a time: {ended - middle:7.2f} s")
    print(f"ratio:         {(ended - middle) / (middle - begun):7.2f}")
    print(f"differing answers: {differing}; not ended by themselves: {sum(answer.truncated for answer in single)}")


if __name__ == "__main__":
    main()
