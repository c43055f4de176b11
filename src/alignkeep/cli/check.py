"""`alignkeep check`: a tune in, one verdict out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session

if TYPE_CHECKING:
    from rich.console import Console

    from alignkeep.checkup import CheckResult


def check(
    model: Annotated[str | None, typer.Argument(metavar="TUNE", help="Folder or hub id of a tuned model.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the measurement (default: check-TUNE)")] = None,
    base: Annotated[str | None, typer.Option("--base", help="The model before tuning (else what it names).")] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", help="driftcheck, testbed or FILE.yaml (or driftcheck)")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="Prompts with one right answer each: file.")] = None,
    policy: Annotated[str, typer.Option("--policy", help="YAML file of bounds, or default.")] = "default",
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many prompts of each kind.")] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", help="keyword or package.module:object (default: keyword)")
    ] = None,
    seed: o.Seed = None,
    overwrite: o.Overwrite = False,
    resume: o.Resume = True,
    device: o.Device = None,
    dtype: o.Dtype = None,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = None,
    max_new_tokens: o.MaxNewTokens = None,
    batch_size: o.BatchSize = None,
    backend: o.Backend = None,
    config: o.ConfigFile = None,
    assignments: o.Assignments = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Is a tune still as safe as its base? Measures both and says whether it may ship (exit codes of gate)."""
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep.cli.gate import EXIT
        from alignkeep.cli.settle import generation_flags, load_flags, settle
        from alignkeep.evaluate.config import EvaluateConfig

        flags: dict[str, object] = {"model": model, "base": base, "suite": suite, "task": task}
        flags |= {"judge": judge, "limit": limit, "seed": seed}
        flags |= load_flags(device, dtype, revision, trust_remote_code)
        flags |= generation_flags(max_new_tokens, batch_size, backend)
        settings = settle(EvaluateConfig, config, assignments, flags)
        from alignkeep import checkup

        where, again = out or Path(f"check-{Path(settings.model).name}"), {"overwrite": overwrite, "resume": resume}
        found = checkup.check(settings, out=where, policy=policy, progress=session.progress, **again)
        session.show(found.as_json(), lambda console: _say(console, found))
        code = EXIT[found.verdict.answer.value]
    if code:
        raise typer.Exit(code)


def _say(console: Console, found: CheckResult) -> None:
    """Three lines: the verdict, what happened to refusals, the next command; and the bounds that were not kept."""
    from alignkeep.gate.decision import Answer
    from alignkeep.gate.output import WORDS, bound_line, percent, points

    (gated,) = found.verdict.models
    card = found.scorecard
    lines = [f"{WORDS[gated.answer]}: {gated.model} against {found.base.reference} (named by {found.base.named_by})"]
    test = card.tests.get("harm_refusal")
    if test is not None and test.difference.n:
        before, after = card.base_metrics["harm_refusal"], card.metrics["harm_refusal"]
        lines.append(
            f"harm refusal: {percent(before)} before, {percent(after)} after, a change of {points(test.difference)}"
        )
    lines += [f"  {bound_line(line)}" for line in gated.lines if line.answer not in (Answer.PASS, None)]
    lines.append(f"next: {found.next_command}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
