"""What an injection tried: rates over the strength of the edit, and how far apart harm lies before every block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignkeep.charts.figures import Figure, Labelled, Series, Table
from alignkeep.charts.svg import Curve, line_chart
from alignkeep.charts.text import interval, percent
from alignkeep.inject.injection import INJECTION_NAME, Injection, Tried, read_injection
from alignkeep.judging.metrics import BENIGN_COMPLIANCE, HARM_REFUSAL, OVER_REFUSAL, RATES
from alignkeep.stage import Finished

_SHOWN = tuple(metric.name for metric in (HARM_REFUSAL, OVER_REFUSAL, BENIGN_COMPLIANCE))


def figures_of(finished: Sequence[Finished], series: Series) -> tuple[Figure, ...]:
    """The figures of the injections among these folders."""
    ours = [one for one in finished if INJECTION_NAME in one.names]
    return injections_of([Labelled(one.label, read_injection(one.folder / INJECTION_NAME)) for one in ours])


def injections_of(found: Sequence[Labelled[Injection]]) -> tuple[Figure, ...]:
    """Two figures for every injection, in their order."""
    figures: list[Figure] = []
    for place, one in enumerate(found, start=1):
        behind = "" if place == 1 else f"-{place}"
        beside = "" if len(found) == 1 else f": {one.label}"
        figures += [_strengths(f"strength{behind}", beside, one.found), _layers(f"layers{behind}", beside, one.found)]
    return tuple(figures)


def _strengths(name: str, beside: str, found: Injection) -> Figure:
    title = f"Choosing the strength of the edit{beside}"
    side = -1 if found.chosen.strength < 0 else 1  # the paper's sign is tried both ways; the chosen one is drawn
    trials = [found.base, *(trial for trial in found.trials if trial.strength * side > 0)]
    rates = [rate for rate in _SHOWN if any(_is_known(trial, rate) for trial in trials)]
    curves = [
        Curve(
            RATES[rate].title,
            series,
            tuple((abs(trial.strength), 100 * trial.rates[rate].value) for trial in trials if _is_known(trial, rate)),
        )
        for series, rate in enumerate(rates)
    ]
    kind = found.strength.partition(":")[0]
    caption = (
        f"Rates on {found.prompts['held-out harmful']} harmful, {found.prompts['held-out harmless']} harmless and "
        f"{found.prompts['borderline']} borderline prompts that gave no direction, over the strength that was "
        f"tried; {found.strength} was taken. 0 is the model as it was."
    )
    notes = (
        _sentence(found),
        "The strength was chosen on these prompts, which flatters it a little: judge the model by others.",
    )
    across = {"push": "shift of harmful prompts, in units of ||s||", "raw": "alpha"}.get(kind, "share of ||W||")
    up = "%"
    if not curves:  # no answer could be judged
        odds = tuple((abs(trial.strength), trial.log_odds) for trial in trials)
        curves, up = [Curve("log-odds of refusal", 0, odds)], "log-odds of refusal"
    chart = line_chart(name, title, caption, curves, across=across, up=up)
    return Figure(name, title, caption, chart, _trials(found, rates), notes)


def _named(source: str) -> str:
    """The folder's name, not where it lies: pages are passed on, and the record has the whole path."""
    return Path(source).name if Path(source).is_absolute() else source


def _layers(name: str, beside: str, found: Injection) -> Figure:
    title = f"Harmful and harmless prompts, block by block{beside}"
    points = tuple((float(layer.layer), layer.d_prime) for layer in found.layers)
    caption = (
        "Distance of the mean activations of the two sets before every block, in units of their spread (d'). The "
        f"direction is that of block {found.layer}, taken from {_named(found.source)}."
    )
    header = ("Block", "d'", "Length of the difference", "Log-odds of refusal, edited", "Divergence, nats")
    rows = tuple(
        (
            f"{layer.layer}" + (", taken" if layer.layer == found.layer else ""),
            f"{layer.d_prime:.2f}",
            f"{layer.length:.3g}",
            "not tried" if layer.log_odds is None else f"{layer.log_odds:.2f}",
            "not tried" if layer.divergence is None else f"{layer.divergence:.3f}",
        )
        for layer in found.layers
    )
    chart = line_chart(name, title, caption, [Curve("d'", 1, points)], across="block", up="d'")
    return Figure(name, title, caption, chart, Table(header, rows))


def _trials(found: Injection, rates: Sequence[str]) -> Table:
    def told(trial: Tried, rate: str) -> str:
        return f"{percent(trial.rates[rate].value)} ({interval(trial.rates[rate])})" if _is_known(trial, rate) else "-"

    rows = tuple(
        (
            f"{trial.strength:.3g}" + (", taken" if trial.strength == found.chosen.strength else ""),
            *(told(trial, rate) for rate in rates),
            f"{trial.log_odds:.2f}",
            f"{trial.divergence:.3f}",
            trial.refused or "",
        )
        for trial in (found.base, *(trial for trial in found.trials if trial.strength))
    )
    titles = (RATES[rate].title for rate in rates)
    return Table(("Strength", *titles, "Log-odds of refusal", "Divergence, nats", "Costs too much"), rows)


def _sentence(found: Injection) -> str:
    right = (
        "the vector that answers to harmful prompts and is silent elsewhere"
        if found.right == "targeted"
        else f"the mean row of each matrix, {found.sign} sign"
    )
    left = f"; {len(found.skipped)} experts that saw no harmful prompt were left alone" if found.skipped else ""
    return f"{len(found.matrices)} matrices were edited, the right factor being {right}{left}."


def _is_known(trial: Tried, rate: str) -> bool:
    return rate in trial.rates and trial.rates[rate].n > 0
