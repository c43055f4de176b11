"""`alignkeep align`: model, prompts with reference answers and a reward in, adapter or model out."""

from __future__ import annotations

from typing import Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session

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


def align(
    out: o.Out,
    model: Model = None,
    data: Data = None,
    columns: o.Columns = None,
    reward: Reward = None,
    method: Method = None,
    held_out: HeldOut = None,
    learning_rate: o.LearningRate = None,
    epochs: o.Epochs = None,
    max_steps: o.MaxSteps = None,
    lora_rank: o.LoraRank = None,
    seed: o.Seed = None,
    overwrite: o.Overwrite = False,
    resume: o.Resume = True,
    device: o.Device = None,
    dtype: o.Dtype = None,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = None,
    max_new_tokens: NewTokens = None,
    batch_size: Prompts = None,
    backend: o.Backend = None,
    config: o.ConfigFile = None,
    assignments: o.Assignments = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    dry_run: o.DryRun = False,
) -> None:
    """Let a model answer, compare the answers with references, and learn from both."""
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep.align import stage
        from alignkeep.align.config import AlignConfig
        from alignkeep.cli.settle import facts_of, load_flags, settle
        from alignkeep.cli.tables import align_summary
        from alignkeep.errors import RecipeError

        flags = {"model": model, "data": data, "columns": columns, "reward.spec": reward, "method": method,
                 "held_out.data": held_out, "seed": seed, "sampling.max_new_tokens": max_new_tokens,
                 "batch_size": batch_size, "learning_rate": learning_rate, "epochs": epochs,
                 "trainer.max_steps": max_steps, "lora.rank": lora_rank}  # fmt: skip
        flags |= load_flags(device, dtype, revision, trust_remote_code)
        if backend not in (None, "vllm", "transformers"):
            raise RecipeError("--backend", seen=backend, expected="transformers or vllm", remedy="name one of them")
        flags["trainer.use_vllm"] = None if backend is None else backend == "vllm"
        settings = settle(AlignConfig, config, assignments, flags)
        if dry_run:
            session.show(facts_of(stage.plan(settings)))
            return
        found = stage.align(settings, out=out, overwrite=overwrite, resume=resume, progress=session.progress)
        session.show(facts_of(found), align_summary(found))
