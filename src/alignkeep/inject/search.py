"""Layer and strength found by trying: every candidate is applied in memory and asked the held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignkeep.errors import NoEffectError, RecipeError
from alignkeep.inject.config import InjectConfig
from alignkeep.inject.direction import Effect, best_layer
from alignkeep.inject.extraction import Extracted
from alignkeep.inject.in_memory import edited
from alignkeep.inject.prompts import PromptSets
from alignkeep.inject.rank_one import Push, RankOne, Raw, Relative, Strength, alphas, rank_one
from alignkeep.inject.strength import LADDER, Choice, Floors, Trial, choose, search, too_much
from alignkeep.judging.judges import load_judge
from alignkeep.judging.log_odds import mean_divergence, refusal_log_odds
from alignkeep.judging.measure import PromptMeasure
from alignkeep.models.activations import last_tokens, next_token_log_probs
from alignkeep.models.architecture import Writer
from alignkeep.models.loading import LoadedModel
from alignkeep.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

# At which layers are compared (chosen: about half of what the testbed wants, less where that is too much).
LAYER_PUSHES = (0.5, 0.25, 0.125, 0.0625)
_BISECTIONS = 12


@dataclass(frozen=True)
class Found:
    """The edit that was chosen or given, and what was seen on the way to it: `effects` by layer, `trials` by strength,
    the first of them the unedited model's."""

    layer: int
    strength: Strength
    edits: Mapping[str, RankOne]
    alphas: Mapping[str, float]
    effects: Mapping[int, Effect]
    base: Trial
    chosen: Trial
    choice: Choice


class Bench:
    """One loaded model on which edits are tried."""

    def __init__(
        self,
        config: InjectConfig,
        loaded: LoadedModel,
        writers: Sequence[Writer],
        extracted: Extracted,
        sets: PromptSets,
        progress: Progress,
    ) -> None:
        import torch

        self._config, self._loaded, self._writers = config, loaded, writers
        self._extracted, self._progress = extracted, progress
        self._harmful, self._harmless = (last_tokens(loaded, some) for some in (sets.held_harmful, sets.held_harmless))
        self._tokens = torch.tensor(extracted.tokens)
        self._size = config.search.generation.batch_size
        self._measure = PromptMeasure(
            sets.held, judge=load_judge(config.search.judge), generation=config.search.generation
        )
        self._base = self._log_probs(self._harmless)

    def edits(self, layer: int, strength: Strength) -> tuple[dict[str, RankOne], dict[str, float]]:
        """The edit of every writer at this layer's direction, and its alpha."""
        direction, length = self._extracted.directions.unit(layer)
        edit = self._config.edit
        try:
            sizes = alphas(strength, self._extracted.matrices, length=length, sign=edit.sign)
        except ValueError as error:
            raise NoEffectError(
                "edit.strength", seen=str(error), expected="a matrix that does", remedy="take --strength raw:ALPHA"
            ) from error
        rights = self._extracted.matrices
        lefts = {writer.name: self._left(direction, writer) for writer in self._writers}
        return {name: rank_one(lefts[name], rights[name].right, alpha) for name, alpha in sizes.items()}, sizes

    def effect(self, edits: Mapping[str, RankOne] | None) -> Effect:
        """Refusal log-odds and divergence with these edits; None: of the model as it is."""
        with self._with(edits):
            odds = float(refusal_log_odds(self._log_probs(self._harmful), self._tokens).mean())
            return Effect(odds, mean_divergence(self._base, self._log_probs(self._harmless)) if edits else 0.0)

    def trial(self, edits: Mapping[str, RankOne] | None, strength: float, label: str) -> Trial:
        """The effect, and the rates of the answers."""
        effect = self.effect(edits)
        self._progress.start(label, len(self._measure.prompts))
        with self._with(edits):
            found = self._measure(self._loaded, self._progress)
        self._progress.done()
        return Trial(strength, found.metrics, effect.log_odds, effect.divergence)

    def _with(self, edits: Mapping[str, RankOne] | None) -> AbstractContextManager[None]:
        return nullcontext() if edits is None else edited(self._writers, edits)

    def _log_probs(self, texts: Any) -> Tensor:
        return next_token_log_probs(self._loaded, texts, batch_size=self._size)

    def _left(self, direction: Tensor, writer: Writer) -> Tensor:
        """The direction, or what the norms behind this writer turn into it."""
        import torch

        if not self._config.edit.through_norm:
            return direction
        device, dtype = self._loaded.model.device, self._loaded.model.dtype
        for norm in reversed(writer.norms):
            with torch.no_grad():
                gains = norm(torch.ones(1, len(direction), device=device, dtype=dtype))[0]
            direction = direction / gains.float().cpu().double()
        return direction


def find(config: InjectConfig, bench: Bench, extracted: Extracted, progress: Progress) -> Found:
    """Layer first, then strength. Raises NoEffectError where no strength that is allowed raises refusal, RecipeError
    for a strength given that breaks the model or lowers refusal (unless that is allowed)."""
    if isinstance(config.direction.layer, int):
        extracted.directions.unit(_within(config.direction.layer, extracted))
    effects = _effects(config, bench, extracted, progress)
    layer = _layer(config, effects)
    base = bench.trial(None, 0.0, "held-out prompts, as it is")
    if config.edit.strength == "auto":
        choice = _search(config, bench, layer, base)
        strength: Strength = Push(choice.chosen.strength if choice.chosen else 0.0)
    else:
        strength = parse_strength(config.edit.strength)
        choice = _given(config, bench, layer, strength, base)
    chosen = choice.chosen
    assert chosen is not None
    edits, sizes = bench.edits(layer, strength)
    return Found(layer, strength, edits, sizes, effects, base, chosen, choice)


def parse_strength(text: str) -> Strength:
    """`raw:40` and its like as a value; the config has checked its form."""
    kind, _, number = text.partition(":")
    return {"raw": Raw, "relative": Relative, "push": Push}[kind](float(number))


def size_of(strength: Strength) -> float:
    """The one number in it."""
    match strength:
        case Raw(number) | Relative(number) | Push(number):
            return number


def floors_of(config: InjectConfig) -> Floors:
    search = config.search
    return Floors(
        target=search.target,
        benign_loss=search.benign_loss,
        over_refusal=search.over_refusal,
        divergence=search.divergence,
    )


def _effects(config: InjectConfig, bench: Bench, extracted: Extracted, progress: Progress) -> dict[int, Effect]:
    """Of every candidate layer, at one strength: half as much again and again while all of them diverge too far. With
    the paper's sign that of the two which is allowed, and of two the better."""
    wanted, most = config.direction.layer, config.search.divergence
    candidates = extracted.directions.candidates if wanted == "auto" else [wanted]
    found: dict[int, Effect] = {}
    for push in LAYER_PUSHES:
        progress.start("layers tried", len(candidates))
        for layer in candidates:
            tried = [bench.effect(bench.edits(layer, Push(sign * push))[0]) for sign in _signs(config)]
            found[layer] = max(tried, key=lambda effect: (effect.divergence <= most, effect.log_odds))
            progress.advance(1, note=f"layer {layer}: log-odds {found[layer].log_odds:.2f}")
        progress.done()
        if best_layer(found, most=most) is not None:
            break
    return found


def _signs(config: InjectConfig) -> tuple[int, ...]:
    return (1, -1) if (config.edit.right, config.edit.sign) == ("mean", "literal") else (1,)


def _within(layer: int, extracted: Extracted) -> int:
    blocks = len(extracted.directions.separations)
    if layer >= blocks:
        raise RecipeError(
            "direction.layer", seen=str(layer), expected=f"auto, or 0 to {blocks - 1}", remedy="choose one of these"
        )
    return layer


def _layer(config: InjectConfig, effects: Mapping[int, Effect]) -> int:
    wanted = config.direction.layer
    if isinstance(wanted, int):
        return wanted
    found = best_layer(effects, most=config.search.divergence)
    if found is None:  # even the gentlest strength is too much: the gentlest layer is the one to begin with
        return min(effects, key=lambda layer: effects[layer].divergence)
    return found


def _search(config: InjectConfig, bench: Bench, layer: int, base: Trial) -> Choice:
    floors = floors_of(config)
    if base.refusal >= floors.target:
        raise NoEffectError(
            "edit.strength auto",
            seen=f"{base.refusal:.0%} of the held-out harmful prompts refused without an edit",
            expected=f"a model that refuses less than search.target, {floors.target:.0%}",
            remedy="nothing is left to raise; give harmful prompts that it answers",
        )
    trials: list[Trial] = []
    for sign in _signs(config):
        found = search(
            lambda shift: bench.trial(bench.edits(layer, Push(shift))[0], shift, f"held-out prompts, push {shift:.3g}"),
            base,
            floors,
            [sign * shift for shift in LADDER],
        )
        trials += found.trials
    choice = choose(trials, base, floors)
    if choice.chosen is None:
        raise NoEffectError(
            "edit.strength auto",
            seen="; ".join(f"push {strength:.3g}: {why}" for strength, why in choice.refused.items()),
            expected="a strength that raises refusal at the allowed cost",
            remedy="allow more (search.benign_loss, search.over_refusal, search.divergence), give more prompts, "
            "or take the direction from an aligned model (--direction-from)",
        )
    return choice


def _given(config: InjectConfig, bench: Bench, layer: int, strength: Strength, base: Trial) -> Choice:
    """The one trial of a strength that was asked for, if it may be."""
    number = size_of(strength)
    edits, _ = bench.edits(layer, strength)
    trial = bench.trial(edits, number, f"held-out prompts, {config.edit.strength}") if number else base
    if not trial.divergence <= config.search.divergence:
        most = _largest(config, bench, layer, strength)
        raise RecipeError(
            "edit.strength",
            seen=f"{config.edit.strength}: {trial.divergence:.2f} nats of divergence on harmless prompts",
            expected=f"at most {config.search.divergence:g}",
            remedy=f"take {config.edit.strength.partition(':')[0]}:{most:.3g} or less, or raise search.divergence",
        )
    if number and not trial.log_odds >= base.log_odds and not config.edit.allow_lower:
        raise RecipeError(
            "edit.strength",
            seen=f"{config.edit.strength}: refusal log-odds fall from {base.log_odds:.2f} to {trial.log_odds:.2f}",
            expected="an edit that does not lower refusal",
            remedy="turn its sign or take --sign calibrated; --allow-lower for an experiment",
        )
    fault = too_much(trial, base, floors_of(config)) if number else None
    return Choice((trial,), trial, {} if fault is None else {number: fault})


def _largest(config: InjectConfig, bench: Bench, layer: int, strength: Strength) -> float:
    """The largest strength of this kind and sign whose divergence is allowed, to a few percent."""

    def fits(size: float) -> bool:
        return bench.effect(bench.edits(layer, type(strength)(size))[0]).divergence <= config.search.divergence

    high = size_of(strength)
    low = next((size for size in (high / 8**step for step in range(1, _BISECTIONS)) if fits(size)), 0.0)
    high = 8 * low
    for _ in range(_BISECTIONS):
        if abs(high - low) <= 0.02 * abs(high):
            break
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
