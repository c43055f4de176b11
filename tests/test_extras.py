"""What an extra brings: read from the requirements, and asked for before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkeep.doctor import examine
from alignkeep.errors import RecipeError
from alignkeep.extras import TRAIN, refuse_missing, wanted, wanted_of
from command import run_command

LINES = (
    "torch>=2.6",
    "peft<0.22,>=0.18",
    'tomli>=2; python_version < "3"',
    'trl<1.17,>=1.15; extra == "train"',
    'datasets>=4; extra == "train"',
    'vllm>=0.10; extra == "vllm"',
)
HERE = {"torch": "2.13.0+cpu", "peft": "0.17.1", "trl": "1.9.0"}


def test_an_extra_brings_its_own_and_what_always_comes_is_apart() -> None:
    """A marker of this Python decides as pip would; a later build of the same version fits."""
    assert [(one.name, one.found, one.fits) for one in wanted_of(LINES, "", HERE.get)] == [
        ("torch", "2.13.0+cpu", True),
        ("peft", "0.17.1", False),
    ]
    assert [(one.name, one.found, one.fits) for one in wanted_of(LINES, TRAIN, HERE.get)] == [
        ("trl", "1.9.0", False),
        ("datasets", None, False),
    ]
    assert wanted_of(LINES, "sign", HERE.get) == ()


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ({"datasets": "5.2.0"}, "train: found no trl installed, expected trl <1.17,>=1.15; "),
        ({"datasets": "5.2.0", "trl": "1.9.0"}, "train: found trl 1.9.0, expected trl <1.17,>=1.15; "),
        ({"trl": "1.16.0"}, "train: found no datasets installed, expected datasets >=4; "),
    ],
)
def test_what_is_missing_or_of_another_version_is_one_line_that_names_the_extra(
    here: dict[str, str], said: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        refuse_missing(wanted_of(LINES, TRAIN, here.get), TRAIN, "train")
    assert str(raised.value) == said + "pip install 'alignkeep[train]'"


def test_what_fits_is_not_refused() -> None:
    refuse_missing(wanted_of(LINES, TRAIN, {"trl": "1.16.0", "datasets": "5.2.0"}.get), TRAIN, "train")


def test_the_doctor_says_whether_each_version_is_within_its_range(tmp_path: Path) -> None:
    ranges = examine(tmp_path, reach=lambda host, port: None)["ranges"]
    assert isinstance(ranges, dict)
    assert all(" within " in one or "not within " in one for one in ranges.values())


@pytest.mark.skipif(all(one.fits for one in wanted(TRAIN)), reason="the extra is installed: see `make compatibility`")
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize("verb", ["train", "align"])
def test_without_the_extra_training_says_so_before_it_looks_for_a_model(
    verb: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    reward = ("--reward", "rules:kinder") if verb == "align" else ()
    given = ("--model", tmp_path / "none", "--data", tmp_path / "none.jsonl", *reward, "--out", tmp_path / "out")
    done = run_command(verb, *given, *more, folder=tmp_path)
    assert (done.code, done.stderr.count("\n")) == (1, 1)
    assert "pip install 'alignkeep[train]'" in done.stderr
    assert not (tmp_path / "out").exists()
