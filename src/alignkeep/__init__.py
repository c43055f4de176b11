"""alignkeep: fine-tune a language model and keep it safe.

Everything public is imported on first use, so that `import alignkeep` costs nothing and touches no device. The rooms
that are one verb are callable: `alignkeep.evaluate(...)` runs the stage.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what an editor is told of the calls
    from alignkeep.align.stage import align as align
    from alignkeep.answers.stage import answers as answers
    from alignkeep.checkup import check as check
    from alignkeep.curate.stage import curate as curate
    from alignkeep.demonstration import demo as demo
    from alignkeep.evaluate.stage import evaluate as evaluate
    from alignkeep.inject.stage import inject as inject
    from alignkeep.keeping import keep as keep
    from alignkeep.lifecycle import run as run
    from alignkeep.lifecycle import verify as verify
    from alignkeep.merge.stage import merge as merge
    from alignkeep.recipe import Recipe as Recipe
    from alignkeep.repair import fix as fix
    from alignkeep.report.stage import report as report
    from alignkeep.sharing import export as export
    from alignkeep.tamper.stage import tamper as tamper
    from alignkeep.testbed.stage import testbed as testbed
    from alignkeep.train.stage import train as train

__version__ = "0.1.0"

_ROOMS = ("curate", "train", "align", "answers", "merge", "inject", "evaluate", "tamper", "report", "testbed")
_NAMES = {
    "Recipe": "alignkeep.recipe",
    "check": "alignkeep.checkup",
    "demo": "alignkeep.demonstration",
    "export": "alignkeep.sharing",
    "fix": "alignkeep.repair",
    "keep": "alignkeep.keeping",
    "run": "alignkeep.lifecycle",
    "verify": "alignkeep.lifecycle",
}

__all__ = [
    "Recipe",
    "__version__",
    "align",
    "answers",
    "check",
    "curate",
    "demo",
    "evaluate",
    "export",
    "fix",
    "inject",
    "keep",
    "merge",
    "report",
    "run",
    "tamper",
    "testbed",
    "train",
    "verify",
]


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return import_module(f"alignkeep.{name}")
    if name in _NAMES:
        value = getattr(import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'alignkeep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
