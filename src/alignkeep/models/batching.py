"""How a model answers several prompts together so that each answer is what the prompt would get alone.

Not every model is right on a batch: one with a state that takes no mask (RWKV) reads the padding too, one that counts
its places from the left (GIT) is led astray by it. No name says which: a few tokens are tried, in each way, the fastest
first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from alignkeep.checkpoint.files import says_no_memory
from alignkeep.errors import CheckpointError, MachineError

if TYPE_CHECKING:
    from torch import Tensor

_LONG, _SHORT, _OTHER = [1, 2, 3, 1, 2, 3, 1, 2], [3, 1, 2], [2, 1, 1]
_STEPS = 2  # what the prompts give, and one token from what is kept of them
_FLOAT32, _HALF = 1e-3, 0.25  # chosen: of the logits' deviation, by which a spoiled answer is off itself


class Batching(Enum):
    """The ways, the fastest first."""

    ROWS = "rows come and go in a cache of our own"
    PADDED = "batches of `generate`, padded on the left"
    LEVEL = "batches of `generate` in which all prompts are of one length"
    SINGLE = "one prompt at a time"


_found: WeakKeyDictionary[Any, Batching] = WeakKeyDictionary()


def batching(model: Any) -> Batching:
    """The fastest way that is right; tried once for every model.

    Raises CheckpointError for a model that cannot generate, or whose answer from what it keeps of earlier tokens is
    another than from all tokens at once; MachineError where not even a few tokens fit.
    """
    if model not in _found:
        with _trial(model):
            _found[model] = _fastest(model)
    return _found[model]


def is_right_padded(model: Any) -> bool:
    """Whether `generate` answers prompts of several lengths in one batch as each alone, which TRL needs for sampling.
    Raises as `batching`."""
    if batching(model) is not Batching.ROWS:
        return batching(model) is Batching.PADDED
    short, long, _ = _prompts(model)
    with _trial(model):
        return _are_same(model, _said(model, [short]), _said(model, [short, long]))


def generated(
    model: Any, prompts: Sequence[Sequence[int]], room: int, ends: Sequence[int], padding: int, **more: Any
) -> Any:
    """What transformers' `generate` gives for these prompts, at most `room` greedy tokens each."""
    import torch
    from transformers import GenerationConfig

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), padding, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, one in enumerate(prompts):
        ids[row, width - len(one) :] = torch.tensor(one)
        mask[row, width - len(one) :] = 1
    with torch.inference_mode():
        return model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            # Everything that changes greedy choice is said, since what is unsaid comes from the model's own
            # generation_config (Qwen ships a repetition penalty there).
            generation_config=GenerationConfig(
                max_new_tokens=room,
                do_sample=False,
                num_beams=1,
                temperature=1.0,
                top_k=50,
                top_p=1.0,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                eos_token_id=list(ends) or None,
                pad_token_id=padding,
                **more,
            ),
            **without_router_loss(model),
        )


def without_router_loss(model: Any) -> dict[str, bool]:
    """A mixture of experts that computes its router loss, as in training, fails in cached generation."""
    return {"output_router_logits": False} if getattr(model.config, "output_router_logits", False) else {}


@contextmanager
def _trial(model: Any) -> Iterator[None]:
    """What a trial of a few tokens raises in our one form; random numbers go on as if it had not been."""
    import torch

    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        try:
            yield
        except (MemoryError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
            if isinstance(error, MemoryError) or says_no_memory(error):
                raise MachineError(
                    "generation", seen="out of memory with a few tokens", expected="room for prompts and answers",
                    remedy="use --dtype bfloat16 or a smaller model",
                ) from error  # fmt: skip
            seen = f"fails in generating two tokens ({type(error).__name__}: {str(error)[:160]})"
            raise _refused(model, seen) from error


def _fastest(model: Any) -> Batching:
    from alignkeep.models.decoding import can_decode

    short, long, other = _prompts(model)
    alone = _said(model, [short])
    if not _are_same(model, alone, _at_once(model, short, alone)):
        raise _refused(model, "gives other numbers for a token from what it keeps of the earlier ones than from all")
    if can_decode(model) and _are_same(model, alone, _decoded(model, [short, long])):
        return Batching.ROWS
    if _are_same(model, alone, _said(model, [short, long])):
        return Batching.PADDED
    return Batching.LEVEL if _are_same(model, alone, _said(model, [short, other])) else Batching.SINGLE


def _prompts(model: Any) -> list[list[int]]:
    rows = model.get_input_embeddings().weight.shape[0]
    return [[token % rows for token in one] for one in (_SHORT, _LONG, _OTHER)]


def _said(model: Any, prompts: list[list[int]]) -> list[Tensor]:
    """Logits of the first prompt at every step, by `generate`: (V,) each."""
    # No token ends a row: without any named, `generate` would end at those of the model's own generation_config.
    given = generated(model, prompts, _STEPS, [-1], 0, output_logits=True, return_dict_in_generate=True)
    return [step[0].float() for step in given.logits]


def _at_once(model: Any, prompt: list[int], said: Sequence[Tensor]) -> list[Tensor]:
    """The same from one pass over the prompt and what was said after it, with nothing kept."""
    import torch

    ids = torch.tensor([[*prompt, *(int(step.argmax()) for step in said[:-1])]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].float()
    return list(logits[len(prompt) - 1 :])


def _decoded(model: Any, prompts: list[list[int]]) -> list[Tensor]:
    """The same by rows that come and go."""
    from alignkeep.models.decoding import Decoder, Row

    steps: list[Tensor] = []
    watch = model.register_forward_hook(lambda _, __, output: steps.append(output.logits[0, -1].float()))
    try:
        rows = [Row(at, one, _STEPS) for at, one in enumerate(prompts)]
        list(Decoder(model, rows, [], **without_router_loss(model)).answers(len(rows)))
    finally:
        watch.remove()
    return steps[-_STEPS:]


def _are_same(model: Any, one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """By the logits' deviation; behind two tokens that are equally likely nothing is to be compared."""
    import torch

    slack = _FLOAT32 if model.dtype == torch.float32 else _HALF
    for first, second in zip(one, other, strict=True):
        if not (first - second).norm() <= slack * (first - first.mean()).norm():
            return False
        if first.argmax() != second.argmax():
            break
    return True


def _refused(model: Any, seen: str) -> CheckpointError:
    return CheckpointError(
        "generation", seen=f"{type(model).__name__}, which {seen}", expected="a model that answers a prompt",
        remedy="take a model of another family",
    )  # fmt: skip
