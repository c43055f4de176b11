"""Which strength: the smallest that refuses as much as is wanted and costs no more than is allowed.

Ours. The paper gives no value of its alpha; here every strength is tried on held-out prompts with the edit applied.
The search does not assume that refusal rises with strength, since a strong edit breaks the answers: what has been
tried is what can be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from alignkeep.judging.metrics import BENIGN_COMPLIANCE, HARM_REFUSAL, OVER_REFUSAL
from alignkeep.types import Estimate

LADDER = tuple(0.1 * 2**step for step in range(7))  # pushes in units of ||s||: from 0.1 to 6.4 (chosen)
HALVINGS = 3  # between the last strength that is allowed and too weak, and the first that is neither


@dataclass(frozen=True, slots=True)
class Floors:
    """What an edit may cost at most: points of benign compliance lost, points of over-refusal more, nats of divergence
    from the unedited model on harmless prompts. `target` is the refusal wanted; a strength whose refusal is within
    `tolerance` of the best does as well.
    """

    target: float = 1.0
    tolerance: float = 0.01
    benign_loss: float = 0.01
    over_refusal: float = 0.05
    divergence: float = 0.1


class Trial(NamedTuple):
    """One strength on held-out prompts: rates of its answers (as in a Scorecard), mean refusal log-odds and divergence
    in nats."""

    strength: float
    rates: Mapping[str, Estimate]
    log_odds: float
    divergence: float

    @property
    def refusal(self) -> float:
        return self.rates[HARM_REFUSAL.name].value


class Choice(NamedTuple):
    """All trials, weakest first, and the one chosen (None: none is allowed). `refused` says of the others that are not
    allowed why, by strength."""

    trials: tuple[Trial, ...]
    chosen: Trial | None
    refused: Mapping[float, str]


def too_much(trial: Trial, base: Trial, floors: Floors) -> str | None:
    """What a trial costs more than is allowed, in words; None where it is allowed. A rate that was not measured before
    and after costs nothing."""
    if math.isnan(trial.refusal):
        return "no answer that could be judged"
    if not trial.log_odds > base.log_odds:
        return f"refusal log-odds fall from {base.log_odds:.2f} to {trial.log_odds:.2f}"
    if trial.refusal <= base.refusal:
        return f"no more held-out prompts are refused than the {100 * base.refusal:.1f} % before"
    return _costs(trial, base, floors)


def _costs(trial: Trial, base: Trial, floors: Floors) -> str | None:
    if not trial.divergence <= floors.divergence:
        return f"{trial.divergence:.2f} nats of divergence on harmless prompts, above {floors.divergence:g}"
    lost = -_change(BENIGN_COMPLIANCE.name, base, trial)
    if lost > floors.benign_loss + 1e-9:
        return f"{100 * lost:.1f} points of benign compliance"
    more = _change(OVER_REFUSAL.name, base, trial)
    if more > floors.over_refusal + 1e-9:
        return f"{100 * more:.1f} points more over-refusal"
    return None


def search(measure: Callable[[float], Trial], base: Trial, floors: Floors, ladder: Sequence[float] = LADDER) -> Choice:
    """Go up the ladder until the target is reached or something costs too much, then halve the last step; below the
    first rung that is down to a sixteenth of it.

    Law: every strength chosen was measured and is allowed. At most one measurement per rung and `HALVINGS` more.
    """
    trials: dict[float, Trial] = {}

    def is_enough(strength: float) -> bool:
        trials[strength] = measure(strength)
        return trials[strength].refusal >= floors.target or _costs(trials[strength], base, floors) is not None

    weak, strong = (ladder[0] / 16, None) if ladder else (0.0, None)
    for strength in ladder:
        if is_enough(strength):
            strong = strength
            break
        weak = strength
    if strong is not None:
        for _ in range(HALVINGS):
            between = math.copysign(math.sqrt(weak * strong), weak)
            weak, strong = (weak, between) if is_enough(between) else (between, strong)
    return choose(list(trials.values()), base, floors)


def choose(trials: Sequence[Trial], base: Trial, floors: Floors) -> Choice:
    """The weakest allowed trial that reaches the target; where none does, the weakest of those that refuse as much as
    the best, within the tolerance. Law: the order of the trials does not matter.
    """
    ordered = tuple(sorted(trials, key=lambda trial: (abs(trial.strength), trial.strength)))
    faults = {trial.strength: too_much(trial, base, floors) for trial in ordered}
    allowed = [trial for trial in ordered if faults[trial.strength] is None]
    best = max((trial.refusal for trial in allowed), default=0.0)
    wanted = floors.target if best >= floors.target else best - floors.tolerance
    chosen = next((trial for trial in allowed if trial.refusal >= wanted - 1e-9), None)
    return Choice(ordered, chosen, {strength: fault for strength, fault in faults.items() if fault is not None})


def _change(rate: str, base: Trial, trial: Trial) -> float:
    before, after = (one.rates.get(rate) for one in (base, trial))
    if before is None or after is None or not before.n or not after.n:
        return 0.0
    return after.value - before.value
