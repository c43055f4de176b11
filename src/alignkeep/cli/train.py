"""`alignkeep train`: base and examples in, adapter or model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session

_METHODS = "full, lora, or LoRA with a defence: alignguard, kl_anchor, replay, or package.module:object (default: lora)"

BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", help="Examples per step, over all processes [16].", rich_help_panel="Training"),
]


def train(
    out: o.Out,
    model: Annotated[str | None, typer.Option("--model", help="Model to tune: folder or hub id.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Examples: file or hub_id[:config][@revision][:split].")
    ] = None,
    columns: o.Columns = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Example weights: folder or file.")] = None,
    method: Annotated[str | None, typer.Option("--method", help=_METHODS)] = None,
    alignment: Annotated[
        str | None,
        typer.Option("--alignment-data", help="For a defence: the base's refusals and answers."),
    ] = None,
    learning_rate: o.LearningRate = None,
    epochs: o.Epochs = None,
    batch_size: BatchSize = None,
    max_steps: o.MaxSteps = None,
    max_length: o.MaxLength = None,
    lora_rank: o.LoraRank = None,
    seed: o.Seed = None,
    overwrite: o.Overwrite = False,
    resume: o.Resume = True,
    device: o.Device = None,
    dtype: o.Dtype = None,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = None,
    config: o.ConfigFile = None,
    assignments: o.Assignments = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    dry_run: o.DryRun = False,
) -> None:
    """Tune a model on examples: in full or with a low-rank adapter, alone or with a defence that keeps it safe."""
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep.cli.settle import facts_of, load_flags, settle
        from alignkeep.train.config import TrainConfig

        flags = {"model": model, "data": data, "columns": columns, "weights": weights, "method": method, "seed": seed,
                 "defence.data": alignment, "learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size,
                 "trainer.max_steps": max_steps, "max_length": max_length, "lora.rank": lora_rank}  # fmt: skip
        flags |= load_flags(device, dtype, revision, trust_remote_code)
        settings = settle(TrainConfig, config, assignments, flags)
        from alignkeep.train import stage

        if dry_run:
            session.show(facts_of(stage.plan(settings)))
            return
        result = stage.train(settings, out=Path(out), overwrite=overwrite, resume=resume, progress=session.progress)
        session.show(facts_of(result))
