"""`alignkeep train`: base and examples in, adapter or model out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from alignkeep.cli import options as o

_METHODS = "full, lora, or LoRA with a defence: alignguard, kl_anchor, replay, or package.module:object (default: lora)"

BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", help="Examples per step, over all processes [16].", rich_help_panel="Training"),
]


def _listing(context: typer.Context) -> Iterable[str]:
    from alignkeep.train.defences import listing

    return listing(context.params.get("method"))


Methods = Annotated[
    bool, o.listing(_listing, "--methods", "List all defences and their options, and yours where --method names it.")
]


@o.spread
def train(
    out: o.Out,
    model: Annotated[str | None, typer.Option("--model", help="Model to tune: folder or hub id.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Examples: file or hub_id[:config][@revision][:split].")
    ] = None,
    columns: o.Columns = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Example weights: folder or file.")] = None,
    method: Annotated[str | None, typer.Option("--method", help=_METHODS)] = None,
    methods: Methods = False,
    alignment: Annotated[
        str | None,
        typer.Option("--alignment-data", help="For a defence: the base's refusals and answers."),
    ] = None,
    batch_size: BatchSize = None,
    max_length: o.MaxLength = None,
    *,
    training: o.Training,
    making: o.Making,
    loading: o.Loading,
    common: o.Common,
    dry_run: o.DryRun = False,
) -> None:
    """Tune a model on examples: in full or with a low-rank adapter, alone or with a defence that keeps it safe."""
    with common.session() as session:
        from alignkeep.cli.configs import config_of, facts_of
        from alignkeep.train.config import TrainConfig

        flags = {"model": model, "data": data, "columns": columns, "weights": weights, "method": method,
                 "defence.data": alignment, "seed": making.seed, "batch_size": batch_size,
                 "max_length": max_length}  # fmt: skip
        flags |= {**training.settings, **loading.under()}
        settings = config_of(TrainConfig, common.config, common.assignments, flags)
        from alignkeep.train import stage

        if dry_run:
            session.show(facts_of(stage.plan(settings)))
            return
        result = stage.train(settings, out=Path(out), **making.how, progress=session.progress)
        session.show(facts_of(result))
