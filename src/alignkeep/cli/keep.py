"""`alignkeep keep`: model and data in, a tune that is as safe as its base out, by the steps that pay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from alignkeep.cli import options as o

if TYPE_CHECKING:
    from rich.console import Console

    from alignkeep.keeping import KeepResult

Model = Annotated[str | None, typer.Argument(metavar="MODEL", help="Model to tune: folder or hub id.")]
Data = Annotated[
    str | None, typer.Argument(metavar="DATA", help="Examples: file or hub_id[:config][@revision][:split].")
]
Task = Annotated[
    str | None, typer.Option("--task", help="Prompts with one right answer each: half chooses, half reports.")
]
Safe = Annotated[str | None, typer.Option("--safe", help="Clean examples of the task, for a curation.")]
Harmful = Annotated[str | None, typer.Option("--harmful", help="Harmful requests, answered, for a curation.")]
Alignment = Annotated[str | None, typer.Option("--alignment-data", help="The base's refusals and help, for a defence.")]
Defence = Annotated[
    str | None,
    typer.Option("--defence", help="replay, alignguard, kl_anchor or package.module:object [default: replay]."),
]
Within = Annotated[
    float | None, typer.Option("--within", help="Share of the task that may be lost against a plain tune [0.01].")
]
Suite = Annotated[str | None, typer.Option("--suite", help="driftcheck, testbed or FILE.yaml (default: driftcheck)")]
Judge = Annotated[str | None, typer.Option("--judge", help="keyword or package.module:object (default: keyword)")]
Attacks = Annotated[str | None, typer.Option("--attacks", help="all, none, or a,package.module:object (default: all)")]
Limit = Annotated[int | None, typer.Option("--limit", help="At most so many prompts of each kind in each half.")]
Form = Annotated[
    str | None, typer.Option("--as", help="What merges and injections write: model or adapter (default: model)")
]
Policy = Annotated[str, typer.Option("--policy", help="YAML file of bounds, or default.")]


@o.spread
def keep(
    out: o.Out,
    model: Model = None,
    data: Data = None,
    task: Task = None,
    safe: Safe = None,
    harmful: Harmful = None,
    alignment: Alignment = None,
    defence: Defence = None,
    within: Within = None,
    suite: Suite = None,
    columns: o.Columns = None,
    judge: Judge = None,
    attacks: Attacks = None,
    limit: Limit = None,
    form: Form = None,
    policy: Policy = "default",
    *,
    training: o.Training,
    making: o.Making,
    loading: o.Loading,
    asking: o.Asking,
    common: o.Common,
) -> None:
    """Tune a model and keep it safe: curation, defence, merge and injection, each taken only where it pays."""
    flags: dict[str, object] = {
        "model": model, "data": data, "task": task, "safe": safe, "harmful": harmful, "alignment_data": alignment,
        "defence": defence, "within": within, "suite": suite, "columns": columns, "judge": judge, "attacks": attacks,
        "limit": limit, "form": form, "seed": making.seed,
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
    from alignkeep.gate.decision import Answer
    from alignkeep.gate.output import WORDS, bound_line, percent, points
    from alignkeep.judging.metrics import HARM_REFUSAL, TASK_ACCURACY

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
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
