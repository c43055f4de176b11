"""`alignkeep inject`: a model in, the same model with refusal turned up out, as weights or as an adapter of rank 1."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session

if TYPE_CHECKING:
    from alignkeep.inject.config import InjectConfig

_DIRECTION, _EDIT = "Direction", "Edit"

Model = Annotated[str | None, typer.Argument(metavar="MODEL", help="Folder or hub id of the model to edit.")]
Harmful = Annotated[str | None, typer.Option("--harmful", help="Harmful prompts: file or hub_id[:split].")]
Harmless = Annotated[str | None, typer.Option("--harmless", help="Harmless prompts: file or hub_id[:split].")]
Borderline = Annotated[
    str | None, typer.Option("--borderline", help="Prompts that look harmful and are not: they bound over-refusal.")
]
General = Annotated[
    str | None, typer.Option("--general", help="More text on which the edit is to be silent (the data of a tune).")
]
Layer = Annotated[
    str | None,
    typer.Option("--layer", help="auto, or the number of a block (default: auto)", rich_help_panel=_DIRECTION),
]
Source = Annotated[
    str | None,
    typer.Option("--direction-from", help="Take the direction from this model.", rich_help_panel=_DIRECTION),
]
SystemPrompt = Annotated[
    str | None,
    typer.Option(
        "--system-prompt",
        help="default, or a text file: stands before all prompts while the direction is looked for.",
        rich_help_panel=_DIRECTION,
    ),
]
Strength = Annotated[
    str | None,
    typer.Option(
        "--strength", help="auto, raw:ALPHA, relative:SHARE or push:SHIFT (default: auto)", rich_help_panel=_EDIT
    ),
]
Right = Annotated[
    str | None,
    typer.Option("--right", help="mean (the paper's) or targeted (default: targeted)", rich_help_panel=_EDIT),
]
Sign = Annotated[
    str | None,
    typer.Option("--sign", help="literal (the paper's) or calibrated (default: calibrated)", rich_help_panel=_EDIT),
]
Again = Annotated[
    bool | None, typer.Option("--again", help="Edit a model that was edited before.", rich_help_panel=_EDIT)
]
AllowLower = Annotated[
    bool | None, typer.Option("--allow-lower", help="Write an edit that lowers refusal.", rich_help_panel=_EDIT)
]
Form = Annotated[str | None, typer.Option("--as", help="model or adapter (default: model)")]


@o.spread
def inject(
    out: o.Out,
    model: Model = None,
    harmful: Harmful = None,
    harmless: Harmless = None,
    borderline: Borderline = None,
    general: General = None,
    layer: Layer = None,
    source: Source = None,
    system_prompt: SystemPrompt = None,
    strength: Strength = None,
    right: Right = None,
    sign: Sign = None,
    again: Again = None,
    allow_lower: AllowLower = None,
    form: Form = None,
    *,
    making: o.Making,
    loading: o.Loading,
    asking: o.Asking,
    common: o.Common,
    dry_run: o.DryRun = False,
) -> None:
    """Turn refusal up without training: a rank-one edit whose strength is chosen by measurement."""
    flags = {
        "model": model, "harmful": harmful, "harmless": harmless, "borderline": borderline, "general": general,
        "direction.layer": int(layer) if layer is not None and layer.isdecimal() else layer,
        "direction.source": source, "direction.system_prompt": system_prompt,
        "edit.strength": strength, "edit.right": right, "edit.sign": sign,
        "edit.again": again, "edit.allow_lower": allow_lower, "form": form, "seed": making.seed,
    }  # fmt: skip
    with common.session() as session:
        from alignkeep.cli.configs import config_of
        from alignkeep.inject.config import InjectConfig

        flags |= asking.under("search")
        flags |= loading.under()
        settings = config_of(InjectConfig, common.config, common.assignments, flags)
        _run(session, settings, out, making, dry_run=dry_run)


def _run(session: Session, config: InjectConfig, out: Path, making: o.Making, *, dry_run: bool) -> None:
    from alignkeep.cli.configs import facts_of
    from alignkeep.cli.tables import inject_summary
    from alignkeep.inject import stage

    if dry_run:
        session.show(stage.plan(config))
        return
    result = stage.inject(config, out=out, **making.how, progress=session.progress)
    session.show(facts_of(result), inject_summary(result))
