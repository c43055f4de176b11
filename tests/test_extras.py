"""What an extra brings: read from the requirements, and asked for before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkeep import extras
from alignkeep.align.config import AlignConfig, RewardSettings
from alignkeep.align.stage import align
from alignkeep.align.stage import plan as plan_align
from alignkeep.doctor import examine
from alignkeep.errors import RecipeError
from alignkeep.extras import TRAIN, refuse_missing, wanted_of
from alignkeep.train.config import TrainConfig
from alignkeep.train.stage import plan as plan_train
from alignkeep.train.stage import train

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


@pytest.mark.parametrize("does", [train, plan_train, align, plan_align])
def test_without_the_extra_training_says_so_before_it_looks_for_a_model(
    does: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "_version", {}.get)
    given: dict[str, Any] = {"model": str(tmp_path / "none"), "data": str(tmp_path / "none.jsonl")}
    aligns = does in (align, plan_align)
    config = AlignConfig(**given, reward=RewardSettings(spec="rules:kinder")) if aligns else TrainConfig(**given)
    out = {} if does in (plan_train, plan_align) else {"out": tmp_path / "out"}
    with pytest.raises(RecipeError, match=r"pip install 'alignkeep\[train\]'"):
        does(config, **out)
    assert not (tmp_path / "out").exists()
