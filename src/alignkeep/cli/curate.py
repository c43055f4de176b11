"""`alignkeep curate`: examples and anchors in, a weight for every example out, and a page that says why."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session

if TYPE_CHECKING:
    from alignkeep.curate.config import CurateConfig

Model = Annotated[str | None, typer.Option("--model", help="The model that will be tuned: folder or hub id.")]
Embeddings = Annotated[
    str | None,
    typer.Option("--embeddings", help="Vectors instead of a model: .safetensors or .npz with data, safe, harmful."),
]
Data = Annotated[
    str | None, typer.Option("--data", help="Examples to choose from: file or hub_id[:config][@revision][:split].")
]
Safe = Annotated[str | None, typer.Option("--safe", help="Clean examples of the same task.")]
Harmful = Annotated[str | None, typer.Option("--harmful", help="Harmful requests, answered.")]
Method = Annotated[
    str | None,
    typer.Option(
        "--method", help="sot, mean_cosine, dsir, bidirectional, random or package.module:object (default: sot)"
    ),
]
Keep = Annotated[float | None, typer.Option("--keep", help="Share of the examples that is kept [0.8].")]
Evaluation = Annotated[
    list[str] | None,
    typer.Option("--evaluation", help="Prompts that will measure the tune: anchors may not repeat them; repeatable."),
]
EmbedBatch = Annotated[
    int | None, typer.Option("--batch-size", help="Examples embedded at once [32].", rich_help_panel="Loading models")
]


def _listing(context: typer.Context) -> Iterable[str]:
    from alignkeep.curate.methods import listing

    return listing(context.params.get("method"))


Methods = Annotated[
    bool,
    o.listing(_listing, "--methods", "List all ways to choose and their options, and yours where --method names it."),
]


@o.spread
def curate(
    out: o.Out,
    model: Model = None,
    embeddings: Embeddings = None,
    data: Data = None,
    safe: Safe = None,
    harmful: Harmful = None,
    columns: o.Columns = None,
    method: Method = None,
    methods: Methods = False,
    keep: Keep = None,
    evaluation: Evaluation = None,
    *,
    making: o.Making,
    loading: o.Loading,
    batch_size: EmbedBatch = None,
    common: o.Common,
    dry_run: o.DryRun = False,
) -> None:
    """Choose and weigh examples: pull the set towards safe data of the task, push it away from harmful data."""
    flags = {
        "model": model, "embeddings": embeddings, "data": data, "safe": safe, "harmful": harmful, "columns": columns,
        "method": method, "keep": keep, "evaluation": evaluation or None, "embed.batch_size": batch_size,
        "seed": making.seed,
    }  # fmt: skip
    with common.session() as session:
        from alignkeep.cli.configs import config_of
        from alignkeep.curate.config import CurateConfig

        flags |= loading.under()
        settings = config_of(CurateConfig, common.config, common.assignments, flags)
        _run(session, settings, out, making, dry_run=dry_run)


def _run(session: Session, config: CurateConfig, out: Path, making: o.Making, *, dry_run: bool) -> None:
    from alignkeep.cli.configs import facts_of
    from alignkeep.cli.tables import curate_summary
    from alignkeep.curate import stage

    if dry_run:
        session.show(stage.plan(config))
        return
    result = stage.curate(config, out=out, **making.how, progress=session.progress)
    from alignkeep.checkpoint.folders import leads
    from alignkeep.curate.figures import PAGE_NAME

    page = result.folder / PAGE_NAME
    if leads():
        stage.CURATE.explain(result.folder)
    session.show({**facts_of(result), "page": page}, curate_summary(result, page))
