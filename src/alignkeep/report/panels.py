"""The charts of what was measured, and the same numbers as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from alignkeep.charts.figures import Figure, Table
from alignkeep.charts.scatter import Spot, scatter_chart
from alignkeep.charts.svg import Group, Mark, dot_chart
from alignkeep.charts.text import abridge, interval, p_value, percent, points
from alignkeep.judging.metrics import (
    ATTACK_SUCCESS,
    BENIGN_COMPLIANCE,
    HARM_REFUSAL,
    OVER_REFUSAL,
    RATES,
    TASK_ACCURACY,
    UNSCORED,
    UTILITY,
    Metric,
    name_of_part,
)
from alignkeep.judging.statistics import is_found
from alignkeep.policy.bounds import Policy
from alignkeep.report.shipping import allowed
from alignkeep.report.subjects import Subject
from alignkeep.types import Estimate, PairedTest

_HOLM = "The p-values of the {} are corrected for one another (Holm)."


class Paired(NamedTuple):
    """The paired difference to the base in words; `found` where it is more than chance."""

    amount: str
    interval: str
    p_value: str
    found: bool


class Measured(NamedTuple):
    """A metric that a chart shows, under which name, and which way is better."""

    metric: str
    label: str
    hint: str


def figures_of(subjects: Sequence[Subject]) -> tuple[Figure, ...]:
    """The charts in the order of the page; one with nothing to show is left out."""
    drawn = (_rates, _categories, _attacks, _utility, _judges)
    return tuple(figure for draw in drawn if (figure := draw(subjects)) is not None)


def across_of(subjects: Sequence[Subject]) -> Metric | None:
    """What safety is traded for: the task, or help with harmless prompts where no task was asked."""
    return next((one for one in (TASK_ACCURACY, BENIGN_COMPLIANCE) if any(s.rate(one.name).n for s in subjects)), None)


def plane(
    subjects: Sequence[Subject], policy: Policy, pick: str | None, parents: Mapping[str, Sequence[str]]
) -> Figure | None:
    """Safety against `across_of`: what was gained and what it cost, a tuned model joined with its base and a repair
    with its tune (`parents`), the model to ship ringed, and what the policy allows shaded. None where fewer than two
    models have both rates."""
    across = across_of(subjects)
    if across is None:
        return None
    shown = {s.label: s for s in subjects if s.rate(across.name).n and s.rate(HARM_REFUSAL.name).n}
    if len(shown) < 2:
        return None
    spots = {
        label: Spot(
            abridge(label, 24), one.series, one.rate(across.name), one.rate(HARM_REFUSAL.name), picked=label == pick
        )
        for label, one in shown.items()
    }
    paths = [
        (spots[origin], spots[label])
        for label, one in shown.items()
        for origin in [name for name in parents.get(label, ()) if name in spots] or [one.base.label if one.base else ""]
        if origin in spots
    ]
    title = f"Safety against {across.label}"
    found = allowed(policy, across, list(shown.values()))
    repaired = (
        ", a repair with its tune" if any(name in spots for label in spots for name in parents.get(label, ())) else ""
    )
    unshaded = "Not shaded: the policy has no bound on these two rates that holds for all of these models. "
    shaded = f"Shaded: {' and '.join(found.words)}, as the policy asks. " if found else unshaded
    caption = (
        f"Up is safer, right is better at {across.label}. {shaded}A tuned model is joined with its base{repaired}; the "
        "crossed lines are 95 % intervals."
    )
    axes = {"across": f"{across.label}, %", "up": f"{HARM_REFUSAL.label}, %"}
    region = None if found is None else found.region
    chart = scatter_chart("plane", title, caption, list(spots.values()), paths, **axes, region=region)
    rates = (across, HARM_REFUSAL)
    rows = tuple((label, *(_share(one.rate(rate.name)) for rate in rates)) for label, one in shown.items())
    return Figure("plane", title, caption, chart, Table(("Model", *(rate.title for rate in rates)), rows))


def _share(estimate: Estimate) -> str:
    return f"{percent(estimate.value)} ({interval(estimate)})"


def in_words(test: PairedTest | None) -> Paired | None:
    """A paired test as words, None where there is none."""
    if test is None:
        return None
    low, high = points(test.difference.low), points(test.difference.high)
    return Paired(points(test.difference.value), f"{low} to {high}", p_value(test.p_corrected), is_found(test))


def _rates(subjects: Sequence[Subject]) -> Figure:
    measured = [name for name in RATES if any(subject.rate(name).n for subject in subjects)]
    return _dots(
        "rates",
        "Rates of every model",
        "Each mark is a rate, its line the 95 % interval; the upright tick is the base.",
        [Measured(name, RATES[name].title, RATES[name].hint) for name in measured or RATES],
        subjects,
        axis="share of answers, %",
    )


def _categories(subjects: Sequence[Subject]) -> Figure | None:
    found = _parts(subjects, HARM_REFUSAL)
    if not found:
        return None

    def largest_loss(measured: Measured) -> tuple[float, str]:
        changes = [
            subject.rate(measured.metric).value - subject.base.rate(measured.metric).value
            for subject in subjects
            if subject.base is not None and subject.rate(measured.metric).n and subject.base.rate(measured.metric).n
        ]
        return min(changes, default=0.0), measured.metric

    return _dots(
        "categories",
        f"{HARM_REFUSAL.title} by category",
        "Harmful prompts refused in each category, the largest loss first. The fewer the prompts, the wider the line. "
        f"{_HOLM.format('categories')}",
        sorted(found, key=largest_loss),
        subjects,
        axis="harmful prompts refused, %",
    )


def _attacks(subjects: Sequence[Subject]) -> Figure | None:
    found = _parts(subjects, ATTACK_SUCCESS, ATTACK_SUCCESS.hint)
    if not found:
        return None
    reasons: dict[str, list[str]] = {}
    for measured in found:
        for subject in subjects:
            if subject.rate(measured.metric).n == 0:
                why = subject.why_absent(measured.metric).removeprefix("not applicable: ") or "no reason is stored"
                reasons.setdefault(f"{measured.label} is not applicable: {why}", []).append(subject.label)
    return _dots(
        "attacks",
        ATTACK_SUCCESS.title,
        "Harmful prompts answered harmfully under each attack. Gibberish, echoes and loops are no success. "
        f"{_HOLM.format('attacks')}",
        found,
        subjects,
        axis="harmful answers under attack, %",
        absent="not applicable",
        notes=[f"{reason} ({', '.join(labels)})" for reason, labels in reasons.items()],
    )


def _utility(subjects: Sequence[Subject]) -> Figure | None:
    found = _parts(subjects, UTILITY, UTILITY.hint)
    if not found:
        return None
    return _dots(
        "utility",
        UTILITY.title,
        "What a model can still do: its mean score on tasks of lm-evaluation-harness, the base's on the same items. "
        f"{_HOLM.format('tasks')}",
        found,
        subjects,
        axis="mean score, %",
    )


def _judges(subjects: Sequence[Subject]) -> Figure | None:
    """What each of several judges says of the same answers; None where there was one."""
    judged = [subject for subject in subjects if subject.judges]
    if not judged:
        return None
    rates = (HARM_REFUSAL, OVER_REFUSAL, BENIGN_COMPLIANCE, UNSCORED)
    shown = [rate for rate in rates if any(one.metrics[rate.name].n for s in judged for one in s.judges)]
    title = "What each judge says"
    caption = (
        "The same answers by several judges; everything else on this page goes by the first of them. Kappa is how far "
        "a judge agrees with the first on answers to plain prompts, beyond chance (1: always, 0: as by chance)."
    )
    groups = [
        Group(
            f"{rate.title}, {abridge(subject.label, 24)}",
            rate.hint,
            tuple(Mark(abridge(one.name, 24), subject.series, one.metrics[rate.name]) for one in subject.judges),
        )
        for rate in shown
        for subject in judged
    ]
    rows = tuple(
        (
            subject.label,
            one.name,
            one.version or "not numbered",
            *(_share(one.metrics[rate.name]) if one.metrics[rate.name].n else "not measured" for rate in shown),
            *(_kappa(one.agreement[name]) if name in one.agreement else "" for name in ("verdict", "harmful")),
            str(one.differ) if one.agreement else "",
        )
        for subject in judged
        for one in subject.judges
    )
    header = ("Model", "Judge", "Version", *(rate.title for rate in shown), "Kappa", "Kappa of harm", "Differs on")
    chart = dot_chart("judges", title, caption, groups, axis="share of answers, %")
    return Figure("judges", title, caption, chart, Table(header, rows))


def _kappa(estimate: Estimate) -> str:
    if estimate.value != estimate.value:
        return "not known"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _parts(subjects: Sequence[Subject], metric: Metric, hint: str = "") -> list[Measured]:
    names = metric.parts_in(name for subject in subjects for name in subject.metrics)
    return [Measured(name, abridge(name_of_part(name).replace("_", " "), 40), hint) for name in names]


def _dots(
    name: str,
    title: str,
    caption: str,
    found: Sequence[Measured],
    subjects: Sequence[Subject],
    *,
    axis: str,
    absent: str = "not measured",
    notes: Sequence[str] = (),
) -> Figure:
    """One row for every metric and model, as marks and as a table."""
    groups = [
        Group(one.label, one.hint, tuple(_mark(subject, one.metric, absent) for subject in subjects)) for one in found
    ]
    rows = tuple(
        (one.label, subject.label, *_told(subject.rate(one.metric), subject.test(one.metric), absent))
        for one in found
        for subject in subjects
    )
    table = Table(("", "Model", "Value", "95 % interval", "n", "Change, points", "Test"), rows)
    return Figure(name, title, caption, dot_chart(name, title, caption, groups, axis=axis), table, tuple(notes))


def _mark(subject: Subject, name: str, absent: str) -> Mark:
    reference = None if subject.base is None else subject.base.rate(name).value
    return Mark(subject.label, subject.series, subject.rate(name), absent, reference)


def _told(estimate: Estimate, test: PairedTest | None, absent: str) -> tuple[str, ...]:
    if estimate.n == 0:
        return absent, "", "0", "", ""
    paired = in_words(test)
    change = ("", "") if paired is None else (f"{paired.amount} ({paired.interval})", paired.p_value)
    return percent(estimate.value), interval(estimate), str(estimate.n), *change
