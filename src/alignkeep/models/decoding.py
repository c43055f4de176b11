"""Greedy decoding in which ended answers cost nothing: their places go to the prompts that wait.

`generate` keeps every row of a batch until its longest answer ends, and appends to the cache by copying it. Here a row
leaves when it ends, prompts from the queue take the free places, the beginning that all prompts share (a template's
system text) is computed once, and the cache grows in place. The tokens are those of `generate`: argmax, each row with
its own positions and mask. Models that this is not plainly right for stay with `generate` (`can_decode`).

Layout: R rows, T columns; row r has used[r] tokens in the cache, at the right end, zeros before them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.generation.utils import GenerationMixin

from alignkeep.models.matrices import under_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROOM = 64  # columns that a buffer grows by; chosen: the copying is then below 1 % of a step of SmolLM2
_SHARED = 8  # tokens of a common beginning below which one more pass for it does not pay; chosen
_ADMIT = 4  # a quarter of the places must be free before prompts are taken in, since a small pass costs like a large
_FORWARD = {"input_ids", "attention_mask", "position_ids", "use_cache", "logits_to_keep"}
_CACHE = ("cache", "past_key_values")  # what the cache is called in a forward pass: since transformers 5.24, and before
# Settings of a model's own that change which token is the greedy choice.
_SHAPING = (
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias", "forced_bos_token_id"),
    *("forced_eos_token_id", "min_length", "min_new_tokens", "guidance_scale", "exponential_decay_length_penalty"),
    *("encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "watermarking_config", "remove_invalid_values"),
)


@dataclass
class Row:
    """One prompt and its answer so far: at most `room` tokens, an end token included."""

    index: int
    ids: list[int]
    room: int
    said: list[int] = field(default_factory=list)


class _GrowingLayer(DynamicLayer):
    """Keys and values at the front of buffers with free columns behind, so that appending copies what is new alone."""

    buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        end = used + key_states.shape[-2]
        if self.buffers is None or self.buffers[0].shape[-2] < end:
            self.buffers = (_widened(self.keys, key_states, used, end), _widened(self.values, value_states, used, end))
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., used:end, :] = new
        self.keys, self.values = (buffer[..., :end, :] for buffer in self.buffers)
        return self.keys, self.values

    def put(self, keys: Tensor, values: Tensor) -> None:
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.buffers = keys, values, None


def _widened(old: Tensor | None, new: Tensor, used: int, end: int) -> Tensor:
    buffer = new.new_empty((*new.shape[:-2], end + _ROOM, new.shape[-1]))
    if used and old is not None:
        buffer[..., :used, :] = old
    return buffer


def can_decode(model: PreTrainedModel) -> bool:
    """Whether keys and values of plain attention are all that this model keeps between tokens, and its forward pass
    takes positions and a mask as they are: no recurrent state, no sliding window, no preparation of its own."""
    inner = under_adapter(model)
    config = inner.config
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return False
    if config.get_text_config() is not config or getattr(config, "is_encoder_decoder", False):
        return False
    kind = type(inner)
    mixin: Any = GenerationMixin
    plain = getattr(kind, "prepare_inputs_for_generation", None) is mixin.prepare_inputs_for_generation
    if not plain or getattr(kind, "_is_stateful", False) or _cache_argument(inner) is None:
        return False
    if not inspect.signature(kind.forward).parameters.keys() >= _FORWARD:
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") in ("dynamic", "longrope"):  # positions depend on who shares the batch
        return False
    own = getattr(inner, "generation_config", None)
    if any(getattr(own, name, None) not in (None, 0, False, 1.0, []) for name in _SHAPING):
        return False
    if getattr(config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return False
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _cache_argument(model: PreTrainedModel) -> str | None:
    """The name under which its forward pass takes the cache; None where it takes none."""
    taken = inspect.signature(type(model).forward).parameters
    return next((name for name in _CACHE if name in taken), None)


class Decoder:
    """Rows that are being answered, `step` by step; `waiting` ones are taken in where there is a place."""

    def __init__(self, model: PreTrainedModel, waiting: Sequence[Row], ends: Sequence[int], **forward: Any) -> None:
        self._model = model
        self._forward = forward
        self._cache_argument = str(_cache_argument(under_adapter(model)))
        self._ends = set(ends)
        self.waiting = list(waiting)
        self.active: list[Row] = []
        self._used: list[int] = []
        self._cache: DynamicCache | None = None
        self._shared = _common([row.ids for row in self.waiting]) if len(self.waiting) > 1 else 0
        self._prefix: list[tuple[Tensor, Tensor]] = []

    def answers(self, places: int) -> Iterator[Row]:
        """Each row as it ends, with at most `places` at a time. Memory that runs out leaves `active` and `waiting`."""
        while self.active or self.waiting:
            free = places - len(self.active)
            if self.waiting and (not self.active or free >= max(1, places // _ADMIT)):
                self._admit(free)
            self._step()
            has_ended = [row.said[-1] in self._ends or len(row.said) == row.room for row in self.active]
            if any(has_ended):
                ended = [row for row, over in zip(self.active, has_ended, strict=True) if over]
                self._arrange([place for place, over in enumerate(has_ended) if not over])
                yield from ended

    def put_back(self) -> int:
        """Forget what has begun, to begin it again with fewer places; returns how many rows that were."""
        begun = len(self.active)
        self.waiting = [Row(row.index, row.ids, row.room) for row in self.active] + self.waiting
        self.active, self._used, self._cache, self._prefix = [], [], None, []
        return begun

    @torch.inference_mode()
    def _admit(self, count: int) -> None:
        """Compute the prompts of the next rows, all but their last tokens, which the next step takes."""
        new, self.waiting = self.waiting[:count], self.waiting[count:]
        before = len(self.active)
        self.active = self.active + new  # first, so that `put_back` finds them if memory runs out
        shared = self._shared
        rests = [row.ids[shared:-1] for row in new]
        width = max(map(len, rests))
        cache = self._new_cache()
        if shared:
            for layer, (keys, values) in zip(cache.layers, self._beginning(new[0]), strict=True):
                layer.put(keys.expand(len(new), -1, -1, -1), values.expand(len(new), -1, -1, -1))
        if width:
            # Padded on the right: no token looks at what comes after it, and the padding's own columns are not kept.
            ids = torch.tensor([[*rest, *[rest[-1] if rest else 0] * (width - len(rest))] for rest in rests])
            self._run(ids, torch.arange(shared, shared + width).expand(len(new), -1), cache)
        used = [shared + len(rest) for rest in rests]
        self._arrange(list(range(before)), _tensors(cache) if max(used) else [], used, new)

    def _beginning(self, row: Row) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the tokens that all prompts share."""
        if not self._prefix:
            cache = self._new_cache()
            self._run(torch.tensor([row.ids[: self._shared]]), torch.arange(self._shared)[None], cache)
            self._prefix = _tensors(cache)
        return self._prefix

    @torch.inference_mode()
    def _arrange(
        self,
        keep: list[int],
        joining: Sequence[tuple[Tensor, Tensor]] = (),
        lengths: Sequence[int] = (),
        rows: Sequence[Row] = (),
    ) -> None:
        """A cache of the rows at `keep` and of those that join, without columns that none of them uses."""
        held = [] if self._cache is None else _tensors(self._cache)
        used = [self._used[place] for place in keep] + list(lengths)
        width = max(used, default=0)
        cache = self._new_cache()
        for at, layer in enumerate(cache.layers if width else []):
            old, new = held[at] if held else (None, None), joining[at] if joining else (None, None)
            layer.put(*(_joined(old[i], keep, new[i], lengths, width) for i in (0, 1)))
        self.active = [self.active[place] for place in keep] + list(rows)
        self._used, self._cache = used, cache

    @torch.inference_mode()
    def _step(self) -> None:
        """One more token for every row."""
        width = max(self._used)
        used = torch.tensor(self._used)[:, None]
        mask = (torch.arange(width + 1) >= width - used).long()
        ids = torch.tensor([[(row.said or row.ids)[-1]] for row in self.active])
        assert self._cache is not None
        logits = self._run(ids, used, self._cache, mask)
        for row, token in zip(self.active, logits[:, -1].float().argmax(-1).tolist(), strict=True):
            row.said.append(token)
        self._used = [one + 1 for one in self._used]

    def _run(self, ids: Tensor, positions: Tensor, cache: DynamicCache, mask: Tensor | None = None) -> Tensor:
        device = self._model.device
        if mask is None:
            mask = torch.ones(len(ids), cache.get_seq_length() + ids.shape[1], dtype=torch.long)
        return self._model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_argument: cache},
            **self._forward,
        ).logits

    def _new_cache(self) -> Any:
        cache: Any = DynamicCache(config=under_adapter(self._model).config)
        cache.layers = [_GrowingLayer() for _ in cache.layers]
        return cache


def _common(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with; at least one of each stays its own. 0 where they are too few to pay."""
    least, most = min(prompts), max(prompts)
    count = 0
    longest = min(map(len, prompts)) - 1
    while count < longest and least[count] == most[count]:
        count += 1
    return count if count >= _SHARED else 0


def _tensors(cache: Any) -> list[tuple[Tensor, Tensor]]:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _joined(old: Tensor | None, keep: list[int], new: Tensor | None, lengths: Sequence[int], width: int) -> Tensor:
    """Rows `keep` of `old`, aligned at the right already, and all of `new`, at the left so far, in `width` columns."""
    like = old if new is None else new
    assert like is not None
    joined = like.new_zeros((len(keep) + len(lengths), like.shape[1], width, like.shape[-1]))
    if keep and old is not None:
        columns = min(width, old.shape[-2])
        joined[: len(keep), :, width - columns :] = old[keep, :, old.shape[-2] - columns :]
    for row, length in enumerate(lengths):
        if new is not None:
            joined[len(keep) + row, :, width - length :] = new[row, :, :length]
    return joined
