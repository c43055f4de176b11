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
    taken = ["out", "overwrite", "resume", "progress", "measure"]
    assert list(parameters) == ["config", *MergeConfig.model_fields, *taken]


def test_settings_are_arguments_paths_are_paths_and_errors_are_ours(tmp_path: Path) -> None:
    from alignkeep.errors import RecipeError
    from alignkeep.rooms import called

    asked: list[object] = []

    def merge(config: MergeConfig, *, out: Path, overwrite: bool = False) -> None:
        asked.append((config, out, overwrite))

    merge.__annotations__["config"] = "MergeConfig"
    called(merge, (tmp_path / "base", "one", tmp_path / "two"), {"weight": 0.3, "overwrite": True})
    (config, out, overwrite) = asked[0]
    assert (config.base, config.tuned) == (str(tmp_path / "base"), ("one", str(tmp_path / "two")))
    assert (config.weight, out, overwrite) == (0.3, Path("merge-one"), True)
    called(merge, (config,), {"out": tmp_path})
    assert asked[1] == (config, tmp_path, False)
    with pytest.raises(RecipeError, match="did you mean weight"):
        called(merge, ("base", "one"), {"wieght": 0.3})
    with pytest.raises(TypeError, match="base twice"):
        called(merge, ("base", "one"), {"base": "other"})


def test_a_scorecard_is_short_in_a_terminal_a_table_in_a_notebook_and_a_frame_for_numbers() -> None:
    from alignkeep.judging.statistics import wilson
    from alignkeep.types import Scorecard

    rates = {"harm_refusal": wilson(9, 10), "harm_refusal.hate": wilson(1, 2), "task_accuracy": wilson(0, 0)}
    card = Scorecard("<b>tune", "base", "suite", rates, base_metrics={"harm_refusal": wilson(10, 10)})
    assert repr(card) == "<Scorecard of <b>tune against base, suite: harm_refusal 90 %>"
    shown = card._repr_html_()
    assert "&lt;b&gt;tune" in shown
    assert "90.0 [59.6, 98.2], n = 10" in shown
    assert "task_accuracy" not in shown, "what was not measured is no row"
    frame = card.to_frame()
    assert list(frame.columns) == ["value", "low", "high", "n", "base_value", "base_low", "base_high", "base_n"]
    assert (frame.loc["harm_refusal", "value"], frame.loc["harm_refusal", "base_value"]) == (0.9, 1.0)


def test_an_editor_is_told_of_every_public_name_and_of_no_other() -> None:
    assert for_editors(PACKAGE / "__init__.py") == set(alignkeep.__all__) - {"__version__"}
    for path in sorted(PACKAGE.glob("*/__init__.py")):
        public = getattr(import_module(f"alignkeep.{path.parent.name}"), "public", {})
        assert for_editors(path) == set(public), path
