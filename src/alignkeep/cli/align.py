"""`alignkeep align`: model, prompts with reference answers and a reward in, adapter or model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkeep.cli import options as o

_SPEC = "module:object, judge:MODEL, judge:URL#MODEL, scorer:MODEL, testbed."
Model = Annotated[str | None, typer.Option("--model", help="Model to align: folder or hub id.")]
Data = Annotated[
    str | None,
    typer.Option("--data", help="Prompts with reference answers: file or hub_id[:config][@revision][:split]."),
]
Reward = Annotated[str | None, typer.Option("--reward", metavar="SPEC", help=_SPEC)]
Method = Annotated[str | None, typer.Option("--method", help="grao or grpo (default: grao)")]
HeldOut = Annotated[str | None, typer.Option("--held-out", help="Prompts with references to measure on.")]
NewTokens = Annotated[int | None, typer.Option("--max-new-tokens", help="Longest answer, in tokens [2048].")]
Prompts = Annotated[int | None, typer.Option("--batch-size", help="Prompts per step, each with its samples [8].")]


@o.spread
def align(
    out: o.Out,
    model: Model = None,
    data: Data = None,
    columns: o.Columns = None,
    reward: Reward = None,
    method: Method = None,
    held_out: HeldOut = None,
    *,
    training: o.Training,
    making: o.Making,
    loading: o.Loading,
    max_new_tokens: NewTokens = None,
    batch_size: Prompts = None,
    backend: o.Backend = None,
    common: o.Common,
    dry_run: o.DryRun = False,
) -> None:
    """Let a model answer, compare the answers with references, and learn from both."""
    with common.session() as session:
        from alignkeep.align.config import AlignConfig
        from alignkeep.cli.configs import config_of, facts_of
        from alignkeep.errors import RecipeError

        flags = {"model": model, "data": data, "columns": columns, "reward.spec": reward, "method": method,
                 "held_out.data": held_out, "seed": making.seed, "sampling.max_new_tokens": max_new_tokens,
                 "batch_size": batch_size}  # fmt: skip
        flags |= {**training.settings, **loading.under()}
        if backend not in (None, "vllm", "transformers"):
            raise RecipeError("--backend", seen=backend, expected="transformers or vllm", remedy="name one of them")
        flags["trainer.use_vllm"] = None if backend is None else backend == "vllm"
        settings = config_of(AlignConfig, common.config, common.assignments, flags)
        from alignkeep.align import stage
        from alignkeep.cli.tables import align_summary

        if dry_run:
            session.show(facts_of(stage.plan(settings)))
            return
        result = stage.align(settings, out=Path(out), **making.how, progress=session.progress)
        session.show(facts_of(result), align_summary(result))
