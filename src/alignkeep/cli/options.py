"""The options that verbs share, in groups. None means "not given": defaults live in the configs, and nowhere else."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict, get_type_hints

import typer

from alignkeep.cli.session import Session
from alignkeep.cli.verb import list_settings

_OUTPUT, _LOADING, _GENERATION, _COMMON = "Output", "Loading models", "Generation", "Common"


def _a_folder_to_make(out: Path | None) -> Path | None:
    if out is not None and os.path.realpath(out) == os.path.realpath("/"):
        raise typer.BadParameter("the root of the disk is no folder for a result.")
    return out


Out = Annotated[
    Path,
    typer.Option("--out", help="Folder to write.", rich_help_panel=_OUTPUT, callback=_a_folder_to_make),
]


def listing(lines: Callable[[typer.Context], Iterable[str]], name: str, what: str) -> Any:
    """An option that prints lines for a reader, and nothing is done."""

    def show(context: typer.Context, wanted: bool) -> None:
        if wanted:
            with Session(as_json=False, quiet=True):
                text = "\n".join(lines(context))
            typer.echo(text)
            raise typer.Exit

    return typer.Option(name, help=what, callback=show)


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
ListSettings = Annotated[
    bool,
    typer.Option(
        "--list-settings", help="List every setting of this verb, for --set and --config.", is_eager=True,
        callback=list_settings, rich_help_panel=_COMMON,
    ),
]  # fmt: skip
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check, print the plan, touch nothing.", rich_help_panel=_COMMON)
]


class How(TypedDict):
    """What a stage is told of its folder."""

    overwrite: bool
    resume: bool


@dataclass(frozen=True)
class Making:
    """Of what is made: by which seed, over what, from where on."""

    seed: Seed = None
    overwrite: Overwrite = False
    resume: Resume = True

    @property
    def how(self) -> How:
        return How(overwrite=self.overwrite, resume=self.resume)


@dataclass(frozen=True)
class Loading:
    """Of models that are loaded."""

    device: Device = None
    dtype: Dtype = None
    revision: Revision = None
    trust_remote_code: TrustRemoteCode = None

    def under(self, stage: str = "") -> dict[str, object]:
        """As settings; `stage` is the recipe's stage they are for."""
        return {f"{stage}.load.{name}".lstrip("."): value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Asking:
    """Of models that answer."""

    max_new_tokens: MaxNewTokens = None
    batch_size: BatchSize = None
    backend: Backend = None

    def under(self, stage: str = "") -> dict[str, object]:
        """As settings; `stage` is the group or the recipe's stage they are for."""
        return {f"{stage}.generation.{name}".lstrip("."): value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Training:
    """Of a tune: what is changed most often."""

    learning_rate: LearningRate = None
    epochs: Epochs = None
    max_steps: MaxSteps = None
    lora_rank: LoraRank = None

    @property
    def settings(self) -> dict[str, object]:
        """By their keys."""
        return {
            "learning_rate": self.learning_rate, "epochs": self.epochs, "trainer.max_steps": self.max_steps,
            "lora.rank": self.lora_rank,
        }  # fmt: skip


Policy = Annotated[str, typer.Option("--policy", help="YAML file of bounds, or default.")]


@dataclass(frozen=True)
class Halving:
    """Of verbs that choose on one half of suite and task and report on the other."""

    task: Annotated[
        str | None, typer.Option("--task", help="Prompts with one right answer each: half chooses, half reports.")
    ] = None
    suite: Annotated[
        str | None, typer.Option("--suite", help="driftcheck, testbed or FILE.yaml (default: driftcheck)")
    ] = None
    columns: Columns = None
    judge: Annotated[
        str | None, typer.Option("--judge", help="keyword or package.module:object (default: keyword)")
    ] = None
    attacks: Annotated[
        str | None, typer.Option("--attacks", help="all, none, or a,package.module:object (default: all)")
    ] = None
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many prompts of each kind in each half.")] = (
        None
    )
    form: Annotated[str | None, typer.Option("--as", help="model or, of a LoRA, adapter (default: model)")] = None


@dataclass(frozen=True)
class Common:
    """Of every verb."""

    config: ConfigFile = None
    assignments: Assignments = None
    list_settings: ListSettings = False
    as_json: AsJson = False
    quiet: Quiet = False

    def session(self) -> Session:
        """In which the verb works."""
        return Session(as_json=self.as_json, quiet=self.quiet)


def spread(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with the options of each group in the group's place, as typer reads them."""
    groups: dict[str, tuple[Any, list[str]]] = {}
    options: list[inspect.Parameter] = []
    for one in inspect.signature(verb, eval_str=True).parameters.values():
        if not is_dataclass(one.annotation):
            options.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        kinds = get_type_hints(one.annotation, include_extras=True)
        groups[one.name] = one.annotation, [field.name for field in fields(one.annotation)]
        options += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=kinds[field.name],
            )
            for field in fields(one.annotation)
        ]

    def called(**given: Any) -> None:
        grouped = {name: kind(**{part: given.pop(part) for part in parts}) for name, (kind, parts) in groups.items()}
        verb(**given, **grouped)

    called.__name__, called.__doc__ = verb.__name__, verb.__doc__
    called.__signature__ = inspect.Signature(options)  # pyright: ignore[reportFunctionMemberAccess]
    return called
