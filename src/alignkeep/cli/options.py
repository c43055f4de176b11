"""The options that verbs share. None means "not given": defaults live in the configs, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

_OUTPUT, _LOADING, _GENERATION, _COMMON = "Output", "Loading models", "Generation", "Common"


def _a_folder_to_make(out: Path | None) -> Path | None:
    if out is not None and os.path.realpath(out) == os.path.realpath("/"):
        raise typer.BadParameter("the root of the disk is no folder for a result.")
    return out


Out = Annotated[
    Path,
    typer.Option("--out", help="Folder to write.", rich_help_panel=_OUTPUT, callback=_a_folder_to_make),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of all randomness [0].", rich_help_panel=_OUTPUT)]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace another run's result in --out.", rich_help_panel=_OUTPUT)
]
Resume = Annotated[
    bool,
    typer.Option("--resume/--fresh", help="Continue an interrupted run, or do it all again.", rich_help_panel=_OUTPUT),
]

Device = Annotated[
    str | None,
    typer.Option("--device", help="auto, cpu, mps, cuda, cuda:1 ... (default: auto)", rich_help_panel=_LOADING),
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="auto, float32, bfloat16 or float16 (default: auto)", rich_help_panel=_LOADING),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.", rich_help_panel=_LOADING)
]
TrustRemoteCode = Annotated[
    bool | None,
    typer.Option(
        "--trust-remote-code/--no-trust-remote-code",
        help="Run code that a model brings along (default: no)",
        rich_help_panel=_LOADING,
    ),
]

Columns = Annotated[
    str | None,
    typer.Option("--columns", metavar="OURS=THEIRS,...", help="Names of columns: prompt=question,completion=answer"),
]

_TRAINING = "Training"
LearningRate = Annotated[
    float | None, typer.Option("--learning-rate", help="Of the first step.", rich_help_panel=_TRAINING)
]
Epochs = Annotated[float | None, typer.Option("--epochs", help="Passes over the data [1].", rich_help_panel=_TRAINING)]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", help="End after so many.", rich_help_panel=_TRAINING)]
MaxLength = Annotated[
    int | None, typer.Option("--max-length", help="Longest example, in tokens [1024].", rich_help_panel=_TRAINING)
]
LoraRank = Annotated[int | None, typer.Option("--lora-rank", help="Of the adapter [8].", rich_help_panel=_TRAINING)]

MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", help="Longest answer, in tokens [256].", rich_help_panel=_GENERATION)
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", help="Prompts answered at once [32].", rich_help_panel=_GENERATION)
]
Backend = Annotated[
    str | None,
    typer.Option("--backend", help="transformers or vllm (default: transformers)", rich_help_panel=_GENERATION),
]

AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout, all else on stderr.", rich_help_panel=_COMMON)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.", rich_help_panel=_COMMON)]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML file with this verb's settings.", rich_help_panel=_COMMON)
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any setting, dots for nested ones; repeatable.", rich_help_panel=_COMMON
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check, print the plan, touch nothing.", rich_help_panel=_COMMON)
]
