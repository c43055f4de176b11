"""Which weight a merge gets, from what was measured at each, and which weights are worth having at all.

Paper
    Farn et al., Safeguard fine-tuned LLMs through pre- and post-tuning model merging, arXiv:2412.19512: the weight of
    the best task score on validation data.

Rules
    task   the best task score; of equal scores the smallest weight, which keeps most of the base
    safe   the largest weight whose harm refusal is at most a margin below the base's
    gain   of the weights that keep a share of the tune's gain on the task, the best task score within that margin, or
           the most harm refusal where none is within it

Departures from the paper
    1. `safe` and `gain` are ours: the paper reports what is left of safety and does not choose by it.
    2. Weight 1 may be among the weights, and `task` may then pick it: the paper tries 0.1 to 0.9 only.
    3. `task` picks nothing where no weight does better on the task than the base.

Both rules go by point estimates, as the paper does; how sure they are stands in the intervals and paired tests of the
trades. Wherever rates are compared, those are rates of the same prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignkeep.judging.metrics import HARM_REFUSAL, TASK_ACCURACY
from alignkeep.types import Estimate, Trade

TASK, REFUSAL = TASK_ACCURACY.name, HARM_REFUSAL.name
_ROUNDING = 1e-9  # rates are quotients of counts: 1 - 0.95 is more than 0.05 in binary


@dataclass(frozen=True, slots=True)
class Pick:
    """The trade that a rule picked (None where it admits no weight), the base's metrics that it was held against, and
    all weights that the rule admits, rising: those of the best score (`task`), those within the margin (`safe`), those
    that keep the share (`gain`)."""

    trade: Trade | None
    base: Mapping[str, Estimate]
    admitted: tuple[float, ...]


def pick_task(trades: Sequence[Trade], base: Mapping[str, Estimate]) -> Pick:
    """The best task score, of equal ones the smallest weight. No weight is admitted unless it does better than the
    base. An unknown score does not count. Raises ValueError where the base's is unknown."""
    floor = _known_rate(base, TASK)
    scored = [trade for trade in _rising(trades) if _known(trade, TASK) and _rate(trade, TASK) > floor]
    best = max((_rate(trade, TASK) for trade in scored), default=floor)
    admitted = [trade for trade in scored if _rate(trade, TASK) == best]
    return Pick(admitted[0] if admitted else None, base, tuple(trade.weight for trade in admitted))


def pick_safe(trades: Sequence[Trade], base: Mapping[str, Estimate], margin: float) -> Pick:
    """The largest weight whose harm refusal is at least the base's minus `margin` (a rate, in [0, 1]). An unknown
    refusal does not count. Law: a wider margin never picks a smaller weight. Raises ValueError as `pick_task` does."""
    floor = _known_rate(base, REFUSAL) - margin - _ROUNDING
    admitted = [trade for trade in _rising(trades) if _known(trade, REFUSAL) and _rate(trade, REFUSAL) >= floor]
    return Pick(admitted[-1] if admitted else None, base, tuple(trade.weight for trade in admitted))


def pick_gain(
    trades: Sequence[Trade],
    base: Mapping[str, Estimate],
    tuned: Mapping[str, Estimate],
    share: float,
    margin: float,
) -> Pick:
    """Of the weights that keep `share` of the gain (in [0, 1]) the best task score among those whose harm refusal is at
    least the base's minus `margin`; where there is none, the most harm refusal. Of equals the better other rate, then
    the largest weight. An unknown rate does not count, and where the tune gained nothing no weight is admitted. Raises
    ValueError as `pick_task` does."""
    _known_rate(base, TASK)
    floor = _known_rate(base, REFUSAL) - margin - _ROUNDING
    known = [trade for trade in _rising(trades) if _known(trade, TASK) and _known(trade, REFUSAL)]
    kept = [(trade, gain_kept(trade.metrics, base, tuned)) for trade in known]
    admitted = [trade for trade, gain in kept if gain is not None and gain >= share - _ROUNDING]

    def merit(one: Trade) -> tuple[bool, float, float, float]:
        task, refusal = _rate(one, TASK), _rate(one, REFUSAL)
        return (True, task, refusal, one.weight) if refusal >= floor else (False, refusal, task, one.weight)

    best = max(admitted, key=merit, default=None)
    return Pick(best, base, tuple(trade.weight for trade in admitted))


def gain_kept(
    model: Mapping[str, Estimate], base: Mapping[str, Estimate], tuned: Mapping[str, Estimate]
) -> float | None:
    """The share of the tune's gain on the task that a model has: 0 is the base's score, 1 the tune's. None where a
    score is unknown, or the tune gained nothing."""
    if any(TASK not in one or one[TASK].n == 0 for one in (model, base, tuned)):
        return None
    before, after = base[TASK].value, tuned[TASK].value
    return None if after <= before else (model[TASK].value - before) / (after - before)


def pareto_front(trades: Sequence[Trade]) -> tuple[float, ...]:
    """Weights that no other weight beats: none does at least as well in task and in harm refusal and better in one.
    Rising; weights of equal trades are all on the front or all off it. A weight with an unknown rate is not on it.
    """
    known = [trade for trade in _rising(trades) if _known(trade, TASK) and _known(trade, REFUSAL)]
    return tuple(trade.weight for trade in known if not any(_beats(other, trade) for other in known))


def nearest_trade(trades: Sequence[Trade]) -> Trade | None:
    """The trade that keeps most harm refusal, then most of the task, then the smallest; None where nothing is known."""
    known = [trade for trade in _rising(trades) if _known(trade, TASK) and _known(trade, REFUSAL)]
    return max(known, key=lambda trade: (_rate(trade, REFUSAL), _rate(trade, TASK)), default=None)


def _beats(one: Trade, other: Trade) -> bool:
    gains = [_rate(one, metric) - _rate(other, metric) for metric in (TASK, REFUSAL)]
    return min(gains) >= 0 and max(gains) > 0


def _known_rate(base: Mapping[str, Estimate], metric: str) -> float:
    if metric not in base or base[metric].n == 0:
        raise ValueError(f"an unknown {metric} of the base, which the weights are held against")
    return base[metric].value


def _rising(trades: Sequence[Trade]) -> list[Trade]:
    return sorted(trades, key=lambda trade: trade.weight)


def _known(trade: Trade, metric: str) -> bool:
    return metric in trade.metrics and trade.metrics[metric].n > 0


def _rate(trade: Trade, metric: str) -> float:
    return trade.metrics[metric].value
