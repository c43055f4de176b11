"""A verb of the command line: its help ends with an example and its page, it lists its settings, and an option that
it does not have is answered with the one, or the setting, that was most likely meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from pydantic import BaseModel

_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # typer has no public name for it


class Verb(TyperCommand):
    """What typer makes of a function."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except _USAGE_ERROR as error:
            wrong = getattr(error, "option_name", None)
            if wrong is None or not hasattr(error, "possibilities"):
                raise
            options = [name for one in self.get_params(ctx) for name in one.opts if name.startswith("--")]
            meant = " ".join(_meant(str(self.name), str(wrong), options))
            return ctx.fail(f"No such option: {wrong}. {meant}".strip())


def _meant(verb: str, wrong: str, options: list[str]) -> Iterator[str]:
    """What to write instead of an unknown option."""
    from alignkeep.settings import described_settings, nearest

    option = nearest(wrong.lstrip("-").replace("_", "-"), [name.lstrip("-") for name in options])
    config = _config_of(verb)
    keys = [] if config is None else [one.key for one in described_settings(config)]
    by_name = {key.rpartition(".")[2]: key for key in reversed(keys)}
    near = nearest(wrong.lstrip("-").replace("-", "_"), by_name)
    said = [f"--{option}"] if option else []
    said += [f"--set {by_name[near]}=..."] if near else []
    if said:
        yield f"Did you mean {', or '.join(said)}?"
    elif keys:
        yield "--list-settings shows what there is."


def list_settings(context: typer.Context, wanted: bool) -> None:
    """Print every setting of the verb, and do nothing else."""
    config = _config_of(str(context.command.name)) if wanted else None
    if config is None:
        return
    from alignkeep.settings import described_settings

    for one in described_settings(config):
        default = "has to be given" if one.default is None else f"default {one.default}"
        typer.echo(f"{one.key}: {one.kind}, {default}" + (f". {one.meaning}" if one.meaning else ""))
    raise typer.Exit


def _config_of(verb: str) -> type[BaseModel] | None:
    """The settings of a verb; None for one that has none."""
    from alignkeep.stages import stage_named

    stage = stage_named(verb)
    if stage is not None:
        return stage.config
    if verb == "check":
        from alignkeep.evaluate.config import EvaluateConfig

        return EvaluateConfig
    if verb == "fix":
        from alignkeep.repair import FixConfig

        return FixConfig
    if verb == "keep":
        from alignkeep.keeping import KeepConfig

        return KeepConfig
    if verb == "answers":
        from alignkeep.answers.stage import AnswersConfig

        return AnswersConfig
    if verb == "judge":
        from alignkeep.evaluate.config import JudgeConfig

        return JudgeConfig
    if verb == "report":
        from alignkeep.report.config import ReportConfig

        return ReportConfig
    if verb in ("run", "cite"):
        from alignkeep.recipe import Recipe

        return Recipe
    if verb == "demo":
        from alignkeep.demonstration import DemoConfig

        return DemoConfig
    if verb == "testbed":
        from alignkeep.testbed.stage import TestbedConfig

        return TestbedConfig
    return None


def epilog(example: str, page: str) -> str:
    """The end of a verb's help."""
    return f"Example: {example}\n\nMore: docs/{page}"
