"""The law by which alignment is forgotten: the loss on alignment data against the amount of tuning data.

Sources
    AlignGuard-LoRA, arXiv:2508.02079 (reconstructed): L = L0 + A D_ft^beta / N^alpha + E.
    Bethune et al., Scaling laws for forgetting during finetuning with pretraining data injection, arXiv:2502.06042:
    the law.

Symbols (paper -> here)
    L, L0         loss, base_loss    on alignment data, after the tune and before, in nats per token
    D_ft          amount             of tuning data, in units of `unit`
    A / N^alpha   amplitude          of one model size: N does not vary, so the two cannot be told apart
    beta, E       exponent, offset

Departures
    1. One exponent for all methods, and amounts in fixed units: else the amplitudes of two methods cannot be compared.
    2. Residuals are of log(L - L0), under a Huber loss. An excess of `SMALLEST` or less counts as that.
    3. Intervals are percentiles of fits to observations drawn again within each method and amount (seeds).
"""

# SciPy brings no types:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares

SMALLEST = 1e-3  # nats of excess loss (chosen: below what a few hundred answer tokens can tell)
AMOUNTS = 5  # distinct ones, at least, of every method
_OUTLIER = 0.25  # where Huber's loss turns linear, in log units (chosen)
_LARGEST = 4.0  # exponent

Array = np.ndarray


class Observation(NamedTuple):
    """One tune: its method, the amount of data in any one unit, and the loss on alignment data after it."""

    method: str
    amount: float
    loss: float


class Interval(NamedTuple):
    """A fitted number with its 95 % interval."""

    value: float
    low: float
    high: float


class Forgetting(NamedTuple):
    """The fit: `exponent` of all methods, `amplitude` and `offset` of each in nats, and what `unit` of data they are
    for. `residual` is the root mean square of the residuals, in log units."""

    exponent: Interval
    amplitude: Mapping[str, Interval]
    offset: Mapping[str, Interval]
    unit: float
    residual: float

    def predicted(self, method: str, amounts: Float[Array, " n"]) -> Float[Array, " n"]:
        """Excess loss over the base's, in nats."""
        return self.amplitude[method].value * (amounts / self.unit) ** self.exponent.value + self.offset[method].value


def fit_forgetting(
    observations: Sequence[Observation], base_loss: float, *, unit: float, draws: int = 200, seed: int = 0
) -> Forgetting:
    """Law: adding a constant to all losses and to the base's changes nothing. Raises ValueError for fewer than five
    amounts of a method, an amount that is not positive, or numbers that are not finite."""
    _check(observations, base_loss, unit)
    methods = sorted({one.method for one in observations})
    which = np.array([methods.index(one.method) for one in observations])
    # In units of their own middle, so that the bounds of the fit mean the same whatever the unit.
    middle = float(np.exp(np.mean(np.log([one.amount for one in observations]))))
    amounts = np.array([one.amount / middle for one in observations])
    excess = np.log(np.maximum([one.loss - base_loss for one in observations], SMALLEST))
    fitted = _fit(which, amounts, excess, len(methods))
    residual = float(np.sqrt(np.mean(_residuals(fitted, which, amounts, excess) ** 2)))
    cells: dict[tuple[int, float], list[int]] = {}
    for at, key in enumerate(zip(which.tolist(), amounts.tolist(), strict=True)):
        cells.setdefault(key, []).append(at)
    generator = np.random.default_rng(seed)
    again = [
        _values(_fit(which[chosen], amounts[chosen], excess[chosen], len(methods), fitted))
        for chosen in (
            np.concatenate([generator.choice(cell, len(cell)) for cell in cells.values()]) for _ in range(draws)
        )
    ]
    count = len(methods)
    every = np.array([_values(fitted), *again])
    every[:, 1 : 1 + count] *= (unit / middle) ** every[:, :1]
    lows, highs = np.quantile(every, [0.025, 0.975], axis=0)
    lows, highs = np.minimum(lows, every[0]), np.maximum(highs, every[0])
    found = [Interval(*map(float, three)) for three in zip(every[0], lows, highs, strict=True)]
    return Forgetting(
        exponent=found[0],
        amplitude=dict(zip(methods, found[1 : 1 + count], strict=True)),
        offset=dict(zip(methods, found[1 + count :], strict=True)),
        unit=unit,
        residual=residual,
    )


def _check(observations: Sequence[Observation], base_loss: float, unit: float) -> None:
    amounts: dict[str, set[float]] = {}
    for one in observations:
        amounts.setdefault(one.method, set()).add(one.amount)
        if not (one.amount > 0 and np.isfinite(one.amount) and np.isfinite(one.loss)):
            raise ValueError(f"need positive amounts and finite losses, got {one}")
    for method, some in amounts.items():
        if len(some) < AMOUNTS:
            raise ValueError(f"need at least {AMOUNTS} amounts of every method, got {len(some)} of {method}")
    if not amounts or not np.isfinite(base_loss) or not unit > 0:
        raise ValueError(f"need observations, a finite loss of the base and a positive unit, got {base_loss}, {unit}")


def _fit(
    which: Array, amounts: Array, excess: Array, methods: int, start: Array | None = None
) -> Float[Array, " parameters"]:
    """Exponent, log amplitudes and log offsets of least Huber loss; from two starts, unless one is given."""
    low = np.r_[0.0, np.full(2 * methods, np.log(SMALLEST) - 7)]
    high = np.r_[_LARGEST, np.full(2 * methods, np.log(1e3))]
    middle = np.array([excess[which == one].mean() for one in range(methods)])
    starts = [np.r_[exponent, middle, middle - 3] for exponent in (0.5, 1.5)] if start is None else [start]
    fits = [
        least_squares(
            _residuals,
            np.clip(one, low + 1e-9, high - 1e-9),
            bounds=(low, high),
            loss="huber",
            f_scale=_OUTLIER,
            args=(which, amounts, excess),
        )
        for one in starts
    ]
    return min(fits, key=lambda fit: fit.cost).x


def _residuals(parameters: Array, which: Array, amounts: Array, excess: Array) -> Float[Array, " n"]:
    exponent, *rest = _values(parameters)
    half = len(rest) // 2
    amplitudes, offsets = np.array(rest[:half]), np.array(rest[half:])
    return np.log(amplitudes[which] * amounts**exponent + offsets[which]) - excess


def _values(parameters: Array) -> list[float]:
    return [float(parameters[0]), *np.exp(parameters[1:]).tolist()]
