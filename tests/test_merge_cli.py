"""`alignkeep merge` and `verify` as people and scripts meet them: exit codes, one line a mistake, one JSON object."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints import World, edit_json, hashes, read_checkpoint, same_bits
from command import Finished, run_command

OPTIONS = """--method --weight --density --alignment-data --as --chat-template --mergekit --sweep --task --prompts
--pick --out --seed --overwrite --resume --fresh --device --dtype --revision --trust-remote-code --max-new-tokens
--batch-size --backend --json --quiet --config --set --dry-run""".split()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("cli"))


def one_line(told: Finished) -> str:
    assert told.stdout == ""
    assert told.stderr.count("\n") == 1, told.stderr
    return told.stderr


def test_the_help_names_every_promised_option(tmp_path: Path) -> None:
    words = run_command("merge", "--help", folder=tmp_path).stdout.split()
    assert [option for option in OPTIONS if option not in words] == []
    assert "DIR" in run_command("verify", "--help", folder=tmp_path).stdout


def test_a_merge_prints_one_json_object_and_can_be_verified(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = hashes(world.root)
    told = run_command("merge", world.base, world.tuned, "--weight", "0.3", "--json", "--out", out, folder=tmp_path)
    assert told.code == 0, told.stderr
    assert json.loads(told.stdout) == {
        "folder": str(out), "method": "linear", "weight": 0.3, "form": "model", "changed": 21, "equal": 0, "copied": 0,
        "notes": [],
    }  # fmt: skip
    assert told.stderr.startswith("tensors")
    proven = run_command("verify", out, "--json", folder=tmp_path)
    assert proven.code == 0, proven.stderr
    assert json.loads(proven.stdout)["made_again"] is True
    edit_json(out / "config.json", hidden_size=1)
    broken = run_command("verify", out, "--json", folder=tmp_path)
    assert broken.code == 1
    assert "config.json: found other bytes than were written" in one_line(broken)
    assert hashes(world.root) == before


def test_flags_config_and_settings_are_one(world: World, tmp_path: Path) -> None:
    file = tmp_path / "merge.yaml"
    file.write_text(f"base: {world.base}\ntuned: [{world.tuned}]\nmethod: dare\nweight: 1\noptions: {{rescale: l1}}\n")
    usual = ["--config", file, "--weight", "0.5", "--set", "options.density=0.8", "--seed", "3"]
    told = run_command("merge", *usual, "--out", tmp_path / "one", "--json", folder=tmp_path)
    assert told.code == 0, told.stderr
    spelt = ["--method", "dare", "--density", "0.8", "--weight", "0.5", "--set", "options.rescale=l1", "--seed", "3"]
    quiet = run_command("merge", world.base, world.tuned, *spelt, "--out", tmp_path / "two", "--quiet", folder=tmp_path)
    assert quiet == (0, "", "")
    assert same_bits(read_checkpoint(tmp_path / "one"), read_checkpoint(tmp_path / "two"))
    settings = json.loads((tmp_path / "two" / "record.json").read_text())["config"]
    assert (settings["method"], settings["options"]["density"], settings["seed"]) == ("dare", 0.8, 3)


def test_a_dry_run_prints_the_plan_and_touches_nothing(world: World, tmp_path: Path) -> None:
    told = run_command(
        "merge", world.base, world.tuned, "--dry-run", "--json", "--out", tmp_path / "o", folder=tmp_path
    )
    plan = json.loads(told.stdout)
    assert (plan["tensors"], plan["merged"], plan["weight"]) == (21, 21, 0.6)
    assert {path.name for path in tmp_path.iterdir()} == {"stdout", "stderr"}


def test_a_person_is_told_in_words_what_was_done(world: World, tmp_path: Path) -> None:
    told = run_command("merge", world.base, world.tuned, "--weight", "1", "--out", tmp_path / "out", folder=tmp_path)
    assert told.stdout.splitlines() == [
        "linear at weight 1: 21 tensors differ from the base's, 0 came out equal, 0 were copied",
        "weight 1: the tuned model itself, as asked",
        f"written: {tmp_path / 'out'}",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{base}", "{tuned}", "--weight", "1.5"], "weight: found 1.5, expected a number in [0, 1]"),
        (["{base}", "{base}"], "merge: found 21 merged tensors, all equal to the base's"),
        (["{base}"], "models: found no tuned model"),
        (["{base}", "{tuned}", "--density", "0.5"], "options.density: found a setting that linear does not use"),
        (["{base}", "{tuned}", "--method", "average"], "method (command line): found 'average'"),
        (["{base}", "{tuned}", "--as", "adapter"], "form: found adapter"),
        (["nowhere", "{tuned}"], "nowhere: found no such folder"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_leaves_with_1(
    arguments: list[str], said: str, world: World, tmp_path: Path
) -> None:
    given = [argument.format(base=world.base, tuned=world.tuned) for argument in arguments]
    told = run_command("merge", *given, "--json", "--quiet", "--out", tmp_path / "out", folder=tmp_path)
    assert told.code == 1
    assert said in one_line(told)
    assert {path.name for path in tmp_path.iterdir()} == {"stdout", "stderr"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["merge", "a", "b"],
        ["merge", "a", "b", "--out", "o", "--task", "t.jsonl"],
        ["merge", "--weight", "much"],
        ["verify"],
    ],
)
def test_a_command_that_cannot_be_read_leaves_with_2(arguments: list[str], tmp_path: Path) -> None:
    told = run_command(*arguments, folder=tmp_path)
    assert (told.code, told.stdout) == (2, "")
    assert "Error" in told.stderr


def test_a_folder_without_a_manifest_cannot_be_verified(world: World, tmp_path: Path) -> None:
    told = run_command("verify", world.base, folder=tmp_path)
    assert told.code == 1
    assert "manifest.json: found no readable manifest" in one_line(told)
