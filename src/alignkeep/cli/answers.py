"""`alignkeep answers`: the aligned base and prompts in, its own answers out, as alignment data."""

from __future__ import annotations

from typing import Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session

Model = Annotated[str | None, typer.Argument(metavar="BASE", help="Folder or hub id of the aligned model.")]
Prompts = Annotated[
    str | None,
    typer.Option("--prompts", help="File of prompts, harmful unless a column `kind` says otherwise (default: shipped)"),
]
Limit = Annotated[int | None, typer.Option("--limit", help="At most so many prompts of each kind.")]
Judge = Annotated[str | None, typer.Option("--judge", help="keyword or package.module:object (default: keyword)")]


def answers(
    out: o.Out,
    model: Model = None,
    prompts: Prompts = None,
    limit: Limit = None,
    judge: Judge = None,
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
    dry_run: o.DryRun = False,
) -> None:
    """Ask the aligned base and keep its refusals and its help: the data that merges and defences hold on to."""
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep.answers import stage
        from alignkeep.cli.settle import facts_of, generation_flags, load_flags, settle

        flags: dict[str, object] = {"model": model, "prompts": prompts, "limit": limit, "judge": judge, "seed": seed}
        flags |= load_flags(device, dtype, revision, trust_remote_code)
        flags |= generation_flags(max_new_tokens, batch_size, backend)
        settings = settle(stage.AnswersConfig, config, assignments, flags)
        if dry_run:
            session.show(facts_of(stage.plan(settings)))
            return
        result = stage.answers(settings, out=out, overwrite=overwrite, resume=resume, progress=session.progress)
        session.show(facts_of(result))
