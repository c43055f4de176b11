"""What a person sees in an editor or a notebook: public calls with their own parameters, public names that exist."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path

import pytest

import alignkeep
from alignkeep.merge.config import MergeConfig

PACKAGE = Path(alignkeep.__file__).parent
CALLS = sorted(set(alignkeep.__all__) - {"Recipe", "__version__"})


def for_editors(path: Path) -> set[str]:
    """The names that a type checker is told of."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            found |= {alias.asname or alias.name for line in node.body for alias in getattr(line, "names", [])}
    return found


@pytest.mark.parametrize("name", CALLS)
def test_a_public_call_has_named_and_typed_parameters(name: str) -> None:
    parameters = inspect.signature(getattr(alignkeep, name)).parameters.values()
    assert parameters
    for parameter in parameters:
        assert parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD), parameter
        assert parameter.annotation not in (parameter.empty, "object", "Any"), parameter


def test_a_call_takes_the_config_of_its_stage_and_says_where_to_write() -> None:
    parameters = inspect.signature(alignkeep.merge).parameters
    assert parameters["config"].annotation == MergeConfig.__name__
    assert list(parameters) == ["config", "out", "overwrite", "resume", "progress", "measure"]


def test_an_editor_is_told_of_every_public_name_and_of_no_other() -> None:
    assert for_editors(PACKAGE / "__init__.py") == set(alignkeep.__all__) - {"__version__"}
    for path in sorted(PACKAGE.glob("*/__init__.py")):
        public = getattr(import_module(f"alignkeep.{path.parent.name}"), "public", {})
        assert for_editors(path) == set(public), path
