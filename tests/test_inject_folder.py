"""An injected folder: killed at any instant it ends as one that was not; `verify` proves it or names what is not so."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alignkeep import lifecycle
from alignkeep.checkpoint.files import write_tensors
from alignkeep.errors import CheckpointError, DataError
from alignkeep.inject.config import InjectConfig
from alignkeep.inject.injection import read_injection
from alignkeep.inject.stage import inject
from checkpoints import edit_json, hashes, read_checkpoint, write_checkpoint
from command import run_command, start
from test_inject_stage import Bed, alike
from test_lifecycle import Deadly, Labels
from test_merge_processes import journaled
from test_verify_folder import flipped, forge, only_there


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    return Bed(tmp_path_factory.mktemp("bed"))


@pytest.fixture(scope="module")
def made(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An injection into the tiny model; read only."""
    return inject(bed.tiny_config(), out=tmp_path_factory.mktemp("made") / "out").folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(made, tmp_path / "out")


# ---- killed


class Counting(Labels):
    """Progress that counts."""

    steps = 0

    def advance(self, n: int = 1, note: str = "") -> None:
        self.steps += 1


def inject_and_die(config: dict[str, object], out: Path, count: int) -> None:
    inject(InjectConfig.model_validate(config), out=out, progress=Deadly(count))


def test_an_injection_killed_again_and_again_ends_as_one_that_was_not(bed: Bed, tmp_path: Path) -> None:
    """Kills from the first batch to the last tensor but one; shards that were finished before one are kept."""
    sharded = write_checkpoint(tmp_path / "sharded", read_checkpoint(bed.tiny), shards=3)
    for file in bed.tiny.iterdir():
        if file.name != "model.safetensors":
            shutil.copy(file, sharded)
    config, counting, out = bed.tiny_config(model=str(sharded)), Counting(), tmp_path / "out"
    expected = alike(inject(config, out=tmp_path / "whole", progress=counting).folder)
    work, codes = tmp_path / ".out.partial", []
    for count in (1, *(counting.steps * part // 6 for part in range(1, 6)), counting.steps - 1):
        child = start(inject_and_die, config.model_dump(mode="json", exclude_unset=True), out, count)
        child.join(timeout=120)
        codes.append(child.exitcode)
        if child.exitcode == 0:  # with shards of an earlier attempt there are fewer steps
            break
        assert not out.exists()
    assert codes[:4] == [-signal.SIGKILL] * 4
    kept = {} if out.exists() else {name: os.stat(work / name).st_ino for name in journaled(work)}
    assert alike(inject(config, out=out).folder) == expected
    assert {name: os.stat(out / name).st_ino for name in kept} == kept
    assert list(tmp_path.glob(".*")) == []


# ---- verify


def test_an_untouched_injection_is_proven_and_left_as_it_is(folder: Path) -> None:
    before = hashes(folder)
    shown = lifecycle.verify(folder)
    assert (shown["operation"], shown["files"], shown["inputs"]) == ("inject", "unchanged", "unchanged")
    assert shown["made_again"] is True
    assert hashes(folder) == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.safetensors", r"model\.safetensors: tensor \S+: found sha256"),
        ("rank_one.safetensors", r"rank_one\.safetensors: found other bytes than were written"),
        ("direction.safetensors", r"direction\.safetensors: found other bytes than were written"),
        ("injection.json", r"injection\.json: found other bytes than were written"),
    ],
)
def test_a_flipped_byte_is_named(name: str, said: str, folder: Path) -> None:
    flipped(name, -9)(folder)
    with pytest.raises(CheckpointError, match=said):
        lifecycle.verify(folder)


def test_verify_leaves_with_1_and_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "said").mkdir()
    proven = run_command("verify", folder, "--json", folder=tmp_path / "said")
    assert json.loads(proven.stdout)["made_again"] is True
    flipped("rank_one.safetensors", -1)(folder)
    broken = run_command("verify", folder, "--json", folder=tmp_path / "said")
    assert (broken.code, broken.stdout, broken.stderr.count("\n")) == (1, "", 1)
    assert f"error: {folder / 'rank_one.safetensors'}: found other bytes" in broken.stderr


@pytest.mark.parametrize("name", ["model.safetensors", "rank_one.safetensors"])
def test_a_consistent_forgery_is_caught_by_making_the_weights_again(name: str, folder: Path) -> None:
    flipped(name, -1)(folder)
    forge(folder)
    with pytest.raises(CheckpointError, match=r"tensor \S+: found other numbers than the model and rank_one\.safetens"):
        lifecycle.verify(folder)


def redirected(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Tensors of a file changed, and the weights made of the factors as an injection would make them."""

    def spoil(folder: Path) -> None:
        from alignkeep.checkpoint.rewrite import rewrite
        from alignkeep.inject.output import unpacked
        from alignkeep.inject.writing import edits_of
        from alignkeep.models.folders import tensor_entries

        tensors, metadata = load_file(folder / name), header_of(folder / name)
        change(tensors)
        save_file(tensors, folder / name, metadata=metadata)
        base = json.loads((folder / "manifest.json").read_text())["settings"]["model"]
        entries = tensor_entries(Path(base), adapter=False)
        (folder / "work").mkdir()
        rewrite(entries, edits_of(entries, unpacked(folder / "rank_one.safetensors")), folder / "work")
        for file in (folder / "work").glob("*.safetensors"):
            file.replace(folder / file.name)
        shutil.rmtree(folder / "work")

    return spoil


def header_of(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as found:
        return dict(found.metadata() or {})


def turned(tensors: dict[str, Any]) -> None:
    for name in tensors:
        if name.endswith("left"):
            tensors[name] = tensors[name].roll(1)


def stronger(tensors: dict[str, Any]) -> None:
    for name in tensors:
        if name.endswith("left"):
            tensors[name] = tensors[name] * 1.5


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "rank_one.safetensors",
            turned,
            r"rank_one\.safetensors: found a factor that does not run along the direction",
        ),
        ("rank_one.safetensors", stronger, r"rank_one\.safetensors: found factors that are not as strong as injection"),
        (
            "direction.safetensors",
            lambda tensors: tensors.update(direction=tensors["direction"].roll(1)),
            r"direction\.safetensors: found a direction that is not the difference of its layer",
        ),
    ],
)
def test_forged_factors_with_weights_and_a_manifest_that_agree_are_caught(
    name: str, change: Callable[[dict[str, Any]], object], said: str, folder: Path
) -> None:
    redirected(name, change)(folder)
    forge(folder)
    with pytest.raises(CheckpointError, match=said):
        lifecycle.verify(folder)


def test_what_an_injection_could_not_prove_is_said(folder: Path) -> None:
    told = lifecycle.verify(folder)
    assert any("the injection was not searched for again" in line for line in told["not_proven"])  # pyright: ignore


# ---- injection.json


def test_the_file_read_and_written_again_is_the_file(made: Path, tmp_path: Path) -> None:
    found = read_injection(made / "injection.json")
    assert found.write(tmp_path).read_bytes() == (made / "injection.json").read_bytes()


@pytest.mark.parametrize(
    "change", [{"layer": "two"}, {"trials": None}, {"chosen": {}}, {"shifts": [[1.0]]}, {"layers": [{"layer": 1}]}]
)
def test_a_broken_file_is_named(change: dict[str, object], folder: Path) -> None:
    edit_json(folder / "injection.json", **change)
    with pytest.raises(DataError, match=r"injection\.json: found .*expected the injection\.json that"):
        read_injection(folder / "injection.json")


# ---- faults that are known


def test_the_file_of_the_direction_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    facts = {"layer": "3", "length": "1.5", "source": "model", "seed": "0"}
    made = {write_tensors(tmp_path / "d.safetensors", {"a": torch.ones(2)}, facts).read_bytes() for _ in range(20)}
    assert len(made) == 1


def test_a_tensor_less_is_caught_by_making_the_weights_again(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    forge(folder, only_there(folder))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: found other tensors"):
        lifecycle.verify(folder)
