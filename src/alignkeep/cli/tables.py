"""Summaries for people: rates with their intervals, models side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.errors import plain
from alignkeep.judging.metrics import (
    ATTACK_SUCCESS,
    BENIGN_COMPLIANCE,
    DEGENERATE,
    DRIFT,
    HARM_REFUSAL,
    OVER_REFUSAL,
    SKILL_ACCURACY,
    TASK_ACCURACY,
    UNKNOWN_WORDS,
    UNSCORED,
    UTILITY,
    name_of_part,
)
from alignkeep.types import Estimate, Opinion, PairedTest, Scorecard

if TYPE_CHECKING:
    from rich.console import Console

    from alignkeep.align.stage import AlignResult
    from alignkeep.curate.stage import CurateResult
    from alignkeep.demonstration import DemoResult
    from alignkeep.evaluate.verdicts import JudgeResult
    from alignkeep.inject.stage import InjectResult
    from alignkeep.lifecycle import RunResult
    from alignkeep.merge.stage import MergeResult
    from alignkeep.tamper.curve import Curve, TamperResult

Summary = Callable[["Console"], None]

_ROWS = (
    *(HARM_REFUSAL, OVER_REFUSAL, BENIGN_COMPLIANCE, TASK_ACCURACY, SKILL_ACCURACY),
    *(DEGENERATE, UNSCORED, UNKNOWN_WORDS),
)
_MAIN = (HARM_REFUSAL, OVER_REFUSAL, TASK_ACCURACY, SKILL_ACCURACY)
_TAMPERED = (HARM_REFUSAL, BENIGN_COMPLIANCE)
_CAPTION = "rates in % with their 95 % interval"
_LONGEST_LINE = 2000


def judge_summary(result: JudgeResult) -> Summary | None:
    """What several judges found, beside the facts; nothing of its own for one judge."""
    if not result.judges:
        return None

    def summary(console: Console) -> None:
        _say(console, f"{result.n} answers; the verdicts are those of {result.judges[0].name}")
        _judges(console, result.judges, [(verdict, verdict) for verdict in (*result.verdicts, "harmful")])
        _written(console, result.folder)

    return summary


def scorecard_summary(card: Scorecard, out: Path) -> Summary:
    """One model, beside its base where it has one, and the paired difference of every test."""

    def summary(console: Console) -> None:
        columns: dict[str, Mapping[str, Estimate]] = {"base": card.base_metrics} if card.base_metrics else {}
        _table(console, {**columns, "model": card.metrics})
        if card.judges:
            rates = (HARM_REFUSAL, OVER_REFUSAL, BENIGN_COMPLIANCE, DEGENERATE, UNSCORED)
            _judges(console, card.judges, [(metric.name, metric.label) for metric in rates])
        for name, test in card.tests.items():
            is_drift = name == HARM_REFUSAL.name and DRIFT.name in card.tests  # the same, said below as what was lost
            told = "." not in name or UTILITY.parts_in([name])  # categories and attacks are for the report
            if told and name != DRIFT.name and not is_drift:
                points, n = _points(test.difference), test.difference.n
                _say(console, f"{name}: model - base = {points}, p = {test.p_value:.2g}, n = {n}{_would_show(test)}")
        if DRIFT.name in card.tests and card.tests[DRIFT.name].difference.n:
            test = card.tests[DRIFT.name]
            numbers = f"{_points(test.difference)}, p = {test.p_value:.2g}, n = {test.difference.n}{_would_show(test)}"
            _say(console, f"{DRIFT.name} (harm refusal lost, base - model) = {numbers}")
        for metric, note in card.notes.items():
            _say(console, f"{metric}: {note}")
        _written(console, out)

    return summary


def demo_summary(result: DemoResult) -> Summary:
    """A line for every model; the rest stands in the report."""

    def summary(console: Console) -> None:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE, caption=_CAPTION, caption_justify="left", pad_edge=False, collapse_padding=True)
        table.add_column("", no_wrap=True)
        for metric in _MAIN:
            table.add_column(metric.label, justify="right", no_wrap=True)
        for name, card in result.scorecards.items():
            table.add_row(name, *(_rate(card.metrics.get(metric.name)) for metric in _MAIN))
        console.print(table)
        _written(console, result.page)

    return summary


def align_summary(result: AlignResult) -> Summary:
    """How often held-out answers beat their references before and after, and what was generated for it."""

    def summary(console: Console) -> None:
        if result.ras is not None and result.ras_before is not None and result.ras_or_tie is not None:
            _say(
                console, f"better than the reference: {_rate(result.ras_before)} % before, {_rate(result.ras)} % after"
            )
            _say(console, f"at least as good: {_rate(result.ras_or_tie)} %, n = {result.ras_or_tie.n}")
        if result.held_out_cut:
            _say(console, f"{result.held_out_cut} of these answers were cut off: raise sampling.max_new_tokens")
        if result.nag is not None:
            _say(console, f"gain (better minus worse than before): {_points(result.nag)}")
        cut = "" if result.cut is None else f", {100 * result.cut:.0f} % of them cut off"
        _say(console, f"{result.steps} steps, {result.samples} sampled answers{cut}")
        if result.unscored is not None and result.unscored > 0:
            _say(console, f"{100 * result.unscored:.0f} % could not be scored")
        for note in result.notes:
            _say(console, note)
        _written(console, result.folder)

    return summary


def merge_summary(result: MergeResult) -> Summary:
    """What was merged how, and how many tensors it changed."""

    def summary(console: Console) -> None:
        weight = "" if result.weight is None else f" at weight {result.weight:g}"
        if result.form == "adapter":
            counts = (
                f"an adapter of the base, {result.changed} of its tensors made anew, its scale in adapter_config.json"
            )
        else:
            counts = f"{result.changed} tensors differ from the base's, {result.equal} came out equal, " + (
                f"{result.copied} were copied"
            )
        _say(console, f"{result.method}{weight}: {counts}")
        for note in result.notes:
            _say(console, note)
        _written(console, result.folder)

    return summary


def inject_summary(result: InjectResult) -> Summary:
    """What the edit did on held-out prompts, and how much of the model it changed."""

    def summary(console: Console) -> None:
        found = result.injection
        _say(console, "held-out prompts of --harmful, --harmless and --borderline, by which the strength was chosen:")
        _table(console, {"before": found.base.rates, "after": found.chosen.rates})
        right = "targeted" if found.right == "targeted" else f"mean row, {found.sign} sign"
        _say(console, f"layer {found.layer}, strength {found.strength} ({right}), {len(found.matrices)} matrices")
        if result.form == "model":
            equal = f", {result.equal} came out equal" if result.equal else ""
            _say(console, f"{result.changed} tensors differ from the model's{equal}, {result.copied} were copied")
        for note in result.notes:
            _say(console, note)
        _written(console, result.folder)

    return summary


def tamper_summary(result: TamperResult, out: Path) -> Summary:
    """Every way the model, and its base, were tampered with, and what broke them."""

    def summary(console: Console) -> None:
        from rich import box
        from rich.table import Table

        from alignkeep.tamper.curve import sentences

        sides: dict[str, Curve] = {} if result.base is None else {"base": result.base}
        sides["model"] = result.model
        table = Table(box=box.SIMPLE, caption=_CAPTION, caption_justify="left", pad_edge=False, collapse_padding=True)
        table.add_column("", no_wrap=True)
        for metric in _TAMPERED:
            for side in sides:
                named = metric.label if len(sides) == 1 else f"{metric.label}, {side}"
                table.add_column(named, justify="right")
        for points in zip(*(curve.points for curve in sides.values()), strict=True):
            rates = (point.metrics.get(metric.name) for metric in _TAMPERED for point in points)
            table.add_row(points[0].label, *map(_rate, rates))
        console.print(table)
        for side, curve in sides.items():
            for sentence in sentences(curve):
                _say(console, f"{side}: {sentence}")
        for note in result.notes:
            _say(console, note)
        _written(console, out)

    return summary


def curate_summary(result: CurateResult, page: Path) -> Summary:
    """What was kept by which rule, and whether the weights can be relied on."""

    def summary(console: Console) -> None:
        facts = result.summary
        _say(console, f"{facts['method']}: {result.kept} of {result.n} examples kept")
        if facts["tau"] is not None:
            _say(
                console,
                f"effective sample size {facts['ess']:.0f}, epsilon {facts['epsilon']:.4g}, tau {facts['tau']:.4g}, "
                f"{facts['iterations']} steps",
            )
        if "embed" in facts:
            _say(console, _planted(facts["embed"]))
        if not facts["converged"]:
            off = max(facts["marginal_errors"].values())
            _say(
                console,
                f"not converged: masses move by {facts['residual']:.2g} of the whole in a step, "
                f"transports are off by {off:.2g} of their marginals",
            )
        for note in facts.get("notes", ()):
            _say(console, note)
        if facts["truncated"]:
            _say(console, f"{facts['truncated']} texts were cut off before they were embedded: raise embed.max_length")
        late = {name: count for name, count in (facts.get("too_long") or {}).items() if count}
        if late:
            each = ", ".join(f"{count} of {name}" for name, count in late.items())
            _say(console, f"answers that begin beyond embed.max_length: {each} (embed.too_long: cut, or drop)")
        _written(console, page)
        _written(console, result.folder)

    return summary


def _planted(told: Mapping[str, Any]) -> str:
    """Which vectors known harm chose, and how much of it they left out."""
    rate = told["left_out"]
    options = "".join(f", {name} {value:g}" for name, value in told["options"].items())
    whitened = ", whitened" if told["whiten"] else ""
    return (
        f"of {told['planted']} planted harmful rows one half chose the vectors (pooling {told['pooling']}{whitened}"
        f"{options}); of the other {rate['n']} these left out {rate['value']:.0%} [{rate['low']:.0%}, "
        f"{rate['high']:.0%}]"
    )


def run_summary(result: RunResult) -> Summary:
    """The scorecard where there is one, else where the tuned model lies."""

    def summary(console: Console) -> None:
        if result.scorecard is not None:
            scorecard_summary(result.scorecard, result.page or result.folder)(console)
        else:
            _written(console, result.model or result.folder)

    return summary


def _judges(console: Console, judges: Sequence[Opinion], rates: Sequence[tuple[str, str]]) -> None:
    """A row for each judge: its rates, its agreement with the first, and of how many answers it says something else."""
    from rich import box
    from rich.table import Table

    caption = "rates of the model by each judge in %; kappa is the agreement with the first beyond chance, 1 at most"
    table = Table(box=box.SIMPLE, caption=caption, caption_justify="left")
    measured = [(name, label) for name, label in rates if any(one.metrics[name].n for one in judges)]
    for title in ("judge", *(label for _, label in measured), "kappa", "kappa of harm", "differs on"):
        table.add_column(title, justify="left" if title == "judge" else "right")
    for place, one in enumerate(judges):
        agreed = ("", "", "") if place == 0 else (*map(_kappa, one.agreement.values()), str(one.differ))
        version = "" if one.version is None else f" {one.version}"
        table.add_row(plain(f"{one.name}{version}", 80), *(_rate(one.metrics[name]) for name, _ in measured), *agreed)
    console.print(table)


def _kappa(estimate: Estimate) -> str:
    if estimate.value != estimate.value:
        return "not known"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _table(console: Console, columns: Mapping[str, Mapping[str, Estimate]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, caption=_CAPTION, caption_justify="left")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    known = {metric for metrics in columns.values() for metric in metrics}
    names = {metric.name: metric.label for metric in _ROWS if metric.name in known} | {
        part: f"{metric.label}: {name_of_part(part)}"
        for metric in (ATTACK_SUCCESS, UTILITY)
        for part in sorted(metric.parts_in(known))
    }
    measured = [metric for metric in names if any(m[metric].n for m in columns.values() if metric in m)]
    for metric, name in ((metric, names[metric]) for metric in measured):
        table.add_row(plain(name, 80), *(_rate(metrics.get(metric)) for metrics in columns.values()))
    console.print(table)


def _rate(estimate: Estimate | None) -> str:
    if estimate is None or estimate.n == 0:
        return "not measured"
    return f"{100 * estimate.value:.0f} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def _points(estimate: Estimate) -> str:
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.value:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _would_show(test: PairedTest) -> str:
    """Beside a difference that was not found: the one that these prompts would have shown."""
    from alignkeep.judging.drift import detectable
    from alignkeep.judging.statistics import is_found

    if is_found(test):
        return ""
    least = detectable(test)
    if least is None:
        return " (so few prompts can show no change)"
    return f" (no difference found; these prompts show {100 * least:.1f} points or more, power 80 %)"


def _written(console: Console, path: Path) -> None:
    _say(console, f"written: {path}")


def _say(console: Console, line: str) -> None:
    console.print(plain(line, _LONGEST_LINE), markup=False, highlight=False, soft_wrap=True)
