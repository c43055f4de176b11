"""`alignkeep init`: a commented recipe for a model and data, to read, change and run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkeep.cli import options as o
from alignkeep.cli.session import Session


def init(
    model: Annotated[str, typer.Option("--model", help="Model to tune: folder or hub id.")],
    data: Annotated[str, typer.Option("--data", help="Examples: file or hub_id[:config][@revision][:split].")],
    task: Annotated[str | None, typer.Option("--task", help="Prompts with one right answer each: file.")] = None,
    prompts: Annotated[str | None, typer.Option("--prompts", help="Harmful prompts: adds a merge.")] = None,
    out: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("recipe.yaml"),
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Write a commented recipe for a model and data."""
    with Session(as_json=as_json, quiet=quiet) as session:
        from alignkeep.starting import write_recipe

        recipe = write_recipe(out, model=model, data=data, task=task, prompts=prompts)
        stages = [stage.name for stage, _ in recipe.steps]
        session.show({"recipe": out, "stages": stages, "next": f"alignkeep run {out} --out {out.stem}"})
