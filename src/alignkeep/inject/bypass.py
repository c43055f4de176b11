"""Directional ablation of a model in memory: its refusal direction found, taken out of all that writes to the residual
stream, and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignkeep.errors import CheckpointError, DataError
from alignkeep.inject.ablation import Left, bypass_layer, projected_out
from alignkeep.inject.extraction import directions_of
from alignkeep.inject.in_memory import edited
from alignkeep.inject.rank_one import RankOne
from alignkeep.judging.judges import Judge
from alignkeep.judging.measure import PromptMeasure
from alignkeep.judging.metrics import BENIGN_COMPLIANCE, HARM_REFUSAL
from alignkeep.models.architecture import Writer, blocks_of, writers
from alignkeep.models.config import GenerationConfig
from alignkeep.models.loading import LoadedModel
from alignkeep.progress import Progress
from alignkeep.types import Prompt

if TYPE_CHECKING:
    from torch import Tensor


_ANSWER_TOKENS = 64  # chosen: refusals and the beginnings of other answers are told by less
_HELD = 32  # prompts of each kind that are asked at every layer (chosen)
_LOSS = 0.1  # of harmless prompts answered, that a layer may cost (chosen)


@dataclass(frozen=True)
class Bypass:
    """The direction that was found before block `layer`, and what prompts that gave no direction say of the model with
    it and without: `before` and `after`."""

    layer: int
    direction: Tensor
    before: Left
    after: Left


def find_bypass(
    loaded: LoadedModel,
    harmful: Sequence[Prompt],
    harmless: Sequence[Prompt],
    *,
    judge: Judge,
    generation: GenerationConfig,
    seed: int,
    progress: Progress,
) -> Bypass:
    """A third of the prompts, drawn with the seed, chooses the layer; the others give the directions.

    Raises NoEffectError where the model has the same activations for both kinds, CheckpointError where it cannot be
    proven what writes to its residual stream, or where weights are packed.
    """
    all_writers = writers(loaded.model)
    (held_harmful, harmful), (held_harmless, harmless) = (_parted(some, seed) for some in (harmful, harmless))
    found = directions_of(loaded, harmful, harmless, batch_size=generation.batch_size, progress=progress)
    length = min(_ANSWER_TOKENS, generation.max_new_tokens)
    short = generation.model_copy(update={"max_new_tokens": length})
    measure = PromptMeasure((*held_harmful, *held_harmless), judge=judge, generation=short)

    def look() -> Left:
        rates = measure(loaded).metrics
        return Left(rates[HARM_REFUSAL.name].value, rates[BENIGN_COMPLIANCE.name].value)

    before, left = look(), dict[int, Left]()
    progress.start("layers", len(found.candidates))
    for layer in found.candidates:
        with ablated(loaded, found.unit(layer)[0], all_writers):
            left[layer] = look()
        progress.advance(1, note=f"layer {layer}: {left[layer].refusal:.0%} refused")
    progress.done()
    if not any(one.refusal == one.refusal and one.compliance == one.compliance for one in left.values()):
        raise DataError(
            "ablation", seen=f"no layer of {len(left)} whose answers the judge can place", expected="some it can",
            remedy="take another --judge, or raise --max-new-tokens",
        )  # fmt: skip
    chosen = bypass_layer(left, before, loss=_LOSS)
    return Bypass(chosen, found.unit(chosen)[0], before, left[chosen])


@contextmanager
def ablated(loaded: LoadedModel, direction: Tensor, among: Sequence[Writer] | None = None) -> Iterator[None]:
    """Within the block nothing is written along the unit vector `direction`; then the model has its own numbers again,
    bit for bit.

    The matrices that write to the residual stream are edited, and their biases. Of the embeddings it is what they give
    that is projected, before the first block: a head that shares their matrix keeps its own.
    """
    import torch

    all_writers = writers(loaded.model) if among is None else among
    units = {writer.name: _through_norms(direction, writer, loaded) for writer in all_writers}
    edits = {writer.name: _edit(writer, units[writer.name]) for writer in all_writers}
    unit = direction.float().to(loaded.model.device)

    def without(states: Tensor) -> Tensor:
        return states - ((states.float() @ unit)[..., None] * unit).to(states.dtype)

    def enter(_: Any, given: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        if given:
            return (without(given[0]), *given[1:]), named
        return given, {**named, "hidden_states": without(named["hidden_states"])}

    with torch.inference_mode(), ExitStack() as stack:
        first = blocks_of(loaded.model)[1][0]
        stack.callback(first.register_forward_pre_hook(enter, with_kwargs=True).remove)
        for writer in all_writers:
            bias = _bias(writer)
            if bias is not None:
                stack.callback(bias.copy_, bias.clone())
                along = units[writer.name].float().to(bias.device)
                bias.copy_(bias.float() - (bias.float() @ along)[..., None] * along)
        stack.enter_context(edited(all_writers, edits))
        yield


def _edit(writer: Writer, unit: Tensor) -> RankOne:
    if not writer.is_matrix:
        raise CheckpointError(
            writer.name, seen="packed weights", expected="weights in floating point, which a direction is taken out of",
            remedy="give the model before quantisation, or leave the ablation out (--no-ablation)",
        )  # fmt: skip
    return projected_out(writer.weight, unit)


def _through_norms(direction: Tensor, writer: Writer, loaded: LoadedModel) -> Tensor:
    """What a matrix must not write, for nothing along the direction to come out of the norms behind it: each multiplies
    the coordinates by its gains."""
    import torch

    device, dtype = loaded.model.device, loaded.model.dtype
    for norm in writer.norms:
        with torch.no_grad():
            gains = norm(torch.ones(1, len(direction), device=device, dtype=dtype))[0]
        direction = direction * gains.float().cpu().double()
    return direction / direction.norm()


def _bias(writer: Writer) -> Tensor | None:
    """What the matrix's own bias adds, a view into the model; None without one."""
    name = "bias" if writer.parameter == "weight" else f"{writer.parameter}_bias"
    found = getattr(writer.module, name, None)
    if found is None:
        return None
    return found.data if writer.expert is None else found.data[writer.expert]


def _parted(prompts: Sequence[Prompt], seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """A third at most, and the rest."""
    mixed = random.Random(f"bypass {seed}").sample(list(prompts), len(prompts))
    held = min(_HELD, len(mixed) // 3)
    return mixed[:held], mixed[held:]
