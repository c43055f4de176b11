"""What tuning costs in alignment, over the amount of data: what was measured, and the law that was fitted."""

from __future__ import annotations

from collections.abc import Sequence

from alignkeep.checkpoint.forgetting import Fitted, ForgettingLaw
from alignkeep.report.figures import Curve, line_chart
from alignkeep.report.panels import Figure, Table

_POINTS = 40


def forgetting_of(laws: Sequence[ForgettingLaw]) -> tuple[Figure, ...]:
    """One figure for every law."""
    return tuple(_figure(law, f"forgetting-{at}" if at else "forgetting") for at, law in enumerate(laws))


def _figure(law: ForgettingLaw, name: str) -> Figure:
    curves: list[Curve] = []
    rows: list[tuple[str, ...]] = []
    for series, method in enumerate(law.amplitude, start=1):
        tunes = [(amount, loss - law.base_loss) for one, amount, loss in law.tunes if one == method]
        most = max((amount for amount, _ in tunes), default=law.unit)
        amounts = [most * at / _POINTS for at in range(1, _POINTS + 1)]
        fitted = tuple((amount, _excess(law, method, amount)) for amount in amounts)
        curves.append(Curve(method, series, fitted))
        for amount in sorted({amount for amount, _ in tunes}):
            seen = [excess for one, excess in tunes if one == amount]
            rows.append(
                (
                    method,
                    f"{amount:g}",
                    f"{sum(seen) / len(seen):.3f} ({len(seen)})",
                    f"{_excess(law, method, amount):.3f}",
                )
            )
    caption = (
        "Loss on the base's own refusals above the base's, in nats per token: the law amplitude x (amount / "
        f"{law.unit:g})^exponent + offset, one exponent for all methods ({_said(law.exponent)})."
    )
    notes = tuple(
        f"{method}: amplitude {_said(law.amplitude[method])}, offset {_said(law.offset[method])}"
        for method in law.amplitude
    )
    title = "What is forgotten over the amount of data"
    chart = line_chart(name, title, caption, curves, across="tuning examples", up="nats above the base")
    header = ("Method", "Examples", "Measured, mean (tunes)", "Fitted")
    return Figure(name, title, caption, chart, Table(header, tuple(rows)), notes)


def _excess(law: ForgettingLaw, method: str, amount: float) -> float:
    return law.amplitude[method][0] * (amount / law.unit) ** law.exponent[0] + law.offset[method][0]


def _said(fitted: Fitted) -> str:
    value, low, high = fitted
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"
