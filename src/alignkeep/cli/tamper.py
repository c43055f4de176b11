"""`alignkeep tamper`: a model in, how much work it takes to break its refusals out."""

from __future__ import annotations

from typing import Annotated

import typer

from alignkeep.cli import options as o

Model = Annotated[str | None, typer.Argument(metavar="MODEL", help="Folder or hub id.")]
Base = Annotated[
    str | None, typer.Option("--base", help="The model before tuning: broken in the same ways, to compare.")
]
HarmfulData = Annotated[
    str | None, typer.Option("--harmful-data", help="Harmful prompts that are answered: file or hub_id[:split].")
]
Examples = Annotated[
    str | None, typer.Option("--examples", metavar="N,...", help="Rows that a tune learns from [10,20,50,100].")
]
Method = Annotated[str | None, typer.Option("--method", help="Of the tunes: lora or full (default: lora)")]
Ablation = Annotated[
    bool | None,
    typer.Option("--ablation/--no-ablation", help="Also take the refusal direction out of the weights (default: yes)"),
]
Suite = Annotated[
    str | None, typer.Option("--suite", help="driftcheck, testbed, advbench, ... or FILE.yaml (default: driftcheck)")
]
Limit = Annotated[int | None, typer.Option("--limit", help="At most so many prompts of each kind.")]
Judge = Annotated[
    str | None, typer.Option("--judge", help="keyword, a guard or package.module:object (default: keyword)")
]


@o.spread
def tamper(
    out: o.Out,
    model: Model = None,
    base: Base = None,
    harmful_data: HarmfulData = None,
    columns: o.Columns = None,
    examples: Examples = None,
    method: Method = None,
    epochs: o.Epochs = None,
    learning_rate: o.LearningRate = None,
    ablation: Ablation = None,
    suite: Suite = None,
    judge: Judge = None,
    limit: Limit = None,
    *,
    making: o.Making,
    loading: o.Loading,
    asking: o.Asking,
    common: o.Common,
    dry_run: o.DryRun = False,
) -> None:
    """How much work it takes to break a model: refusals after harmful tuning on few examples, and after ablation."""
    flags: dict[str, object] = {
        "model": model, "base": base, "harmful_data": harmful_data, "columns": columns,
        "tune.examples": None if examples is None else [count.strip() for count in examples.split(",")],
        "tune.method": method, "tune.epochs": epochs, "tune.learning_rate": learning_rate, "ablation": ablation,
        "suite": suite, "judge": judge, "limit": limit, "seed": making.seed,
    }  # fmt: skip
    with common.session() as session:
        from alignkeep.cli.configs import config_of, facts_of
        from alignkeep.cli.tables import tamper_summary
        from alignkeep.tamper import stage
        from alignkeep.tamper.config import TamperConfig

        flags |= {**loading.under(), **asking.under()}
        settings = config_of(TamperConfig, common.config, common.assignments, flags)
        if dry_run:
            session.show(facts_of(stage.plan(settings)))
            return
        result = stage.tamper(settings, out=out, **making.how, progress=session.progress)
        session.show({**result.as_json(), "out": str(out)}, tamper_summary(result, out))
