"""Alignments: how often held-out answers beat their references, and the three terms that GRAO learns from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from alignkeep.charts.figures import Figure, Points, Series, Table, caption_end, thinned
from alignkeep.charts.svg import Curve, line_chart
from alignkeep.charts.text import interval, percent, points
from alignkeep.stage import Finished
from alignkeep.trainers.log import LOG_NAME, column, inner, number
from alignkeep.types import Estimate

TERMS = ("imitation", "exploration", "regulariser")
_JUDGED = ("spec", "criterion", "both_orders", "tie_margin")  # the settings of a reward that change what it says
_LEAST = 0.0005  # a share below it would be printed as 0.0 %


@dataclass(frozen=True)
class Alignment:
    """A folder of the stage `align`: (step, share of the held-out answers that are better than their reference) and
    (step, share of those at least as good); of GRAO every one of `TERMS` as (step, value).

    `estimates` and `shares` (of `samples`) are the record's, without what is null or damaged; `judged` is equal for
    runs that were looked at with the same reward and prompts.
    """

    label: str
    looks: Points = ()
    ties: Points = ()
    terms: Mapping[str, Points] = field(default_factory=dict[str, Points])
    estimates: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])
    shares: Mapping[str, float] = field(default_factory=dict[str, float])
    samples: int = 0
    judged: str = ""


def figures_of(finished: Sequence[Finished], series: Series) -> tuple[Figure, ...]:
    """The figures of the alignments among these folders."""
    ours = [one for one in finished if LOG_NAME in one.names and one.facts.get("stage") == "align"]
    return alignments_of([read_alignment(one) for one in ours], series)


def read_alignment(one: Finished) -> Alignment:
    """An alignment from its log and the facts of its record. Raises DataError for a broken log."""
    log = one.folder / LOG_NAME
    result, config, inputs = (inner(one.facts, name) for name in ("result", "config", "inputs"))
    looks, ties = (column(log, f"held_out/{name}") for name in ("ras", "ras_or_tie"))
    terms = {name: column(log, f"grao/{name}") for name in TERMS}
    estimates = {name: _estimate(result.get(name)) for name in ("ras", "ras_or_tie", "ras_before", "nag")}
    shares = {name: number(result.get(name)) for name in ("cut", "unscored")}
    reward, held_out = inner(config, "reward"), inner(config, "held_out")
    judged = [*(reward.get(name) for name in _JUDGED), inputs.get("held_out.data"), held_out.get("limit")]
    return Alignment(
        label=one.label,
        looks=_shares(looks),
        ties=_shares(ties),
        terms={name: points for name, points in terms.items() if points},
        estimates={name: one for name, one in estimates.items() if one is not None},
        shares={name: share for name, share in shares.items() if share is not None and 0 <= share <= 1},
        samples=int(number(result.get("samples")) or 0),
        judged=json.dumps(judged, sort_keys=True),
    )


def _shares(points: Points) -> Points:
    return tuple((step, share) for step, share in points if 0 <= share <= 1)


def _estimate(value: object) -> Estimate | None:
    """A number with its interval; None where one of them is missing or nothing was counted."""
    parts = value if isinstance(value, Mapping) else {}
    found, low, high, n = (number(parts.get(name)) for name in ("value", "low", "high", "n"))
    if found is None or low is None or high is None or n is None or n < 1:
        return None
    return Estimate(found, low, high, int(n))


def alignments_of(found: Sequence[Alignment], series: Series) -> tuple[Figure, ...]:
    """One figure for all runs with held-out prompts, and one for every run of GRAO, in their order."""
    looked = [one for one in found if one.looks]
    figures = [_better(looked, series)] if looked else []
    for place, one in enumerate((one for one in found if one.terms), start=1):
        behind = "" if place == 1 else f"-{place}"
        figures.append(_terms(f"terms{behind}", "" if len(found) == 1 else f": {one.label}", one))
    return tuple(figures)


def _better(looked: Sequence[Alignment], series: Series) -> Figure:
    title = "Better than the reference"
    colours = series(one.label for one in looked)
    curves = [
        Curve(one.label, colours[one.label], tuple((step, 100 * share) for step, share in one.looks)) for one in looked
    ]
    caption = (
        f"Answers that the reward puts above their reference (RAS), of {_prompts(looked)} that were not learned from; "
        "step 0 is the model as it was. Answers are greedy, one for every prompt, and a tie is not counted. The gain "
        "(NAG) is the share of answers that became better minus the share that became worse."
    )
    notes = [f"{one.label}: {facts}." for one in looked if (facts := "; ".join([*_gain(one), *_samples(one)]))]
    if len({one.judged for one in looked}) > 1:
        notes.append("Not all runs had the same reward and the same prompts: their curves cannot be compared.")
    notes.append("The reward is the one that was learned from, which flatters a run: judge the model by others.")
    rows = tuple(row for one in looked for row in _looks(one))
    table = Table(("Run", "Step", "Better than the reference", "At least as good"), rows)
    chart = line_chart("ras", title, caption, curves, across="step", up="share of answers, %")
    return Figure("ras", title, caption, chart, table, tuple(notes))


def _looks(one: Alignment) -> list[tuple[str, ...]]:
    """Every look as a row of the table; the record has the intervals of the first and of the last."""
    first, last = one.looks[0][0], one.looks[-1][0]
    better = {first: one.estimates.get("ras_before"), last: one.estimates.get("ras")}
    as_good = {last: one.estimates.get("ras_or_tie")}
    ties = dict(one.ties)
    return [
        (one.label, f"{step:g}", _told(share, better.get(step)), _told(ties.get(step), as_good.get(step)))
        for step, share in one.looks
    ]


def _told(share: float | None, estimate: Estimate | None) -> str:
    """With the interval of the record, where that has the same share."""
    if share is None:
        return "-"
    if estimate is None or not math.isclose(estimate.value, share):
        return percent(share)
    return f"{percent(share)} ({interval(estimate)})"


def _prompts(looked: Sequence[Alignment]) -> str:
    counts = sorted({one.estimates["ras"].n for one in looked if "ras" in one.estimates})
    return f"{' or '.join(map(str, counts))} prompts" if counts else "prompts"


def _gain(one: Alignment) -> list[str]:
    nag = one.estimates.get("nag")
    if nag is None:
        return []
    return [f"gain {points(nag.value)} points ({points(nag.low)} to {points(nag.high)}, n = {nag.n})"]


def _samples(one: Alignment) -> list[str]:
    """What went wrong with the samples that were learned from, in words; nothing where nothing did."""
    among = f"the {one.samples} samples" if one.samples else "the samples"
    words = {"cut": "cut off at the longest answer", "unscored": "without a reward"}
    return [
        f"{percent(one.shares[name])} of {among} {words[name]}" for name in words if one.shares.get(name, 0) >= _LEAST
    ]


def _terms(name: str, beside: str, one: Alignment) -> Figure:
    title = f"What GRAO learns from{beside}"
    drawn = [(term, one.terms[term]) for term in TERMS if term in one.terms]
    curves = [Curve(term.capitalize(), 1 + TERMS.index(term), thinned(logged)) for term, logged in drawn]
    caption = (
        "The terms whose sum is raised, with their strengths: log-probabilities of references (imitation), of samples "
        "(exploration) and of samples minus references (regulariser), each times its advantage, at every logged step"
    ) + caption_end(logged for _, logged in drawn)
    rows = tuple(
        (term.capitalize(), str(len(logged)), f"{logged[0][1]:.3f}", f"{logged[-1][1]:.3f}") for term, logged in drawn
    )
    notes = ["Imitation lies below 0 where references are better than the samples but not yet likely."]
    if not one.looks:  # else the other figure has them
        notes += [f"{words}." for words in _samples(one)]
    up = "advantage times nats per token"
    chart = line_chart(name, title, caption, curves, across="step", up=up)
    return Figure(name, title, caption, chart, Table(("Term", "Logged steps", "First", "Last"), rows), tuple(notes))
