"""`alignkeep evaluate`: a model, and its base where there is one, in; a scorecard with intervals out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from alignkeep.cli import options as o

Suite = Annotated[
    str | None,
    typer.Option(
        "--suite", help="driftcheck, testbed, advbench, xstest, ..., NAME=FILE or FILE.yaml (default: driftcheck)"
    ),
]
Judge = Annotated[
    str | None,
    typer.Option(
        "--judge",
        help="keyword, a guard, GUARD=MODEL, rubric=MODEL, https://host/v1#name, package.module:object; "
        "several with commas (default: keyword)",
    ),
]
Attacks = Annotated[
    str | None,
    typer.Option("--attacks", help="all, every, none, or a,artifacts:FILE,package.module:object (default: all)"),
]


def _listing(context: typer.Context) -> Iterable[str]:
    from alignkeep.evaluate.selection import listing

    return listing(context.params.get("attacks"))


ListAttacks = Annotated[
    bool, o.listing(_listing, "--list-attacks", "List all attacks, and yours where --attacks names it.")
]


TaskScore = Annotated[
    str | None,
    typer.Option("--task-score", help="package.module:object that says whether an answer to the task is right."),
]
Utility = Annotated[
    str | None,
    typer.Option("--utility", help="Tasks of lm-evaluation-harness: mmlu,hellaswag,FOLDER,FOLDER#NAME."),
]
Limit = Annotated[int | None, typer.Option("--limit", help="At most so many prompts of each kind.")]


@o.spread
def evaluate(
    out: o.Out,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Folder, hub id or https://host/v1#name.")
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="The model before tuning, to compare with.")] = None,
    suite: Suite = None,
    task: Annotated[str | None, typer.Option("--task", help="Prompts with one right answer each: file.")] = None,
    columns: o.Columns = None,
    task_score: TaskScore = None,
    utility: Utility = None,
    judge: Judge = None,
    attacks: Attacks = None,
    limit: Limit = None,
    list_attacks: ListAttacks = False,
    *,
    making: o.Making,
    loading: o.Loading,
    asking: o.Asking,
    common: o.Common,
    dry_run: o.DryRun = False,
) -> None:
    """Measure refusals, drift, over-refusal, attacks and utility."""
    with common.session() as session:
        from alignkeep.cli.configs import config_of, facts_of
        from alignkeep.cli.tables import scorecard_summary
        from alignkeep.evaluate.config import EvaluateConfig

        flags: dict[str, object] = {"model": model, "base": base, "suite": suite, "task": task, "columns": columns}
        flags |= {"task_score": task_score, "utility": utility, "judge": judge, "attacks": attacks, "limit": limit}
        flags |= {"seed": making.seed, **loading.under()}
        flags |= asking.under()
        settings = config_of(EvaluateConfig, common.config, common.assignments, flags)
        from alignkeep.evaluate import stage

        if dry_run:
            session.show(facts_of(stage.plan(settings)))
            return
        card = stage.evaluate(settings, out=out, **making.how, progress=session.progress)
        session.show({**card.as_json(), "out": str(out)}, scorecard_summary(card, out))
