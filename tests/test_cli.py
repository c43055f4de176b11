"""The command line as people and scripts meet it: exit codes, one line per mistake, stdout for the result alone."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignkeep.cli.configs import facts_of
from alignkeep.cli.outcome import outcome_of
from alignkeep.errors import DataError, MachineError, RecipeError
from command import Finished, run_command
from micro import write_recipe, write_rows

VERBS = ["demo", "run", "testbed", "train", "evaluate", "judge", "report", "cite"]
COMMON = ["--json", "--quiet", "--config", "--set", "--dry-run"]
MAKING = ["--out", "--seed", "--overwrite", "--resume", "--fresh"]
LOADING = ["--device", "--dtype", "--revision", "--trust-remote-code"]
GENERATING = ["--max-new-tokens", "--batch-size", "--backend"]
OPTIONS = {
    "demo": MAKING,
    "run": MAKING + LOADING + GENERATING,
    "testbed": MAKING,
    "train": ["--model", "--data", "--weights", "--method", *MAKING, *LOADING],
    "evaluate": ["--base", "--suite", "--task", "--judge", "--attacks", *MAKING, *LOADING, *GENERATING],
    "judge": ["--judge", *MAKING],
    "report": ["--card", "--out"],
    "cite": [],
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return write_recipe(tmp_path_factory.mktemp("micro"), tiny_model)


def alignkeep(*arguments: object, cwd: Path, environment: dict[str, str] | None = None) -> Finished:
    """The installed command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "alignkeep", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb", **(environment or {})},
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def test_the_help_names_every_verb_and_every_exit_code(tmp_path: Path) -> None:
    shown = alignkeep("--help", cwd=tmp_path)
    assert shown.code == 0
    assert [verb for verb in VERBS if f" {verb} " not in shown.stdout] == []
    assert "130 interrupted" in shown.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_the_promised_options(verb: str, tmp_path: Path) -> None:
    shown = run_command(verb, "--help", folder=tmp_path)
    assert shown.code == 0
    words = shown.stdout.split()
    assert [option for option in (*COMMON, *OPTIONS[verb]) if option not in words] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["evaluate", "model"],
        ["evaluate", "--out", "out"],
        ["train", "--out", "out"],
        ["train", "--out", "out", "--seed", "many"],
        ["train", "--out", "out", "--sed", "1"],
        ["run", "--out", "out"],
        ["report"],
    ],
)
def test_a_command_that_cannot_be_read_leaves_with_2(arguments: list[str], tmp_path: Path) -> None:
    told = run_command(*arguments, folder=tmp_path)
    assert (told.code, told.stdout) == (2, "")
    assert "Error" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nowhere.yaml", "--out", "{out}"], "nowhere.yaml: found No such file"),
        (["run", "{recipe}", "--out", "{out}", "--set", "train.epoch=2"], "did you mean epochs?"),
        (["run", "{recipe}", "--out", "{folder}"], "choose another --out"),
        (["evaluate", "{model}", "--suite", "nowhere.yaml", "--out", "{out}"], "nowhere.yaml"),
        (["evaluate", "{model}", "--max-new-tokens", "0", "--out", "{out}"], "max_new_tokens (command line): found 0"),
        (["evaluate", "testbed:models/aligned", "--out", "{out}"], "alignkeep testbed --out T"),
        (["train", "--model", "{model}", "--data", "nowhere.jsonl", "--out", "{out}"], "nowhere.jsonl"),
        (["judge", "nowhere.jsonl", "--out", "{out}"], "nowhere.jsonl"),
        (["report", "nowhere"], "nowhere"),
        (["report", "{folder}"], "scorecard"),
        (["cite", "nowhere.yaml"], "nowhere.yaml"),
        (["evaluate", "nomodel", "--out", "{out}"], "nomodel: found no such folder"),
        (["evaluate", "{model}", "--suite", "{unread}", "--out", "{out}"], "of its words unknown"),
        (["evaluate", "{model}", "--revision", "main", "--out", "{out}"], "drop --revision"),
        (["train", "--model", "", "--data", "nowhere.jsonl", "--out", "{out}"], "model (command line): found ''"),
        (["train", "--model", "{model}", "--data", "nodata", "--out", "{out}"], "nodata: found no such file"),
        (["train", "--model", "{model}", "--data", "d", "--device", "tpu", "--out", "{out}"], "cuda or cuda:N"),
        (
            ["train", "--model", "{model}", "--data", "d", "--seed", "4294967296", "--out", "{out}"],
            "less than 4294967296",
        ),
        (["judge", "nowhere.jsonl", "--dry-run", "--out", "{out}"], "nowhere.jsonl"),
        (["judge", "{answers}", "--judge", "keywrd", "--dry-run", "--out", "{out}"], "expected `keyword`, a guard"),
        (["report", "nowhere", "--dry-run"], "nowhere"),
        (["run", "{recipe}", "--set", "evaluate.suite=nowhere.yaml", "--out", "{out}"], "nowhere.yaml"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_leaves_with_1(
    arguments: list[str], said: str, recipe: Path, tiny_model: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path / "unread.jsonl", [{"prompt": "zwick zwack zwuck"}])
    write_rows(tmp_path / "answers.jsonl", [{"prompt": "zwick", "answer": "zwack"}])
    unread = tmp_path / "unread.yaml"
    unread.write_text("name: unread\nprompts: [{file: unread.jsonl, kind: harmful}]\n")
    before = {*tmp_path.iterdir(), tmp_path / "stdout", tmp_path / "stderr"}
    named = {"recipe": recipe, "folder": recipe.parent, "model": tiny_model, "unread": unread, "out": tmp_path / "out"}
    named["answers"] = tmp_path / "answers.jsonl"
    told = run_command(*(argument.format(**named) for argument in arguments), "--json", folder=tmp_path)
    assert (told.code, told.stdout) == (1, "")
    line = told.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert said in line
    assert all(part in line for part in (": found ", ", expected ", "; "))
    assert "Traceback" not in told.stderr
    assert told.stderr.count("\n") == 1, "no work was begun"
    assert set(tmp_path.iterdir()) == before, "nothing is left behind, hidden or not"


def test_evaluate_writes_one_json_object_and_keeps_everything_else_on_stderr(
    recipe: Path, tiny_model: Path, tmp_path: Path
) -> None:
    arguments = ["evaluate", tiny_model, "--suite", recipe.parent / "suite.yaml", "--attacks", "none"]
    arguments += ["--max-new-tokens", "4", "--out", "E", "--json"]
    told = alignkeep(*arguments, cwd=tmp_path)
    assert told.code == 0, told.stderr
    card = json.loads(told.stdout)
    written = json.loads((tmp_path / "E" / "scorecard.json").read_text())
    assert card["metrics"] == written["metrics"]
    assert card["metrics"]["harm_refusal"]["n"] == 10
    assert card["metrics"]["over_refusal"] == {"value": None, "low": 0.0, "high": 1.0, "n": 0}
    lines = told.stderr.splitlines()
    assert len(lines) == 1, "only our own progress is shown"
    assert lines[0].startswith("answers of ")


def test_quiet_says_nothing_at_all(recipe: Path, tiny_model: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", tiny_model, "--suite", recipe.parent / "suite.yaml", "--attacks", "none", "--quiet"]
    told = run_command(*arguments, "--max-new-tokens", "2", "--out", tmp_path / "E", folder=tmp_path)
    assert told == (0, "", "")


def test_a_dry_run_prints_the_plan_and_touches_nothing(recipe: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments in (
        ["run", recipe, "--out", out],
        ["train", "--model", tiny_model, "--data", recipe.parent / "data.jsonl", "--out", out],
        ["evaluate", tiny_model, "--suite", recipe.parent / "suite.yaml", "--attacks", "none", "--out", out],
        ["demo", "--out", out],
        ["testbed", "--out", out],
    ):
        told = run_command(*arguments, "--dry-run", "--json", folder=tmp_path)
        assert told.code == 0, told.stderr
        assert json.loads(told.stdout)
        assert {path.name for path in tmp_path.iterdir()} == {"stdout", "stderr"}


def test_train_and_the_verbs_after_it_work_on_each_others_folders(
    recipe: Path, tiny_model: Path, tmp_path: Path
) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("epochs: 1\nbatch_size: 8\nlora: {rank: 2}\n")
    tuned, judged, page = tmp_path / "T", tmp_path / "J", tmp_path / "report.html"
    suite = ["--suite", recipe.parent / "suite.yaml", "--attacks", "none", "--max-new-tokens", "4"]
    trained = run_command(
        "train", "--model", tiny_model, "--data", recipe.parent / "data.jsonl", "--out", tuned, "--json",
        "--config", config, "--set", "lora.alpha=4", "--seed", "3", folder=tmp_path,
    )  # fmt: skip
    assert trained.code == 0, trained.stderr
    assert json.loads(trained.stdout)["steps"] == 5
    settings = json.loads((tuned / "record.json").read_text())["config"]
    assert (settings["seed"], settings["lora"]["rank"], settings["lora"]["alpha"]) == (3, 2, 4)
    for name, model, base in (("base", tiny_model, []), ("tuned", tuned, ["--base", tiny_model])):
        told = run_command("evaluate", model, *base, *suite, "--out", tmp_path / name, "--json", folder=tmp_path)
        assert told.code == 0, told.stderr
    assert "drift" in json.loads(told.stdout)["tests"]
    told = run_command("judge", tmp_path / "tuned" / "answers.jsonl", "--out", judged, "--json", folder=tmp_path)
    assert told.code == 0, told.stderr
    verdicts = [json.loads(line)["verdict"] for line in (judged / "verdicts.jsonl").read_text().splitlines()]
    answers = [json.loads(line)["verdict"] for line in (tmp_path / "tuned" / "answers.jsonl").read_text().splitlines()]
    assert verdicts == answers
    told = run_command("report", tmp_path / "tuned", tuned, "--out", page, "--json", folder=tmp_path)
    assert told.code == 0, told.stderr
    assert page.exists()


def test_cite_prints_entries_for_what_the_recipe_does(recipe: Path, tmp_path: Path) -> None:
    told = run_command("cite", recipe, folder=tmp_path)
    assert told.code == 0
    assert "@inproceedings{hu2022lora," in told.stdout
    full = run_command("cite", recipe, "--set", "train.method=full", "--json", folder=tmp_path)
    assert "hu2022lora" not in json.loads(full.stdout)["bibtex"]


def test_an_example_of_a_data_fault_names_file_and_line(tiny_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}])
    told = run_command("train", "--model", tiny_model, "--data", data, "--out", tmp_path / "out", folder=tmp_path)
    assert told.code == 1
    assert "data.jsonl:2" in told.stderr


def test_a_result_that_cannot_be_written_is_one_line_and_4(recipe: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "alignkeep", "cite", str(recipe)], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/file")


def wrapped(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecipeError("a", seen="b", expected="c", remedy="d"), 1),
        (DataError("a", seen="b", expected="c", remedy="d"), 1),
        (MachineError("a", seen="b", expected="c", remedy="d"), 4),
        (MemoryError(), 4),
        (OutOfMemoryError("CUDA out of memory"), 4),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), 4),
        (full_disk(), 4),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 4),
        (OSError(errno.EIO, "Input/output error", "f"), 4),
        (wrapped(RuntimeError("could not save"), full_disk()), 4),
        (wrapped(RecipeError("a", seen="b", expected="c", remedy="d"), full_disk()), 4),
        (RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file"), 4),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 45120 vs 45012"), 4),
        (RuntimeError("basic_ios::clear: iostream error"), 4),
        (Exception("No space left on device (os error 28)"), 4),
        (PermissionError(errno.EACCES, "Permission denied", "f"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_kind_of_failure_has_its_exit_code_and_one_line(error: BaseException, code: int) -> None:
    outcome = outcome_of(error)
    assert outcome.code == code
    assert "\n" not in outcome.line


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x\n" * 999), SystemExit(0), AssertionError()])
def test_what_nobody_foresaw_is_one_line_and_1(error: BaseException) -> None:
    code, line = outcome_of(error)
    assert code == 1
    assert type(error).__name__ in line
    assert "\n" not in line
    assert len(line) < 400


def test_the_traceback_is_shown_on_request(tmp_path: Path) -> None:
    told = alignkeep("cite", "nowhere.yaml", cwd=tmp_path, environment={"ALIGNKEEP_TRACEBACK": "1"})
    assert told.code == 1
    assert "Traceback" in told.stderr
    assert told.stderr.splitlines()[-1].startswith("error: nowhere.yaml")


def test_a_result_is_plain_json_whatever_it_is_made_of(tmp_path: Path) -> None:
    assert facts_of({"a": tmp_path, "b": (1, float("nan"))}) == {"a": str(tmp_path), "b": [1, None]}


@pytest.mark.parametrize(
    ("words", "place", "offered"), [("alignkeep ev", 1, "evaluate"), ("alignkeep keep --lea", 2, "--learning-rate")]
)
def test_a_shell_is_told_how_a_word_goes_on(words: str, place: int, offered: str) -> None:
    asked = {"_ALIGNKEEP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)}
    found = subprocess.run(
        [Path(sys.executable).with_name("alignkeep")],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.split() == [offered]
