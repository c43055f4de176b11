"""All verbs under one name."""

from __future__ import annotations

import os
import re
from typing import Annotated

import typer

from alignkeep import __version__
from alignkeep.checkpoint.folders import leads
from alignkeep.cli.align import align
from alignkeep.cli.answers import answers
from alignkeep.cli.check import check
from alignkeep.cli.cite import cite
from alignkeep.cli.curate import curate
from alignkeep.cli.demo import demo
from alignkeep.cli.doctor import doctor
from alignkeep.cli.evaluate import evaluate
from alignkeep.cli.export import export
from alignkeep.cli.fix import fix
from alignkeep.cli.gate import gate
from alignkeep.cli.init import init
from alignkeep.cli.inject import inject
from alignkeep.cli.judge import judge
from alignkeep.cli.keep import keep
from alignkeep.cli.merge import merge
from alignkeep.cli.outcome import report_error
from alignkeep.cli.push import push
from alignkeep.cli.report import report
from alignkeep.cli.run import run
from alignkeep.cli.tamper import tamper
from alignkeep.cli.testbed import testbed
from alignkeep.cli.train import train
from alignkeep.cli.verb import Verb, epilog
from alignkeep.cli.verify import verify
from alignkeep.errors import RecipeError

app = typer.Typer(
    name="alignkeep",
    help="Fine-tune a language model and keep it safe: tune, measure what was lost, report it with intervals.",
    epilog="Exit codes: 0 done, 1 user error, 2 usage, 3 the gate failed, 4 the machine failed, "
    "5 the gate cannot decide, 130 interrupted. "
    "After 4 and 130 the same command continues where it stopped.",
    add_completion=True,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
_TOGETHER = {"curate", "train", "align", "run"}  # what all processes of a torchrun do; the rest is left to the first

# Every verb with an example and its page, which end its help.
VERBS = (
    (demo, "alignkeep demo --out demo", "testbed.md"),
    (check, "alignkeep check my-adapter", "first-hour.md"),
    (fix, "alignkeep fix my-adapter --task task.jsonl --out fixed", "first-hour.md"),
    (keep, "alignkeep keep my-model data.jsonl --task task.jsonl --out kept", "keeping.md"),
    (run, "alignkeep run recipe.yaml --out run", "recipes.md"),
    (testbed, "alignkeep testbed --out T", "testbed.md"),
    (
        curate,
        "alignkeep curate --model BASE --data D.jsonl --safe S.jsonl --harmful H.jsonl --out weights",
        "curation.md",
    ),
    (train, "alignkeep train --model BASE --data D.jsonl --epochs 2 --learning-rate 1e-4 --out tuned", "training.md"),
    (align, "alignkeep align --model M --data P.jsonl --reward judge:JUDGE --out better", "alignment.md"),
    (answers, "alignkeep answers BASE --out asked", "merging.md"),
    (merge, "alignkeep merge BASE tuned --sweep --task T.jsonl --prompts H.jsonl --out merged", "merging.md"),
    (inject, "alignkeep inject tuned --harmful H.jsonl --harmless N.jsonl --out injected", "injection.md"),
    (verify, "alignkeep verify merged", "files.md"),
    (evaluate, "alignkeep evaluate tuned --base BASE --limit 100 --out measured", "evaluation.md"),
    (tamper, "alignkeep tamper tuned --base BASE --harmful-data H.jsonl --out broken", "evaluation.md"),
    (judge, "alignkeep judge answers.jsonl --out judged", "evaluation.md"),
    (gate, "alignkeep gate measured --policy policy.yaml", "gate.md"),
    (report, "alignkeep report measured --card", "evaluation.md"),
    (export, "alignkeep export fixed --hub-base OWNER/BASE --out ready", "use-the-result.md"),
    (push, "alignkeep push fixed --hub-base OWNER/BASE --to OWNER/NAME", "use-the-result.md"),
    (cite, "alignkeep cite recipe.yaml", "recipes.md"),
    (init, "alignkeep init --model BASE --data notes.jsonl --task task.jsonl", "recipes.md"),
    (doctor, "alignkeep doctor", "first-hour.md"),
)
for verb, example, page in VERBS:
    app.command(cls=Verb, epilog=epilog(example, page))(verb)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"alignkeep {__version__}")
        raise typer.Exit


def _is_launched_whole() -> bool:
    """Whether RANK, where it is set, is one of WORLD_SIZE processes: a process that leaves the work to the first
    must know that there is one.
    """
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return all(re.fullmatch("[0-9]{1,8}", number) for number in (rank, world)) and int(rank) < int(world)


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tune a language model and keep it safe: tune, measure what was lost, report it with intervals."""
    if not _is_launched_whole():
        fault = RecipeError(
            "RANK", seen=f"{os.environ.get('RANK')!r}, with WORLD_SIZE {os.environ.get('WORLD_SIZE')!r}",
            expected="a number below WORLD_SIZE, as torchrun sets both", remedy="unset RANK, or start with torchrun",
        )  # fmt: skip
        raise typer.Exit(report_error(fault))
    if context.invoked_subcommand not in _TOGETHER and not leads():
        raise typer.Exit
