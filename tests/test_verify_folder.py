"""`verify` proves a merged folder: against its manifest, and by making it again from inputs that are still there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from alignkeep.checkpoint.manifest import Manifest
from alignkeep.errors import CheckpointError, DataError
from alignkeep.lifecycle import verify
from alignkeep.merge.config import MergeConfig
from alignkeep.merge.stage import merge
from checkpoints import World, bits, edit_json, hashes, noise, read_checkpoint, write_adapter

SHARD = "model-00002-of-00003.safetensors"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("verify"))


@pytest.fixture(scope="module")
def made(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge with three shards; read only."""
    return merge(world.config(base=world.sharded), out=tmp_path_factory.mktemp("made") / "out").folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(made, tmp_path / "out")


@pytest.mark.parametrize(
    "settings",
    [{}, {"method": "slerp"}, {"method": "ties"}, {"method": "dare", "seed": 7}, {"weight": 0}, {"weight": 1}],
)
def test_an_untouched_merge_is_proven_and_left_as_it_is(settings: dict[str, Any], world: World, tmp_path: Path) -> None:
    done = merge(world.config(**settings), out=tmp_path / "out")
    before = hashes(tmp_path)
    told = verify(done.folder)
    assert (told["inputs"], told["made_again"], told["files"]) == ("unchanged", True, "unchanged")
    assert (told["changed"], told["equal"], told["copied"]) == (done.changed, done.equal, done.copied)
    assert hashes(tmp_path) == before


def test_a_merge_is_proven_from_anywhere(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs that were given by relative paths are found again."""
    monkeypatch.chdir(world.root)
    merge(MergeConfig(base="base", tuned=("tuned",)), out=tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert verify(Path("out"))["made_again"]


def flipped(name: str, find: bytes | int) -> Callable[[Path], object]:
    """One bit of a file turned over: at a place, or behind some bytes."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[find if isinstance(find, int) else data.index(find) + len(find)] ^= 1
        (folder / name).write_bytes(data)

    return damage


def lost(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def added(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text("more")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a number": (flipped(SHARD, -1), rf"{SHARD}: tensor \S+: seen sha256"),
    "the kind of file": (flipped(SHARD, b'"format":"'), rf"{SHARD}: seen another header than was written"),
    "a type": (flipped(SHARD, b'"dtype":"'), SHARD),
    "a shard cut": (lambda out: os.truncate(out / SHARD, 3000), f"{SHARD}: seen the end of the file"),
    "a shard lost": (lost(SHARD), rf"{SHARD}: seen unreadable"),
    "a shard more": (added("model-00004-of-00004.safetensors"), "model-00004-of-00004.safetensors: seen a file that"),
    "the config": (flipped("config.json", 30), "config.json: seen other bytes than were written"),
    "the template": (flipped("chat_template.jinja", 3), "chat_template.jinja: seen other bytes than were written"),
    "the index": (flipped("model.safetensors.index.json", 5), "index.json: seen other bytes than were written"),
    "a file lost": (lost("tokenizer.json"), "tokenizer.json: seen no such file"),
    "a file more": (added("notes.txt"), "notes.txt: seen a file that the manifest does not know"),
    "a folder more": (lambda out: (out / "more").mkdir(), "more: seen a file that the manifest does not know"),
    "the manifest": (lambda out: edit_json(out / "manifest.json", notes=["proven"]), "manifest.json: seen other bytes"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_is_an_error_that_names_the_file(damage: str, folder: Path) -> None:
    spoil, message = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        verify(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lost("manifest.json"), r"manifest.json: seen no readable manifest \(FileNotFoundError\)"),
        (lambda out: (out / "manifest.json").write_text("{"), "manifest.json: seen no JSON object"),
        (
            lambda out: (out / "manifest.json").write_text("{}"),
            r"manifest.json: seen no readable manifest",
        ),
        (lost("record.json"), "record.json: seen no readable record"),
    ],
)
def test_a_folder_that_is_no_merge_is_an_error(spoil: Callable[[Path], object], message: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=message):
        verify(folder)


def test_without_its_inputs_a_merge_is_proven_by_its_hashes_alone(world: World, tmp_path: Path) -> None:
    tuned = shutil.copytree(world.tuned, tmp_path / "tuned")
    out = merge(world.config(tuned), out=tmp_path / "out").folder
    (tuned / "chat_template.jinja").write_text((world.base / "chat_template.jinja").read_text())
    save_file(read_checkpoint(world.other), tuned / "model.safetensors")
    told = verify(out)
    assert (told["inputs"], told["made_again"]) == ("changed since: tuned", False)
    shutil.rmtree(tuned)
    told = verify(out)
    assert (told["inputs"], told["made_again"]) == (f"not all there: {tuned}", False)
    flipped("model.safetensors", -1)(out)
    with pytest.raises(CheckpointError, match=r"model.safetensors: tensor \S+: seen sha256"):
        verify(out)


def forge(folder: Path, change: Callable[[dict[str, Any]], object] = lambda manifest: None) -> None:
    """Make manifest and record agree with what is in the folder now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    numbers = {name: hashlib.sha256(bytes(bits(tensor))) for name, tensor in read_checkpoint(folder).items()}
    for tensor in manifest["tensors"]:
        tensor["sha256"] = numbers[tensor["name"]].hexdigest()
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
    Manifest.read(folder).write(folder)  # headers
    record = json.loads((folder / "record.json").read_text())
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    edit_json(folder / "record.json", result={**record["result"], "manifest": digest})


def moved(folder: Path) -> None:
    flipped(SHARD, -1)(folder)


def dropped(folder: Path) -> None:
    """A tensor taken out of its shard."""
    from safetensors.torch import load_file

    tensors = load_file(folder / SHARD)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / SHARD, metadata={"format": "pt"})


def only_there(folder: Path) -> Callable[[dict[str, Any]], object]:
    there = read_checkpoint(folder)
    return lambda manifest: manifest.update(tensors=[one for one in manifest["tensors"] if one["name"] in there])


FORGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a number": (moved, rf"{SHARD}: tensor \S+: seen other numbers than the inputs and settings of the manifest give"),
    "a tensor less": (dropped, f"{SHARD}: seen other tensors, types or places than the inputs"),
    "the config": (flipped("config.json", 30), "config.json: seen other settings or words than the inputs"),
    "the template": (flipped("chat_template.jinja", 3), "chat_template.jinja: seen other settings or words than"),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_consistent_forgery_is_caught_by_making_the_merge_again(forgery: str, folder: Path) -> None:
    spoil, message = FORGED[forgery]
    spoil(folder)
    forge(folder, only_there(folder))
    with pytest.raises(CheckpointError, match=message):
        verify(folder)


def test_other_settings_than_those_that_were_used_are_caught(folder: Path) -> None:
    forge(folder)
    assert verify(folder)["made_again"], "the forger's tool alone changes nothing"
    forge(folder, lambda manifest: manifest["settings"].update(weight=0.61))
    with pytest.raises(CheckpointError, match="seen other numbers"):
        verify(folder)
    forge(folder, lambda manifest: manifest["settings"].update(method="average"))
    with pytest.raises(CheckpointError, match=r"manifest.json: settings.method: seen Input should be 'linear'"):
        verify(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest["tensors"][0].update(dtype="F16"), r"tensor \S+: seen BF16 \[.*expected F16 \["),
        (lambda manifest: manifest["tensors"][0].update(shape=[1]), r"tensor \S+: seen BF16 \[.*expected BF16 \[1\]"),
        (lambda manifest: manifest["tensors"].pop(), r"tensor \S+: seen a tensor that was not planned"),
    ],
)
def test_a_manifest_of_other_tensors_is_caught(
    change: Callable[[dict[str, Any]], object], message: str, folder: Path
) -> None:
    forge(folder, change)
    with pytest.raises(CheckpointError, match=message):
        verify(folder)


def test_the_weight_of_a_merge_as_an_adapter_is_proven_too(world: World, tmp_path: Path) -> None:
    """Its tensors are the tuned adapter's; the merge is the alpha in adapter_config.json."""
    factors = {"model.layers.0.self_attn.q_proj": (noise(2, 32), noise(32, 2))}
    adapter = write_adapter(tmp_path / "adapter", world.base, factors)
    done = merge(world.config(adapter, form="adapter", weight=0.5), out=tmp_path / "out")
    assert json.loads((done.folder / "adapter_config.json").read_text())["lora_alpha"] == 2
    assert verify(done.folder)["made_again"]
    edit_json(done.folder / "adapter_config.json", lora_alpha=4)
    forge(done.folder)
    with pytest.raises(CheckpointError, match=r"adapter_config.json: seen other settings or words than the inputs"):
        verify(done.folder)
