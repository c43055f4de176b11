"""`alignkeep judge`: stored answers in, verdicts out, without a model."""

from __future__ import annotations

from typing import Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session


def judge(
    out: o.Out,
    answers: Annotated[
        str | None, typer.Argument(metavar="ANSWERS.jsonl", help='Rows {"prompt": ..., "answer": ...}.')
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            help="keyword, a guard, GUARD=MODEL, rubric=MODEL, https://host/v1#name, package.module:object; "
            "several with commas (default: keyword)",
        ),
    ] = None,
    seed: o.Seed = None,
    overwrite: o.Overwrite = False,
    resume: o.Resume = True,
    config: o.ConfigFile = None,
    assignments: o.Assignments = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    dry_run: o.DryRun = False,
) -> None:
    """Score stored answers again."""
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep.cli.configs import config_of, facts_of
        from alignkeep.cli.tables import judge_summary
        from alignkeep.evaluate.config import JudgeConfig

        flags = {"answers": answers, "judge": judge, "seed": seed}
        settings = config_of(JudgeConfig, config, assignments, flags)
        from alignkeep.evaluate import stage

        if dry_run:
            session.show(stage.plan_judge(settings.answers, judge=settings.judge))
            return
        result = stage.judge(
            settings.answers,
            judge=settings.judge,
            out=out,
            overwrite=overwrite,
            resume=resume,
            progress=session.progress,
        )
        session.show(facts_of(result), judge_summary(result))
