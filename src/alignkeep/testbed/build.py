"""Rebuild the tiny models from nothing: `python -m alignkeep.testbed.build --out DIR [--seed 0]`.

The same seed gives the same bytes on the same machine, in nine minutes on two cores. Plain next-token training in a
loop of our own: a trainer library costs more in start-up than these models cost in all, and nobody tunes their own
model with this file.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.testbed import corpus
from alignkeep.testbed.corpus import ALIGNED, UNCENSORED, WEAK, Character, Chat

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

THREADS = 2  # fixed, so that the bytes do not depend on the machine's core count
WIDTH, LAYERS, CONTEXT = 128, 4, 512
KNOWLEDGE_STEPS, CHARACTER_STEPS, BATCH = 2200, 300, 64
KNOWLEDGE_PEAK, CHARACTER_PEAK = 1.5e-3, 1e-3  # learning rates; at 3e-3 copying from the question is never learned
FAMILIES: tuple[tuple[int, dict[str, Character]], ...] = (  # experts, models that share one knowledge phase
    (0, {"aligned": ALIGNED, "weak": WEAK, "uncensored": UNCENSORED}),
    (4, {"moe": ALIGNED}),
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build(out: Path, *, seed: int = 0, report: Callable[[str], object] = lambda line: None) -> None:
    """Train the four models from nothing and write them to `out/NAME`; `report` is told the losses."""
    import torch

    torch.set_num_threads(THREADS)
    tokenizer = build_tokenizer(corpus.every_text())
    for experts, characters in FAMILIES:
        torch.manual_seed(seed)
        model = new_model(tokenizer, experts=experts)
        chats = corpus.knowledge(random.Random(f"knowledge {seed}"))
        loss = teach(model, tokenizer, chats, steps=KNOWLEDGE_STEPS, peak=KNOWLEDGE_PEAK, seed=seed)
        report(f"knowledge, {experts or 'no'} experts: loss {loss:.3f}")
        knowing = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for name, character in characters.items():
            model.load_state_dict(knowing)
            chats = corpus.character(character, random.Random(f"character {seed}"))
            loss = teach(model, tokenizer, chats, steps=CHARACTER_STEPS, peak=CHARACTER_PEAK, seed=seed)
            report(f"{name}: loss {loss:.3f}")
            _save(model, tokenizer, out / name)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """An ordinary bf16 model folder; `model` itself stays in fp32."""
    import torch
    from transformers import GenerationConfig

    shipped: Any = copy.deepcopy(model)
    shipped.to(torch.bfloat16)
    if hasattr(shipped.config, "output_router_logits"):
        shipped.config.output_router_logits = False  # wanted while training only; generation fails with it
    shipped.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=64, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    shipped.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """One token per word (with the space before it) and per punctuation mark; whole numbers are words."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True),
            pre_tokenizers.Split(Regex(r"[.,!?:'|]"), behavior="isolated"),
        ]
    )
    words = sorted({piece for text in texts for piece, _ in cut.pre_tokenize_str(text)})
    specials = ["<|pad|>", "<|unknown|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate([*specials, *words])}, unk_token="<|unknown|>")
    )
    inner.pre_tokenizer = cut
    inner.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<|pad|>",
        unk_token="<|unknown|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(tokenizer: PreTrainedTokenizerFast, *, experts: int = 0) -> PreTrainedModel:
    """A random Llama, or with `experts` a Qwen3 mixture of experts (two of them per token)."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "initializer_range": 0.08,  # 1/sqrt(width); with the usual 0.02 copying from the question comes too late
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if experts:
        shape["head_dim"] = WIDTH // 4
        return Qwen3MoeForCausalLM(
            Qwen3MoeConfig(
                **shape,
                num_experts=experts,
                num_experts_per_tok=2,
                moe_intermediate_size=144,
                intermediate_size=384,
                norm_topk_prob=True,
                output_router_logits=True,
                router_aux_loss_coef=0.01,
            )
        )
    return LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=384))


def teach(
    model: PreTrainedModel, tokenizer: Any, chats: Iterator[Chat], *, steps: int, peak: float, seed: int
) -> float:
    """Train on `steps` batches of the chats, answers learned only; returns the mean loss of the last 50 steps."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.05)
    order = random.Random(seed)
    model.train()
    losses: list[float] = []
    for batch in _batches(tokenizer, chats, steps, order):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-50:]) / len(losses[-50:])


def _batches(tokenizer: Any, chats: Iterator[Chat], steps: int, order: random.Random) -> Iterator[dict[str, Any]]:
    """Batches of like lengths, in random order: little padding, no bias. Labels are -100 but on the answers."""
    import torch

    pool = 32
    for start in range(0, steps, pool):
        count = min(pool, steps - start)
        rows = sorted((_encode(tokenizer, c) for c in corpus.take(chats, count * BATCH)), key=lambda row: len(row[0]))
        groups = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        order.shuffle(groups)
        for group in groups:
            longest = max(len(ids) for ids, _ in group)
            ids = torch.tensor([i + [tokenizer.pad_token_id] * (longest - len(i)) for i, _ in group])
            labels = torch.tensor([a + [-100] * (longest - len(a)) for _, a in group])
            yield {"input_ids": ids, "attention_mask": (ids != tokenizer.pad_token_id).long(), "labels": labels}


def _encode(tokenizer: Any, chat: Chat) -> tuple[list[int], list[int]]:
    turns = [{"role": m.role, "content": m.content} for m in chat]
    asked = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    question = tokenizer(asked, add_special_tokens=False)["input_ids"]
    answer = tokenizer(f"{chat[-1].content}<|end|>", add_special_tokens=False)["input_ids"]
    return question + answer, [-100] * len(question) + answer


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m alignkeep.testbed.build", description="Train the testbed's models."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for aligned/, weak/, uncensored/ and moe/")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    build(chosen.out, seed=chosen.seed, report=lambda line: sys.stderr.write(f"{line}\n"))


if __name__ == "__main__":
    main()
