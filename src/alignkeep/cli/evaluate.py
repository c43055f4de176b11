"""`alignkeep evaluate`: a model, and its base where there is one, in; a scorecard with intervals out."""

from __future__ import annotations

from typing import Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session

Suite = Annotated[str | None, typer.Option("--suite", help="driftcheck, testbed or FILE.yaml (default: driftcheck)")]
Judge = Annotated[str | None, typer.Option("--judge", help="keyword or package.module:object (default: keyword)")]
Attacks = Annotated[str | None, typer.Option("--attacks", help="all, none, or a,package.module:object (default: all)")]


def evaluate(
    out: o.Out,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Folder or hub id.")] = None,
    base: Annotated[str | None, typer.Option("--base", help="The model before tuning, to compare with.")] = None,
    suite: Suite = None,
    task: Annotated[str | None, typer.Option("--task", help="Prompts with one right answer each: file.")] = None,
    columns: o.Columns = None,
    judge: Judge = None,
    attacks: Attacks = None,
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many prompts of each kind.")] = None,
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
    """Measure refusals, drift, over-refusal, attacks and utility."""
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep.cli.settle import facts_of, generation_flags, load_flags, settle
        from alignkeep.cli.tables import scorecard_summary
        from alignkeep.evaluate.config import EvaluateConfig

        flags: dict[str, object] = {"model": model, "base": base, "suite": suite, "task": task, "columns": columns}
        flags |= {"judge": judge, "attacks": attacks, "limit": limit}
        flags |= {"seed": seed, **load_flags(device, dtype, revision, trust_remote_code)}
        flags |= generation_flags(max_new_tokens, batch_size, backend)
        settings = settle(EvaluateConfig, config, assignments, flags)
        from alignkeep.evaluate import stage

        if dry_run:
            session.show(facts_of(stage.plan(settings)))
            return
        card = stage.evaluate(settings, out=out, overwrite=overwrite, resume=resume, progress=session.progress)
        session.show({**card.as_json(), "out": str(out)}, scorecard_summary(card, out))
