"""What an injection needs to know of a model: directions layer by layer, and what every writer is given.

The directions come from the model itself or from another one; what the writers are given always from the model that is
edited, without the system prompt, as it will be used.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignkeep.errors import CheckpointError, NoEffectError, ShapeError
from alignkeep.inject.config import InjectConfig
from alignkeep.inject.direction import Separation, candidate_layers, mean_difference, separation
from alignkeep.inject.prompts import PromptSets, system_prompt, with_system
from alignkeep.inject.rank_one import Matrix, mean_row, targeted_right
from alignkeep.inject.refusals import helpful_answers, openings, shown_refusals
from alignkeep.models.activations import Tokens, last_tokens, residual_states, writer_inputs
from alignkeep.models.architecture import Writer, blocks_of
from alignkeep.models.chat import IGNORED, encode_example, encode_prompt
from alignkeep.models.generation import context_length
from alignkeep.models.loading import LoadedModel, load_model
from alignkeep.models.matrices import grouped
from alignkeep.progress import Progress
from alignkeep.types import Example, Prompt

if TYPE_CHECKING:
    from torch import Tensor

_INPUT_BYTES = 2 << 30  # of writers' inputs held at a time; more passes over the prompts where they do not fit (chosen)


@dataclass(frozen=True)
class Directions:
    """One difference of means before every block, and how far apart the sets are there."""

    differences: Tensor  # (blocks, d) float64
    separations: tuple[Separation, ...]

    @property
    def candidates(self) -> list[int]:
        return candidate_layers(self.separations)

    def unit(self, layer: int) -> tuple[Tensor, float]:
        """Direction and length. Raises NoEffectError where the sets do not differ there."""
        found = self.separations[layer]
        if found.is_zero:
            raise NoEffectError(
                f"direction.layer {layer}",
                seen="the same activations for harmful and harmless prompts",
                expected="a difference",
                remedy=f"choose one of the layers {', '.join(map(str, self.candidates))}, or auto",
            )
        return self.differences[layer] / found.length, found.length


@dataclass(frozen=True)
class Extracted:
    """Directions, refusal tokens, and every writer's matrix by name; `skipped` are writers that saw no harmful
    token."""

    directions: Directions
    tokens: list[int]
    matrices: Mapping[str, Matrix]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


def extract(
    config: InjectConfig, loaded: LoadedModel, writers: Sequence[Writer], sets: PromptSets, progress: Progress
) -> Extracted:
    """Raises ShapeError for a source of another width or depth, NoEffectError where harmful and harmless prompts are
    the same to the model, CheckpointError for activations that are not finite, naming the layer."""
    source = loaded if config.direction.source is None else _source(config, loaded)
    system = system_prompt(config.direction)
    prompts = (with_system(sets.harmful, system), with_system(sets.harmless, system))
    directions = directions_of(source, *prompts, batch_size=config.search.generation.batch_size, progress=progress)
    shown = shown_refusals(source, sets.harmful, with_system(sets.harmful, system), config.search, progress)
    del source
    helped = helpful_answers(loaded, sets.harmless, config.search, progress)
    begun = openings(loaded, shown, helped, config.direction.refusals)
    notes = [f"refuses {len(shown)} of the {len(sets.harmful)} harmful prompts that give the direction"]
    if begun.are_usual:
        notes.append("with no refusal of its own to learn from, those of other assistants are taken")
    silent = _silent_places(config, loaded, sets, shown, helped)
    matrices, skipped = _matrices(config, loaded, writers, sets, silent, progress)
    return Extracted(directions, begun.tokens, matrices, skipped, tuple(notes))


def _source(config: InjectConfig, loaded: LoadedModel) -> LoadedModel:
    source = load_model(str(config.direction.source), config.load.model_copy(update={"revision": None}))
    sizes = [
        (len(blocks_of(one.model)[1]), one.model.get_input_embeddings().weight.shape[1]) for one in (source, loaded)
    ]
    if sizes[0] != sizes[1]:
        raise ShapeError(
            f"direction.source {config.direction.source}",
            seen=f"{sizes[0][0]} blocks of width {sizes[0][1]}",
            expected=f"{sizes[1][0]} of width {sizes[1][1]}, as in {config.model}",
            remedy="take the direction from a model of the same architecture, best the one that this was tuned from",
        )
    return source


def directions_of(
    source: LoadedModel, harmful: Sequence[Prompt], harmless: Sequence[Prompt], *, batch_size: int, progress: Progress
) -> Directions:
    """The direction between the two kinds of prompts before every block. Raises NoEffectError where there is none."""
    import torch

    states = [
        residual_states(source, last_tokens(source, prompts), progress=progress, batch_size=batch_size)
        for prompts in (harmful, harmless)
    ]
    pairs = list(zip(*states, strict=True))
    found = Directions(
        torch.stack([mean_difference(*pair) for pair in pairs]), tuple(separation(*pair) for pair in pairs)
    )
    if not found.candidates:
        raise NoEffectError(
            "direction",
            seen="the same activations for harmful and harmless prompts before every block",
            expected="a model to which they differ",
            remedy="check the prompts and the chat template",
        )
    return found


def _matrices(
    config: InjectConfig,
    loaded: LoadedModel,
    writers: Sequence[Writer],
    sets: PromptSets,
    silent: Sequence[Sequence[Tokens]],
    progress: Progress,
) -> tuple[dict[str, Matrix], tuple[str, ...]]:
    size = config.search.generation.batch_size
    harmful = last_tokens(loaded, sets.harmful)
    matrices: dict[str, Matrix] = {}
    skipped: list[str] = []
    count = sum(len(text.places) for place in (harmful, *silent) for text in place)
    for group in _passes(writers, count):
        answered = writer_inputs(loaded, harmful, group, batch_size=size, progress=progress)
        quiet = [writer_inputs(loaded, place, group, batch_size=size, progress=progress) for place in silent]
        for writer in group:
            found = _matrix(config, writer, answered[writer.name], [inputs[writer.name] for inputs in quiet])
            if found is None:
                skipped.append(writer.name)
            else:
                matrices[writer.name] = found
    return matrices, tuple(skipped)


def _matrix(config: InjectConfig, writer: Writer, harmful: Tensor, silent: Sequence[Tensor]) -> Matrix | None:
    """None for an expert that saw no harmful token, where its right factor or its sign goes by that."""
    targeted = config.edit.right == "targeted"
    if not len(harmful) and (targeted or config.edit.sign == "calibrated"):
        return None
    try:
        right = targeted_right(harmful.double().mean(0), silent) if targeted else mean_row(_whole(writer))
    except ValueError as error:
        raise NoEffectError(
            writer.name, seen=f"inputs that are all 0 ({error})", expected="activations", remedy="check the model"
        ) from error
    pushes = [
        writer.scale * float((inputs.double() @ right).mean()) if len(inputs) else float("nan")
        for inputs in (harmful, silent[0])
    ]
    norm = float(writer.weight.float().norm()) if writer.is_matrix else float("nan")
    return Matrix(right, norm, pushes[0], pushes[1], writer.place)


def _whole(writer: Writer) -> Tensor:
    if writer.is_matrix:
        return writer.weight.float().cpu()
    raise CheckpointError(
        writer.name,
        seen="packed weights, whose rows have no mean to take",
        expected="weights in floating point for the mean row",
        remedy="take --right targeted, which looks at activations alone",
    )


def _silent_places(
    config: InjectConfig,
    loaded: LoadedModel,
    sets: PromptSets,
    shown: Sequence[Example],
    helped: Sequence[Example],
) -> list[list[Tokens]]:
    """Where the edit has nothing to say: at the end of harmless prompts (first of the list), within them, within the
    answers to them, in a refusal once it has begun, and in general text. Of each at most `tokens` tokens, drawn with
    the seed. The paper's right factor knows no such places: of them only the first is looked at, to be reported."""
    ends = last_tokens(loaded, sets.harmless)
    if config.edit.right == "mean":
        return [ends]
    prompts = [_everywhere(encode_prompt(loaded.tokenizer, prompt)) for prompt in sets.harmless]
    answers, refusals = ([_within_answer(loaded, one) for one in some] for some in (helped, shown))
    general = [
        _everywhere(
            encode_prompt(loaded.tokenizer, text)
            if isinstance(text, Prompt)
            else encode_example(loaded.tokenizer, text).input_ids
        )
        for text in sets.general
    ]
    length = context_length(loaded)
    draw = random.Random(f"silent {config.seed}")
    places = [[_cut(text, length) for text in place] for place in (prompts, answers, refusals, general)]
    drawn = [_some(place, config.edit.tokens, draw) for place in places]
    return [ends, *(place for place in drawn if place)]


def _everywhere(ids: Sequence[int]) -> Tokens:
    return Tokens(tuple(ids), tuple(range(len(ids))))


def _within_answer(loaded: LoadedModel, example: Example) -> Tokens:
    """The tokens of an answer but for the last, at each of which the model says the next one."""
    ids, labels = encode_example(loaded.tokenizer, example)
    return Tokens(tuple(ids), tuple([place for place, label in enumerate(labels) if label != IGNORED][:-1]))


def _cut(text: Tokens, length: int | None) -> Tokens:
    if length is None or len(text.ids) <= length:
        return text
    return Tokens(text.ids[:length], tuple(place for place in text.places if place < length))


def _some(texts: Sequence[Tokens], count: int, draw: random.Random) -> list[Tokens]:
    """At most `count` of the places, the texts that keep none left out."""
    every = [(at, place) for at, text in enumerate(texts) for place in text.places]
    kept: dict[int, list[int]] = {}
    for at, place in draw.sample(every, min(count, len(every))):
        kept.setdefault(at, []).append(place)
    return [Tokens(texts[at].ids, tuple(sorted(places))) for at, places in sorted(kept.items())]


def _passes(writers: Sequence[Writer], tokens: int) -> Iterator[list[Writer]]:
    """Writers whose inputs fit into memory together. Experts of one module see each token a few times, not each."""
    return grouped(writers, lambda one: 4 * tokens * one.width if one.expert in (None, 0) else 0, _INPUT_BYTES)
