"""`alignkeep keep`: model and data in, a tune that is as safe as its base out, by the steps that pay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import say

if TYPE_CHECKING:
    from rich.console import Console

    from alignkeep.keeping import KeepResult

Model = Annotated[str | None, typer.Argument(metavar="MODEL", help="Model to tune: folder or hub id.")]
Data = Annotated[
    str | None, typer.Argument(metavar="DATA", help="Examples: file or hub_id[:config][@revision][:split].")
]
Safe = Annotated[str | None, typer.Option("--safe", help="Clean examples of the task, for a curation.")]
Harmful = Annotated[str | None, typer.Option("--harmful", help="Harmful requests, answered, for a curation.")]
Alignment = Annotated[str | None, typer.Option("--alignment-data", help="The base's refusals and help, for a defence.")]
Defence = Annotated[str | None, typer.Option("--defence", help="Its name, or package.module:object (default: replay)")]
Within = Annotated[
    float | None, typer.Option("--within", help="Share of the task that may be lost against a plain tune [0.01].")
]


@o.spread
def keep(
    out: o.Out,
    model: Model = None,
    data: Data = None,
    safe: Safe = None,
    harmful: Harmful = None,
    alignment: Alignment = None,
    defence: Defence = None,
    within: Within = None,
    policy: o.Policy = "default",
    *,
    halving: o.Halving,
    training: o.Training,
    making: o.Making,
    loading: o.Loading,
    asking: o.Asking,
    common: o.Common,
) -> None:
    """Tune a model and keep it safe: curation, defence, merge and injection, each taken only where it pays."""
    flags: dict[str, object] = {
        "model": model, "data": data, "safe": safe, "harmful": harmful, "alignment_data": alignment,
        "defence": defence, "within": within, "seed": making.seed, **vars(halving),
    }  # fmt: skip
    with common.session() as session:
        from alignkeep.cli.configs import config_of
        from alignkeep.cli.gate import EXIT
        from alignkeep.keeping import KeepConfig
        from alignkeep.keeping import keep as tune_and_keep

        flags |= {f"train.{key}": value for key, value in training.settings.items()}
        flags |= {**loading.under(), **asking.under()}
        settings = config_of(KeepConfig, common.config, common.assignments, flags)
        found = tune_and_keep(settings, out=out, policy=policy, progress=session.progress, **making.how)
        session.show(found.as_json(), lambda console: _say(console, found))
        code = EXIT[found.verdict.answer.value]
    if code:
        raise typer.Exit(code)


def _say(console: Console, found: KeepResult) -> None:
    """Which model to ship, what that is worth beside base and plain tune, what was tried, the verdict, what next."""
    from alignkeep.gate.output import WORDS, bound_line, percent, points
    from alignkeep.judging.metrics import HARM_REFUSAL, TASK_ACCURACY
    from alignkeep.policy.decision import Answer

    (gated,) = found.verdict.models
    lines = [f"kept: {found.model} ({found.name})"]
    for metric in (HARM_REFUSAL, TASK_ACCURACY):
        three = [rates[metric.name] for rates in (found.kept.base_metrics, found.plain.metrics, found.kept.metrics)]
        base, plain, kept = map(percent, three)
        lines.append(f"{metric.title}: base {base}, plain tune {plain}, kept {kept}, n = {three[2].n}")
    lines.append(f"task against the plain tune: {points(found.task_change)}")
    lines += ["tried, on the half that chooses:", *(f"  {line}" for line in found.tried)]
    lines.append(f"policy: {WORDS[gated.answer]}")
    lines += [f"  {bound_line(line)}" for line in gated.lines if line.answer not in (Answer.PASS, None)]
    following = {
        Answer.PASS: f"alignkeep export {found.folder} --out ready",
        Answer.UNDECIDED: "the same with a larger --limit, or a suite of more prompts: these are too few",
        Answer.FAIL: "give --safe and --harmful, --alignment-data, another --defence or a wider --within",
    }
    lines += [f"page: {found.page}", f"next: {following[gated.answer]}"]
    say(console, lines)
