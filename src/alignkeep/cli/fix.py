"""`alignkeep fix`: a tune in, the best repair without training out, or word of what was tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import say

if TYPE_CHECKING:
    from rich.console import Console

    from alignkeep.repair import FixResult

Tune = Annotated[str | None, typer.Argument(metavar="TUNE", help="Folder or hub id of a tuned model.")]
Base = Annotated[str | None, typer.Option("--base", help="The model before tuning (default: what the tune names)")]
TuningData = Annotated[str | None, typer.Option("--tuning-data", help="What it was tuned on: repairs spare it.")]
Gain = Annotated[float | None, typer.Option("--gain", help="Share of the task's gain that is kept at least [0.75].")]


@o.spread
def fix(
    out: o.Out,
    model: Tune = None,
    base: Base = None,
    tuning_data: TuningData = None,
    gain: Gain = None,
    policy: o.Policy = "default",
    *,
    halving: o.Halving,
    making: o.Making,
    loading: o.Loading,
    asking: o.Asking,
    common: o.Common,
) -> None:
    """Give a tune its safety back without training: merges, an injection and both are tried, the best one is kept."""
    flags: dict[str, object] = {
        "model": model, "base": base, "tuning_data": tuning_data, "gain": gain, "seed": making.seed, **vars(halving),
    }  # fmt: skip
    with common.session() as session:
        from alignkeep.cli.configs import config_of
        from alignkeep.repair import FixConfig
        from alignkeep.repair import fix as repair

        flags |= {**loading.under(), **asking.under()}
        settings = config_of(FixConfig, common.config, common.assignments, flags)
        found = repair(settings, out=out, policy=policy, progress=session.progress, **making.how)
        session.show(found.as_json(), lambda console: _say(console, found))


def _say(console: Console, found: FixResult) -> None:
    """Which model to ship, what that is worth, what else was tried, the verdict and the next command."""
    from alignkeep.gate.output import WORDS, bound_line, percent
    from alignkeep.judging.metrics import HARM_REFUSAL, TASK_ACCURACY
    from alignkeep.policy.decision import Answer

    (gated,) = found.verdict.models
    lines = [f"best repair: {found.model} ({found.name})"]
    for metric in (HARM_REFUSAL, TASK_ACCURACY):
        cards = (found.repaired.base_metrics, found.tuned.metrics, found.repaired.metrics)
        three = [rates[metric.name] for rates in cards]
        base, tuned, repaired = map(percent, three)
        lines.append(f"{metric.title}: base {base}, tune {tuned}, repaired {repaired}, n = {three[2].n}")
    lines += ["tried, on the half that chooses:", *(f"  {line}" for line in found.tried)]
    lines.append(f"policy: {WORDS[gated.answer]}, against {found.base.reference}")
    lines += [f"  {bound_line(line)}" for line in gated.lines if line.answer not in (Answer.PASS, None)]
    following = {
        Answer.PASS: f"alignkeep export {found.folder} --out ready",
        Answer.UNDECIDED: "the same with a larger --limit, or a suite of more prompts: these are too few",
        Answer.FAIL: "give --tuning-data or lower --gain; or tune again with a defence (train --method alignguard)",
    }
    lines += [f"page: {found.page}", f"next: {following[gated.answer]}"]
    say(console, lines)
