"""`alignkeep answers`: the aligned base and prompts in, its own answers out, as alignment data."""

from __future__ import annotations

from typing import Annotated

import typer

from alignkeep.cli import options as o

Model = Annotated[
    str | None, typer.Argument(metavar="BASE", help="The aligned model: folder, hub id or https://host/v1#name.")
]
Prompts = Annotated[
    str | None,
    typer.Option("--prompts", help="File of prompts, harmful unless a column `kind` says otherwise (default: shipped)"),
]
Limit = Annotated[int | None, typer.Option("--limit", help="At most so many prompts of each kind.")]
Judge = Annotated[str | None, typer.Option("--judge", help="keyword or package.module:object (default: keyword)")]


@o.spread
def answers(
    out: o.Out,
    model: Model = None,
    prompts: Prompts = None,
    limit: Limit = None,
    judge: Judge = None,
    *,
    making: o.Making,
    loading: o.Loading,
    asking: o.Asking,
    common: o.Common,
    dry_run: o.DryRun = False,
) -> None:
    """Ask the aligned base and keep its refusals and its help: the data that merges and defences hold on to."""
    with common.session() as session:
        from alignkeep.answers import stage
        from alignkeep.cli.configs import config_of, facts_of

        flags: dict[str, object] = {"model": model, "prompts": prompts, "limit": limit, "judge": judge}
        flags |= {"seed": making.seed, **loading.under()}
        flags |= asking.under()
        settings = config_of(stage.AnswersConfig, common.config, common.assignments, flags)
        if dry_run:
            session.show(facts_of(stage.plan(settings)))
            return
        result = stage.answers(settings, out=out, **making.how, progress=session.progress)
        session.show(facts_of(result))
