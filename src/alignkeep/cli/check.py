"""`alignkeep check`: a tune in, one verdict out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import say

if TYPE_CHECKING:
    from rich.console import Console

    from alignkeep.checkup import CheckResult


@o.spread
def check(
    model: Annotated[
        str | None, typer.Argument(metavar="TUNE", help="A tuned model: folder, hub id or https://host/v1#name.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the measurement (default: check-TUNE)")] = None,
    base: Annotated[str | None, typer.Option("--base", help="The model before tuning (else what it names).")] = None,
    suite: Annotated[str | None, typer.Option("--suite", help="driftcheck, testbed or FILE.yaml (driftcheck)")] = None,
    task: Annotated[str | None, typer.Option("--task", help="Prompts with one right answer each: file.")] = None,
    policy: o.Policy = "default",
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many prompts of each kind.")] = None,
    judge: Annotated[str | None, typer.Option("--judge", help="keyword or package.module:object (keyword)")] = None,
    *,
    making: o.Making,
    loading: o.Loading,
    asking: o.Asking,
    common: o.Common,
) -> None:
    """Is a tune still as safe as its base? Measures both and says whether it may ship (exit codes of gate)."""
    with common.session() as session:
        from alignkeep.cli.configs import config_of
        from alignkeep.cli.gate import EXIT
        from alignkeep.evaluate.config import EvaluateConfig

        flags = {
            "model": model,
            "base": base,
            "suite": suite,
            "task": task,
            "judge": judge,
            "limit": limit,
            "seed": making.seed,
        }
        flags |= loading.under()
        flags |= asking.under()
        settings = config_of(EvaluateConfig, common.config, common.assignments, flags)
        from alignkeep import checkup

        where = out or Path(f"check-{checkup.short_name(settings.model)}")
        found = checkup.check(settings, out=where, policy=policy, progress=session.progress, **making.how)
        session.show(found.as_json(), lambda console: _say(console, found))
        code = EXIT[found.verdict.answer.value]
    if code:
        raise typer.Exit(code)


def _say(console: Console, found: CheckResult) -> None:
    """Three lines: the verdict, what happened to refusals, the next command; and the bounds that were not kept."""
    from alignkeep.gate.output import WORDS, bound_line, percent, points
    from alignkeep.judging.metrics import HARM_REFUSAL
    from alignkeep.policy.decision import Answer

    (gated,) = found.verdict.models
    card = found.scorecard
    lines = [f"{WORDS[gated.answer]}: {gated.model} against {found.base.reference} (named by {found.base.named_by})"]
    test = card.tests.get(HARM_REFUSAL.name)
    if test is not None and test.difference.n:
        before, after = card.base_metrics[HARM_REFUSAL.name], card.metrics[HARM_REFUSAL.name]
        change = points(test.difference)
        lines.append(f"{HARM_REFUSAL.label}: {percent(before)} before, {percent(after)} after, a change of {change}")
    lines += [f"  {bound_line(line)}" for line in gated.lines if line.answer not in (Answer.PASS, None)]
    lines.append(f"next: {found.next_command}")
    say(console, lines)
