"""What keeps hostile input in bounds, part by part: foreign text, files that are none, YAML, templates, sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from alignkeep.bounded_yaml import read_yaml
from alignkeep.errors import LONGEST_MESSAGE, CheckpointError, RecipeError, plain
from alignkeep.input_files import first_repeated, kind_of, open_input, read_input, user_path
from alignkeep.models.folders import tensor_entries
from alignkeep.models.untrusted import check_size, check_template

ANYTHING = st.text(st.characters(exclude_categories=[]), max_size=3000)


@given(ANYTHING, st.integers(10, 500))
def test_foreign_text_is_one_printable_line_of_bounded_length(text: str, longest: int) -> None:
    shown = plain(text, longest)
    assert shown.isprintable()
    assert len(shown) <= longest
    assert plain(shown, longest) == shown


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    assert plain("a\x1b[31m\u202eb\n c\ud800") == "a\\x1b[31m\\u202eb c\\ud800"


@given(ANYTHING, ANYTHING, ANYTHING, ANYTHING)
def test_a_message_is_one_line_that_fits_and_keeps_its_parts(where: str, seen: str, expected: str, remedy: str) -> None:
    error = RecipeError(where, seen=seen, expected=expected, remedy=remedy)
    assert len(str(error)) <= LONGEST_MESSAGE
    assert str(error).isprintable()
    assert error.seen == seen


def test_the_longest_part_of_a_message_gives_way_and_the_others_stay() -> None:
    error = RecipeError("file.yaml:3", seen="x" * 10_000, expected="a number", remedy="correct the value")
    assert str(error).startswith("file.yaml:3: found xxx")
    assert str(error).endswith("xxx, expected a number; correct the value")


def test_pipes_and_folders_are_refused_unopened_and_files_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("pipe")
    for name, kind in (("pipe", "a named pipe"), ("link", "a named pipe"), (".", "a folder")):
        assert kind_of(tmp_path / name) == kind
        with pytest.raises(OSError, match=kind):
            open_input(tmp_path / name)
    with pytest.raises(OSError, match="NUL"):
        open_input(Path("a\0b"))
    assert read_input(tmp_path / "file", longest=3) == b"abc"
    assert kind_of(tmp_path / "file") is None
    assert kind_of(tmp_path / "nothing") is None
    with pytest.raises(OSError, match="at most 2"):
        read_input(tmp_path / "file", longest=2)


def test_a_home_that_nobody_has_is_a_name_like_any_other() -> None:
    assert user_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert user_path("~/x") == Path.home() / "x"


@given(st.lists(st.sampled_from("abcdef")))
def test_the_first_repeated_name_is_that_of_a_plain_loop(names: list[str]) -> None:
    slow = next((name for index, name in enumerate(names) if name in names[:index]), None)
    assert first_repeated(names) == slow


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists))
def test_what_is_in_bounds_is_read_as_pyyaml_wrote_it(value: object) -> None:
    """Which is not always what was written: a lone "\\x85" is written as a line break by PyYAML itself."""
    text = yaml.safe_dump(value, allow_unicode=True)
    assert read_yaml(text).value == yaml.safe_load(text)


def test_aliases_are_counted_as_often_as_they_stand_for_something() -> None:
    lines = ["- &a0 [x, x]", *(f"- &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 30))]
    assert len(str(read_yaml("\n".join(lines[:9])).value)) > 1000
    with pytest.raises(yaml.MarkedYAMLError, match="aliases written out"):
        read_yaml("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("&a [*a]", "an alias of what it stands in"),
        ("[" * 60, "more than 40 levels"),
        ("9" * 401, "a number of 401 characters"),
        ("!!timestamp 2024-01-01", "could not determine a constructor"),
        ("!!python/name:os.system", "could not determine a constructor"),
    ],
)
def test_what_is_no_plain_value_is_no_yaml(text: str, said: str) -> None:
    with pytest.raises(yaml.YAMLError, match=said):
        read_yaml(text)


def test_a_date_is_text_and_a_power_of_ten_a_number() -> None:
    assert read_yaml("[2024-01-01, 1e-4]").value == ["2024-01-01", 1e-4]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}", "more than 2 seconds"),
        ("{{ 'x' * 10**10 }}", "1 GiB of memory"),
        ("{{ 'x' * 3000000 }}", "more than 1000000 characters"),
    ],
)
def test_a_template_that_takes_too_much_is_refused_from_a_child(template: str, said: str, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = template
    with pytest.raises(CheckpointError, match=said):
        check_template(tokenizer, tiny_model)


def test_a_template_that_writes_chats_or_refuses_some_is_let_through(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    check_template(tokenizer, tiny_model)
    tokenizer.chat_template = "{{ raise_exception('no system') if messages[0].role == 'system' else 'text' }}"
    check_template(tokenizer, tiny_model)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 2**20}, "a model of"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000"),
        ({"hidden_size": 2**20, "quantization_config": {"quant_method": "bitsandbytes"}}, "a model of"),
    ],
)
def test_a_config_larger_than_its_weights_is_refused_before_it_is_built(
    changes: dict[str, object], said: str, tiny_model: Path, tmp_path: Path
) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    entries = tensor_entries(tiny_model, adapter=False)
    check_size(tiny_model, entries, trust_remote_code=False)
    with pytest.raises(CheckpointError, match=said):
        check_size(tmp_path, entries, trust_remote_code=False)


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.6])
def test_the_interrupt_key_ends_a_command_with_130_from_its_first_moment(seconds: float, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, threading\nfrom alignkeep.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.argv = ['alignkeep', 'demo', '--out', {str(tmp_path / 'out')!r}, '--quiet']\n"
        f"threading.Timer({seconds}, os.kill, (os.getpid(), signal.SIGINT)).start()\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "interrupted: state is kept, the same command continues\n"


def test_a_reader_of_the_help_that_leaves_early_is_no_failure(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "alignkeep", "--help"]
    help_ = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert help_.stdout is not None
    help_.stdout.close()
    _, stderr = help_.communicate()
    assert (help_.returncode, stderr) == (0, b"")
