"""The rules that keep the tree true: rooms apart, math pure, imports light, files and functions short."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "alignkeep"
ROOMS = {"curate", "train", "align", "answers", "merge", "inject", "evaluate", "gate", "report"}
# What puts the rooms together.
ABOVE = {
    "cli",
    "lifecycle",
    "demonstration",
    "recipe",
    "conformance",
    "stages",
    "checkup",
    "repair",
    "halves",
    "keeping",
    "sharing",
    "starting",
    "tamper",
}
# The page is made of what the stages say of themselves.
MAY_SEE_STAGES = {"report"}
MATH = [
    "masked.py", "align/advantage.py", "align/objective.py",
    "curate/costs.py", "curate/transport.py", "curate/free_masses.py", "curate/temperature.py", "curate/weighting.py",
    "curate/whitening.py", "curate/methods/mean_cosine.py", "curate/methods/dsir.py",
    "curate/methods/bidirectional.py", "curate/methods/random.py",
    "judging/statistics.py", "judging/power.py", "judging/drift.py", "judging/log_odds.py", "judging/metrics.py",
    "judging/agreement.py",
    "merge/pieces.py", "merge/method.py", "merge/linear.py", "merge/arcs.py", "merge/model_stock.py",
    "merge/sparsify.py", "merge/task_vectors.py", "merge/pruning.py", "merge/input_maps.py", "merge/select.py",
    "gate/decision.py",
    "inject/direction.py", "inject/rank_one.py", "inject/ablation.py", "inject/strength.py",
    "train/split.py", "train/penalties.py", "train/forgetting.py",
    "subspace/fisher.py", "subspace/eigenbasis.py", "subspace/balance.py",
]  # fmt: skip
MATH_MAY_IMPORT = {
    "torch",
    "numpy",
    "scipy",
    "math",
    "typing",
    "collections",
    "itertools",
    "dataclasses",
    "abc",
    "enum",
    "functools",
    "re",
    "zlib",
    "jaxtyping",
    "threading",
    "pydantic",
    "__future__",
}
# What takes long to import, and what only the verbs that need it may bring in.
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "pandas", "pyarrow", "matplotlib", "scipy"}
MAX_MATH_LINES, MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_CONFIG_FIELDS = 300, 500, 50, 12
# Broken where the reader gains; each says so in a comment of its own.
CONFIGS_OVER = {"TrainConfig": 7, "MergeConfig": 1, "CurateConfig": 3, "FixConfig": 2, "EvaluateConfig": 1}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports_of(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_after(statement: str) -> set[str]:
    """Top-level names in sys.modules of a fresh Python that has run `statement`."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", MATH)
def test_a_math_file_imports_numbers_the_vocabulary_and_its_own_room_only(name: str) -> None:
    room = name.split("/")[0]
    for module in imports_of(PACKAGE / name):
        # All of subspace/ is math itself, and the names of the metrics are vocabulary.
        pure = (
            "alignkeep.types.",
            "alignkeep.subspace.",
            "alignkeep.judging.metrics.",
            "alignkeep.judging.statistics.",
            f"alignkeep.{room}.",
        )
        # A method stands in one file with its mathematics: its options, their refusals and what it cites.
        pure += ("alignkeep.settings.", "alignkeep.errors.", "alignkeep.works.")
        allowed = module.startswith(pure) or module.split(".")[0] in MATH_MAY_IMPORT
        assert allowed, f"{name} imports {module}"


def test_rooms_do_not_import_each_other() -> None:
    for path in sources():
        room = name_of(path).split("/")[0]
        if room not in ROOMS:
            continue
        for module in imports_of(path):
            other = [*module.split("."), ""][1] if module.startswith("alignkeep.") else ""
            allowed = {room} | ({"stages"} if room in MAY_SEE_STAGES else set())
            assert other not in (ROOMS | ABOVE) - allowed, f"{name_of(path)} imports {module}"


def test_the_shared_parts_do_not_import_rooms() -> None:
    for path in sources():
        part = name_of(path).split("/")[0].removesuffix(".py")
        if part in ROOMS | ABOVE | {"__init__", "__main__"}:
            continue
        for module in imports_of(path):
            other = [*module.split("."), ""][1] if module.startswith("alignkeep.") else ""
            assert other not in ROOMS | ABOVE, f"{name_of(path)} imports {module}"


def test_no_module_of_ours_is_named_by_a_string_to_be_imported() -> None:
    """A door of a package (its `__init__`) opens its own rooms by name; nothing else reaches a module of ours so."""
    for path in sources():
        if path.name == "__init__.py":
            continue
        for text, line in _strings_that_could_be_imported(path.read_text(encoding="utf-8")):
            assert not _is_module_of_ours(text), f"{name_of(path)}:{line} names {text} in a string"


@pytest.mark.parametrize(
    ("source", "is_seen"),
    [
        ("_MEASURE = 'alignkeep.judging.measure'", True),
        ("load('alignkeep.testbed.reward:rule_reward')", True),
        ("import_module(f'alignkeep.{room}.stage')", True),
        ("import_module('alignkeep.' + room)", True),
        ("files('alignkeep.evaluate') / 'driftcheck.jsonl'", False),
        ("'expected alignkeep.types.Judgement with a Verdict'", False),
    ],
)
def test_strings_of_our_modules_are_seen_wherever_they_stand(source: str, is_seen: bool) -> None:
    assert any(_is_module_of_ours(text) for text, _ in _strings_that_could_be_imported(source)) is is_seen


def _strings_that_could_be_imported(source: str) -> Iterator[tuple[str, int]]:
    """Strings with their lines, but for those that only find files beside a module."""
    tree = ast.parse(source)
    found_by = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and "files" in (getattr(node.func, "id", ""), getattr(node.func, "attr", ""))
        for argument in node.args
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in found_by:
            yield node.value, node.lineno


def _is_module_of_ours(text: str) -> bool:
    """`alignkeep.` alone too: the rest of the name is put behind it."""
    if not re.fullmatch(r"alignkeep\.[\w.]*(?::\w+)?", text):
        return False
    place = PACKAGE.joinpath(*text.partition(":")[0].split(".")[1:])
    return place.is_dir() or place.with_suffix(".py").is_file()


def test_no_files_of_the_package_import_each_other_in_a_circle() -> None:
    """Imports inside functions and for types count as well."""
    found = circles({module_of(path): modules_of_ours(path) for path in sources()})
    assert [sorted(circle) for circle in found] == []


def test_a_circle_is_found_however_long_it_is() -> None:
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == [{"a", "b", "c"}]
    assert list(circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})) == []


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def modules_of_ours(path: Path) -> set[str]:
    modules = {module_of(other) for other in sources()}
    found: set[str] = set()
    for name in imports_of(path):
        parts = name.split(".")[1:] if name.startswith("alignkeep.") else []
        prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        found |= {next((prefix for prefix in prefixes if prefix in modules), "__init__")} if parts else set()
    return found - {module_of(path), "__init__"}


def circles(imports: dict[str, set[str]]) -> Iterator[set[str]]:
    """Sets of modules each of which reaches every other."""
    reached: dict[str, set[str]] = {}
    for start in imports:
        todo, seen = list(imports[start]), set[str]()
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += imports.get(module, set())
        reached[start] = seen
    done: set[str] = set()
    for module, seen in reached.items():
        if module in seen and module not in done:
            circle = {other for other in seen if module in reached[other]}
            done |= circle
            yield circle


def test_the_stages_are_listed_in_one_file_only() -> None:
    """In a tuple or dict of stage names, or a chain of tests for them, a new stage would be missing."""
    from alignkeep.stages import STAGES

    names = {stage.name for stage in STAGES}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
            if isinstance(node, ast.FunctionDef):
                inside = list(ast.walk(node))
                parts = [side for inner in inside if isinstance(inner, ast.Compare) for side in inner.comparators]
                parts += [inner.value for inner in inside if isinstance(inner, ast.MatchValue)]
            listed = {part.value for part in parts if isinstance(part, ast.Constant)} & names
            # What all processes of a launch do together stands beside the verbs: the command line is light.
            assert len(listed) < 3 or name_of(path) in {"__init__.py", "cli/app.py"}, f"{name_of(path)} lists {listed}"


def test_the_report_names_no_stage() -> None:
    """A stage says itself what the page shows of it."""
    from alignkeep.stages import STAGES

    names = {stage.name for stage in STAGES}
    for path in sources():
        if not name_of(path).startswith(("report/", "charts/")):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names, f"{name_of(path)}:{node.lineno} names {node.value}"


def test_metrics_are_named_in_one_table_only() -> None:
    """Two names are left out: verdicts and columns of a trainer's log are called so, too."""
    from alignkeep.judging.metrics import METRICS

    names = METRICS.keys() - {"degenerate", "unscored"}
    for path in sources():
        if name_of(path) == "judging/metrics.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = node.value.partition(".")[0]
                assert found not in names, f"{name_of(path)}:{node.lineno} names {found}"


def test_importing_the_package_brings_in_nothing_heavy() -> None:
    found = modules_after("import alignkeep; dir(alignkeep)")
    assert not found & (HEAVY | {"numpy", "pydantic", "rich", "typer", "yaml"})


@pytest.mark.parametrize(
    "statement",
    [
        "import alignkeep.cli.app",
        "import alignkeep.recipe, alignkeep.settings",
        "import alignkeep.types, alignkeep.errors, alignkeep.data, alignkeep.progress, alignkeep.citations",
        "import alignkeep.checkpoint.folders, alignkeep.checkpoint.records",
        "import alignkeep.train.config, alignkeep.evaluate.config, alignkeep.report.config, alignkeep.models.config",
        "import alignkeep.merge.config, alignkeep.inject.config",
        "import alignkeep.lifecycle, alignkeep.stages, alignkeep.demonstration",
    ],
)
def test_what_every_command_imports_is_light(statement: str) -> None:
    assert not modules_after(statement) & (HEAVY | {"numpy"})


@pytest.mark.parametrize("arguments", ["'--help'", "'evaluate', '--help'", "'--version'"])
def test_help_costs_no_settings_library_and_nothing_heavy(arguments: str) -> None:
    statement = (
        "import contextlib, io\nsys.argv = ['alignkeep', " + arguments + "]\n"
        "from alignkeep.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n    main()"
    )
    assert not modules_after(statement) & (HEAVY | {"numpy", "yaml"})


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare", "model_stock"])
def test_a_merge_of_whole_models_does_without_torch(method: str, tmp_path: Path) -> None:
    models = files("alignkeep").joinpath("testbed", "models")
    settings = {"base": str(models / "aligned"), "tuned": [str(models / name) for name in ("weak", "uncensored")]}
    settings["tuned"] = settings["tuned"][: 1 + (method == "model_stock")]
    statement = (
        "import alignkeep\nfrom alignkeep.merge import MergeConfig\nfrom pathlib import Path\n"
        f"alignkeep.merge(MergeConfig(**{settings!r}, method={method!r}), out=Path({str(tmp_path / 'out')!r}))"
    )
    assert not modules_after(statement) & HEAVY
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_importing_everything_sets_no_seed_no_logger_and_prints_nothing() -> None:
    names = [name_of(path).removesuffix(".py").replace("/", ".") for path in sources()]
    modules = [f"alignkeep.{name}".removesuffix(".__init__") for name in names if name != "__main__"]
    code = (
        "import logging, torch\n"
        "import importlib\n"
        "before = torch.random.get_rng_state().tolist(), torch.get_num_threads()\n"
        "import transformers, trl, peft, datasets\n"
        "handlers = list(logging.getLogger().handlers), logging.getLogger().level\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "assert before == (torch.random.get_rng_state().tolist(), torch.get_num_threads())\n"
        "assert handlers == (list(logging.getLogger().handlers), logging.getLogger().level)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    most = MAX_MATH_LINES if name_of(path) in MATH else MAX_FILE_LINES
    assert len(lines) <= most, f"{name_of(path)} has {len(lines)} lines"
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{name_of(path)}: {node.name} has {length} lines"


def test_files_whose_types_are_checked_strictly_are_there() -> None:
    """A file that was renamed would no longer be."""
    strict = (PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8").partition("strict = [")[2]
    named = re.findall(r'"(src/[^"]+)"', strict.partition("]")[0])
    assert named
    assert [name for name in named if not (PACKAGE.parents[1] / name).is_file()] == []


def test_configs_are_small_frozen_and_strict() -> None:
    from pydantic import BaseModel

    from alignkeep.answers.stage import AnswersConfig
    from alignkeep.demonstration import DemoConfig
    from alignkeep.evaluate.config import EvaluateConfig
    from alignkeep.inject.config import DirectionConfig, EditConfig, InjectConfig, SearchConfig
    from alignkeep.merge.config import MergeConfig, SweepConfig
    from alignkeep.models.config import GenerationConfig, LoadConfig
    from alignkeep.recipe import Recipe
    from alignkeep.repair import FixConfig
    from alignkeep.report.config import ReportConfig
    from alignkeep.tamper.config import HarmfulTune, TamperConfig
    from alignkeep.train.config import LoraSettings, TrainConfig

    configs: list[type[BaseModel]] = [
        EvaluateConfig, DemoConfig, GenerationConfig, LoadConfig, Recipe, ReportConfig, LoraSettings, TrainConfig,
        MergeConfig, SweepConfig, InjectConfig, DirectionConfig, EditConfig, SearchConfig, FixConfig, AnswersConfig,
        TamperConfig, HarmfulTune,
    ]  # fmt: skip
    for config in configs:
        allowed = MAX_CONFIG_FIELDS + CONFIGS_OVER.get(config.__name__, 0)
        assert len(config.model_fields) <= allowed, config.__name__
        assert config.model_config.get("frozen"), config.__name__
        assert config.model_config.get("extra") == "forbid", config.__name__


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_no_file_is_a_drawer_and_no_fault_is_swallowed(path: Path) -> None:
    assert not re.search(r"util|helper|misc|manager", name_of(path))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            kind = node.type.id if isinstance(node.type, ast.Name) else None
            broad = node.type is None or kind in {"Exception", "BaseException"}
            silent = all(isinstance(step, ast.Pass) for step in node.body)
            assert not (broad and silent), f"{name_of(path)}:{node.lineno}"
        in_cli = name_of(path).startswith("cli/")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not in_cli:
            assert node.func.id != "print" or name_of(path) == "testbed/build.py", f"{name_of(path)}:{node.lineno}"


def test_what_the_package_reads_at_run_time_is_packaged() -> None:
    package = files("alignkeep")
    for name in ("py.typed", "evaluate/driftcheck.jsonl", "report/template.html", "charts/style.css"):
        assert package.joinpath(name).is_file(), name
    for name in ("aligned", "weak", "uncensored", "moe"):
        assert package.joinpath("testbed", "models", name, "model.safetensors").is_file(), name
