"""`alignkeep merge`: the aligned base and what was tuned from it in, a model or adapter between the two out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session

if TYPE_CHECKING:
    from alignkeep.merge.config import MergeConfig

_SWEEP = "Choosing the weight by measurement"


def _listing(context: typer.Context) -> Iterable[str]:
    from alignkeep.merge.methods import listing

    return listing(context.params.get("method"))


Models = Annotated[
    list[str] | None, typer.Argument(metavar="BASE TUNED...", help="Aligned base, and what was tuned from it.")
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="A way to merge (--methods lists them), or package.module:object (default: linear; with --sweep: auto, "
        "which tries what the given data allow)",
    ),
]
Methods = Annotated[
    bool, o.listing(_listing, "--methods", "List all methods and their options, and yours where --method names it.")
]
Weight = Annotated[float | None, typer.Option("--weight", help="Weight of the tuned model [0.6].")]
Density = Annotated[
    float | None, typer.Option("--density", help="Share of a task vector that is kept (ties, dare, della, ...).")
]
AlignmentData = Annotated[
    str | None, typer.Option("--alignment-data", help="Examples for fisher and alignment_subspace.")
]
TuningData = Annotated[
    str | None,
    typer.Option("--tuning-data", help="What it was tuned on, for fisher: file or hub_id[:split]."),
]
Form = Annotated[str | None, typer.Option("--as", help="model or adapter (default: model)")]
ChatTemplate = Annotated[
    str | None, typer.Option("--chat-template", help="base or tuned: which one, where they differ.")
]
Mergekit = Annotated[
    Path | None, typer.Option("--mergekit", metavar="FILE.yml", help="Do what a file in mergekit's format says.")
]
Sweep = Annotated[bool, typer.Option("--sweep", help="Measure many weights and take the best.", rich_help_panel=_SWEEP)]
Task = Annotated[
    str | None,
    typer.Option("--task", help="Prompts with one right answer each (validation data).", rich_help_panel=_SWEEP),
]
SweepColumns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="OURS=THEIRS,...",
        help="Names of the task's columns: prompt=question,completion=answer",
        rich_help_panel=_SWEEP,
    ),
]
Prompts = Annotated[
    str | None, typer.Option("--prompts", help="Harmful prompts (validation data).", rich_help_panel=_SWEEP)
]
Pick = Annotated[
    str | None,
    typer.Option(
        "--pick",
        help="task: best task score; safe: largest weight that refuses as the base does; "
        "gain: safest and best of those that keep half of what the tune gained (default: safe)",
        rich_help_panel=_SWEEP,
    ),
]


@o.spread
def merge(
    out: o.Out,
    models: Models = None,
    method: Method = None,
    methods: Methods = False,
    weight: Weight = None,
    density: Density = None,
    alignment_data: AlignmentData = None,
    tuning_data: TuningData = None,
    form: Form = None,
    chat_template: ChatTemplate = None,
    mergekit: Mergekit = None,
    sweep: Sweep = False,
    task: Task = None,
    columns: SweepColumns = None,
    prompts: Prompts = None,
    pick: Pick = None,
    *,
    making: o.Making,
    loading: o.Loading,
    asking: o.Asking,
    common: o.Common,
    dry_run: o.DryRun = False,
) -> None:
    """Merge a tuned model with the aligned model it came from: safety back for a little of the tune."""
    asked = {"sweep.task": task, "sweep.columns": columns, "sweep.prompts": prompts, "sweep.pick": pick}
    flags = {
        "method": method, "weight": weight, "options.density": density,
        "alignment_data": alignment_data, "tuning_data": tuning_data,
        "form": form, "chat_template": chat_template, "mergekit": None if mergekit is None else str(mergekit),
    }  # fmt: skip
    with common.session() as session:
        asked |= asking.under("sweep")
        _check_sweep(sweep, common.config, asked)
        flags |= {"seed": making.seed, **asked, **loading.under()}
        settings = _config(models or [], flags, common)
        _run(session, settings, out, making, dry_run=dry_run)


def _check_sweep(sweep: bool, config: Path | None, asked: Mapping[str, object]) -> None:
    given = any(value is not None for value in asked.values())
    if given and not sweep:
        raise typer.BadParameter(
            "--task, --columns, --prompts, --pick and the options on generation belong to --sweep."
        )
    if sweep and not given and config is None:
        raise typer.BadParameter("--sweep needs --task and --prompts.")


def _config(models: Sequence[str], flags: Mapping[str, object], common: o.Common) -> MergeConfig:
    from alignkeep.cli.configs import config_of
    from alignkeep.merge.config import MergeConfig

    named = {"base": models[0] if models else None, "tuned": list(models[1:]) or None}
    return config_of(MergeConfig, common.config, common.assignments, {**named, **flags})


def _run(session: Session, config: MergeConfig, out: Path, making: o.Making, *, dry_run: bool) -> None:
    from alignkeep.cli.configs import facts_of
    from alignkeep.cli.tables import merge_summary
    from alignkeep.merge import stage

    if dry_run:
        session.show(stage.plan(config))
        return
    result = stage.merge(config, out=out, **making.how, progress=session.progress)
    session.show(facts_of(result), merge_summary(result))
