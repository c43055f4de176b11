"""From a model and prompts to its edit: everything that needs the model in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING

from alignkeep.inject.adapter_form import check_adaptable, check_joinable
from alignkeep.inject.extraction import Extracted, extract
from alignkeep.inject.in_memory import edited
from alignkeep.inject.injection import Injection, LayerFacts, MatrixFacts, Tried
from alignkeep.inject.prepare import Prepared
from alignkeep.inject.rank_one import Push, RankOne, Raw, Relative, Strength
from alignkeep.inject.search import Bench, Found, find, size_of
from alignkeep.inject.strength import Trial
from alignkeep.models.activations import last_tokens, residual_states
from alignkeep.models.adapters import folded
from alignkeep.models.architecture import Writer, writers
from alignkeep.models.loading import LoadedModel, load_model
from alignkeep.models.stored import Stored, stored_as
from alignkeep.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FoundEdit:
    """The edits by writer's name, where the writers lie on disk, and the model in memory that they are for."""

    loaded: LoadedModel
    writers: tuple[Writer, ...]
    stored: Mapping[str, Stored]
    edits: Mapping[str, RankOne]
    extracted: Extracted
    injection: Injection
    notes: tuple[str, ...]


def find_edit(prepared: Prepared, progress: Progress) -> FoundEdit:
    """Load, look, try, choose."""
    config, sets = prepared.config, prepared.sets
    loaded = load_model(config.model, config.load)
    all_writers = writers(loaded.model)
    whole = config.form == "model"
    stored = stored_as(all_writers, loaded.model, prepared.entries) if whole else {}
    if not whole:
        check_adaptable(loaded.model, all_writers)
    if prepared.is_adapter and not whole:
        check_joinable(prepared.folder, all_writers)
    if prepared.is_adapter:  # on disk lie the base's numbers; what is edited are the adapter's on top of them
        loaded.model = folded(loaded.model, prepared.folder)
        all_writers = writers(loaded.model)
    extracted = extract(config, loaded, all_writers, sets, progress)
    bench = Bench(config, loaded, all_writers, extracted, sets, progress)
    found = find(config, bench, extracted, progress)
    shifts = _shifts(prepared, loaded, all_writers, found, extracted)
    injection = _injection(prepared, found, extracted, shifts)
    notes = [*extracted.notes]
    if extracted.skipped:
        named = ", ".join(extracted.skipped[:3])
        notes.append(f"{len(extracted.skipped)} experts saw no harmful prompt and stay as they are ({named} ...)")
    away = sum((one.harmful or 0.0) < 0 for one in injection.matrices)
    if away:
        notes.append(f"{away} of {len(injection.matrices)} matrices push harmful prompts away from the direction")
    if not sets.borderline:
        notes.append("over-refusal was not looked at: there are no borderline prompts")
    if size_of(found.strength) == 0:
        notes.append(f"{injection.strength}: the model itself, as asked")
    return FoundEdit(loaded, all_writers, stored, found.edits, extracted, injection, tuple(notes))


def said(strength: Strength) -> str:
    """A strength as it is given on the command line."""
    match strength:
        case Raw(number):
            return f"raw:{number:g}"
        case Relative(number):
            return f"relative:{number:g}"
        case Push(number):
            return f"push:{number:.4g}"


def _shifts(
    prepared: Prepared, loaded: LoadedModel, all_writers: Sequence[Writer], found: Found, extracted: Extracted
) -> tuple[tuple[float, float], ...]:
    """By how much held-out harmful and harmless prompts move along the direction before every block, measured."""
    direction, length = extracted.directions.unit(found.layer)
    size = prepared.config.search.generation.batch_size

    def along(prompts: Sequence[object]) -> Tensor:
        texts = last_tokens(loaded, prompts)  # pyright: ignore[reportArgumentType]
        before = residual_states(loaded, texts, batch_size=size)
        with edited(all_writers, found.edits):
            after = residual_states(loaded, texts, batch_size=size)
        return ((after - before).double() @ direction).mean(1) / length

    pairs = zip(along(prepared.sets.held_harmful).tolist(), along(prepared.sets.held_harmless).tolist(), strict=True)
    return tuple(pairs)


def _injection(
    prepared: Prepared, found: Found, extracted: Extracted, shifts: tuple[tuple[float, float], ...]
) -> Injection:
    config, sets = prepared.config, prepared.sets
    _, length = extracted.directions.unit(found.layer)
    layers = [
        LayerFacts(
            number,
            one.d_prime,
            one.length,
            found.effects[number].log_odds if number in found.effects else None,
            found.effects[number].divergence if number in found.effects else None,
        )
        for number, one in enumerate(extracted.directions.separations)
    ]
    matrices = [
        MatrixFacts(
            name,
            alpha,
            _known(extracted.matrices[name].harmful * alpha / length),
            _known(extracted.matrices[name].harmless * alpha / length),
        )
        for name, alpha in found.alphas.items()
    ]
    return Injection(
        layer=found.layer,
        length=length,
        strength=said(found.strength),
        right=config.edit.right,
        sign=config.edit.sign,
        source=config.direction.source or config.model,
        base=_tried(found.base, {}),
        chosen=_tried(found.chosen, {}),
        trials=tuple(_tried(trial, found.choice.refused) for trial in found.choice.trials),
        layers=tuple(layers),
        matrices=tuple(matrices),
        skipped=extracted.skipped,
        shifts=shifts,
        prompts={
            "harmful": len(sets.harmful),
            "harmless": len(sets.harmless),
            "held-out harmful": len(sets.held_harmful),
            "held-out harmless": len(sets.held_harmless),
            "borderline": len(sets.borderline),
        },
    )


def _tried(trial: Trial, refused: Mapping[float, str]) -> Tried:
    return Tried(trial.strength, trial.rates, trial.log_odds, trial.divergence, refused.get(trial.strength))


def _known(value: float) -> float | None:
    return None if isnan(value) else value
