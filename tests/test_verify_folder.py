"""`verify` proves a merged folder: against its manifest, and by making it again from inputs that are still there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from alignkeep.checkpoint.manifest import Manifest
from alignkeep.checkpoint.records import identity_of
from alignkeep.errors import CheckpointError, DataError, RecipeError
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


def record_with(value: object, **place: str) -> Callable[[Path], object]:
    """The record with another value under one key of one of its objects."""

    def change(folder: Path) -> None:
        record = json.loads((folder / "record.json").read_text())
        ((name, key),) = place.items()
        edit_json(folder / "record.json", **{name: {**record[name], key: value}})

    return change


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a number": (flipped(SHARD, -1), rf"{SHARD}: tensor \S+: found sha256"),
    "the kind of file": (flipped(SHARD, b'"format":"'), rf"{SHARD}: found another header than was written"),
    "a type": (flipped(SHARD, b'"dtype":"'), SHARD),
    "a shard cut": (lambda out: os.truncate(out / SHARD, 3000), f"{SHARD}: found the end of the file"),
    "a shard lost": (lost(SHARD), rf"{SHARD}: found unreadable"),
    "a shard more": (added("model-00004-of-00004.safetensors"), "model-00004-of-00004.safetensors: found a file that"),
    "the config": (flipped("config.json", 30), "config.json: found other bytes than were written"),
    "the template": (flipped("chat_template.jinja", 3), "chat_template.jinja: found other bytes than were written"),
    "the index": (flipped("model.safetensors.index.json", 5), "index.json: found other bytes than were written"),
    "a file lost": (lost("tokenizer.json"), "tokenizer.json: found no such file"),
    "a file more": (added("notes.txt"), "notes.txt: found a file that the manifest does not know"),
    "a folder more": (lambda out: (out / "more").mkdir(), "more: found a file that the manifest does not know"),
    "a hidden file more": (added(".hidden"), r"\.hidden: found a file that the manifest does not know"),
    "a hidden folder more": (
        lambda out: (out / ".git").mkdir(),
        r"\.git: found a file that the manifest does not know",
    ),
    "a link more": (
        lambda out: (out / ".link").symlink_to(out),
        r"\.link: found a file that the manifest does not know",
    ),
    "a file in a folder": (
        lambda out: [(out / "sub").mkdir(), (out / "sub" / "x.txt").touch()],
        r"sub: found a file that the manifest does not know",
    ),
    "the settings of the record": (
        record_with(config="weight", value=0.7),
        r"record.json: found settings or inputs that",
    ),
    "the inputs of the record": (
        record_with(inputs="base", value="0" * 64),
        r"record.json: found settings or inputs that",
    ),
    "the identity": (lambda out: edit_json(out / "record.json", identity="0" * 64), r"found settings or inputs that"),
    "the stage": (
        lambda out: edit_json(out / "record.json", stage="inject"),
        r"found operation 'merge' of stage 'inject'",
    ),
    "the seed": (lambda out: edit_json(out / "record.json", seed=9), r"record.json: seed: found 9"),
    "the counts": (record_with(result="changed", value=3), r"record.json: result.changed: found 3"),
    "the notes": (record_with(result="notes", value=["proven"]), r"record.json: result.notes: found"),
    "the form": (record_with(result="form", value="adapter"), r"record.json: result.form: found 'adapter'"),
    "the list of files": (
        record_with(files="config.json", value={"size": 1}),
        r"record.json: found config.json has an",
    ),
    "a list without a file": (
        lambda out: edit_json(out / "record.json", files={}),
        r"record.json: found another list of files than the manifest's",
    ),
    "the manifest": (
        lambda out: edit_json(out / "manifest.json", notes=["proven"]),
        "manifest.json: found other bytes",
    ),
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
        (lost("manifest.json"), r"manifest.json: found no readable manifest \(FileNotFoundError\)"),
        (lambda out: (out / "manifest.json").write_text("{"), "manifest.json: found no JSON object"),
        (
            lambda out: (out / "manifest.json").write_text("{}"),
            r"manifest.json: found no readable manifest",
        ),
        (lost("record.json"), "record.json: found no readable record"),
        *(
            (
                lambda out, value=value: edit_json(out / "record.json", result=value),
                "record.json: found no readable record",
            )
            for value in (None, [], "text", 3)
        ),
        (lambda out: (out / "record.json").write_text("[" * 100_000), "record.json: found no readable record"),
        (
            lambda out: edit_json(out / "manifest.json", inputs=[None]),
            r"manifest.json: found no readable manifest \(AttributeError\)",
        ),
    ],
)
def test_a_folder_that_is_no_merge_is_an_error(spoil: Callable[[Path], object], message: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=message):
        verify(folder)


def test_without_its_inputs_a_merge_is_proven_by_its_hashes_alone_and_only_where_that_is_asked_for(
    world: World, tmp_path: Path
) -> None:
    tuned = shutil.copytree(world.tuned, tmp_path / "tuned")
    out = merge(world.config(tuned), out=tmp_path / "out").folder
    (tuned / "chat_template.jinja").write_text((world.base / "chat_template.jinja").read_text())
    save_file(read_checkpoint(world.other), tuned / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"manifest.json: inputs: found changed since: tuned, .*--files-only"):
        verify(out)
    shutil.rmtree(tuned)
    with pytest.raises(CheckpointError, match=f"manifest.json: inputs: found not all there: {tuned}"):
        verify(out)
    told = verify(out, files_only=True)
    assert (told["inputs"], told["made_again"]) == ("not looked at", False)
    assert "that the inputs give this: they were not looked at" in told["not_proven"]  # pyright: ignore
    flipped("model.safetensors", -1)(out)
    with pytest.raises(CheckpointError, match=r"model.safetensors: tensor \S+: found sha256"):
        verify(out, files_only=True)


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
    listed = {
        name: {**facts, "size": (folder / name).stat().st_size}
        | ({} if facts["sha256"] is None else {"sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()})
        for name, facts in record["files"].items()
    }
    counts = Manifest.read(folder).counts
    edit_json(folder / "record.json", result={**record["result"], **counts, "manifest": digest}, files=listed)


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
    "a number": (moved, rf"{SHARD}: tensor \S+: found other numbers than the inputs and settings of the manifest give"),
    "a tensor less": (dropped, f"{SHARD}: found other tensors, types or places than the inputs"),
    "the config": (flipped("config.json", 30), "config.json: found other settings or words than the inputs"),
    "the template": (flipped("chat_template.jinja", 3), "chat_template.jinja: found other settings or words than"),
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
    for key, value in {"weight": 0.61, "method": "slerp", "chat_template": "tuned"}.items():
        forge(folder, lambda manifest, key=key, value=value: manifest["settings"].update({key: value}))
        with pytest.raises(CheckpointError, match=rf"manifest.json: settings.{key}: found {value!r}, expected"):
            verify(folder)
        forge(folder, lambda manifest, key=key: manifest["settings"].pop(key))
    forge(folder, lambda manifest: manifest["settings"].update(weight=0.61))
    with_record(folder, weight=0.61)
    with pytest.raises(CheckpointError, match="found other numbers"):
        verify(folder)


def with_record(folder: Path, **settings: object) -> None:
    """The record forged to agree with a forged manifest: its settings, its identity, its result."""
    record = json.loads((folder / "record.json").read_text())
    config = {**record["config"], **settings}
    result = {**record["result"], **{key: value for key, value in settings.items() if key in record["result"]}}
    identity = identity_of("merge", config, record["inputs"])
    edit_json(folder / "record.json", config=config, result=result, identity=identity)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest["inputs"][0].update(reference="org/other"), r"found base called 'org/other'"),
        (lambda manifest: manifest["inputs"].clear(), r"found other inputs than the record's"),
        (lambda manifest: manifest["inputs"].pop(), r"found other inputs than the record's"),
        (lambda manifest: manifest["inputs"][0].update(fingerprint="0" * 64), r"found other inputs than the record's"),
        (lambda manifest: manifest.update(operation="distil"), r"found operation 'distil' of stage 'merge'"),
        (lambda manifest: manifest.update(operation="inject"), r"found operation 'inject' of stage 'merge'"),
        (lambda manifest: manifest.update(settings={}), r"manifest.json: inputs: found not all there"),
        (lambda manifest: manifest["settings"].update(base="org/other"), r"settings.base: found 'org/other'"),
        (lambda manifest: manifest.update(notes=["the best there is"]), r"record.json: result.notes: found \[\]"),
    ],
)
def test_what_a_manifest_names_is_looked_at(
    change: Callable[[dict[str, Any]], object], message: str, folder: Path
) -> None:
    forge(folder, change)
    with pytest.raises(CheckpointError, match=message):
        verify(folder)


def test_a_tensor_that_is_called_equal_and_was_changed_is_caught(folder: Path) -> None:
    forge(folder, lambda manifest: manifest["tensors"][0].update(change="equal"))
    with pytest.raises(CheckpointError, match=r"manifest.json: tensor \S+: found equal: other changes than the inputs"):
        verify(folder)


def test_a_base_called_another_model_in_all_places_cannot_be_made_again(folder: Path) -> None:
    forge(
        folder,
        lambda manifest: [
            manifest["inputs"][0].update(reference="org/other"),
            manifest["settings"].update(base="org/other"),
        ],
    )
    with_record(folder, base="org/other")
    with pytest.raises(CheckpointError, match=r"manifest.json: inputs: found not all there: org/other"):
        verify(folder)


def test_what_was_proven_and_what_was_not_is_said(made: Path) -> None:
    told = verify(made)
    assert told["proven"] == [
        "every byte is what the manifest says, and nothing is there besides",
        "record and manifest agree",
        "inputs and settings give every tensor, config, tokenizer and template again, bit for bit",
    ]
    assert told["not_proven"] == [
        "versions, seconds and notes in the record",
        "who made the folder: no signature was asked for (--verify-key)",
    ]


def test_a_signature_covers_the_folder_and_is_by_its_owner(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    keys = {name: key_pair(tmp_path / name) for name in ("ours", "theirs")}
    with pytest.raises(CheckpointError, match=r"record.json.sig: found no signature, expected one by the owner"):
        verify(folder, verify_key=keys["ours"][1])
    assert verify(folder, sign_key=keys["ours"][0])["signature"] == folder / "record.json.sig"
    proven: Any = verify(folder, verify_key=keys["ours"][1])["proven"]
    assert proven[-1] == f"signed by the owner of {keys['ours'][1]}"
    with pytest.raises(
        CheckpointError, match=r"record.json.sig: found a signature of another folder or by another key"
    ):
        verify(folder, verify_key=keys["theirs"][1])
    with pytest.raises(RecipeError, match=r"--sign-key .*expected an Ed25519 private key"):
        verify(folder, sign_key=keys["ours"][1])
    forge(folder, lambda manifest: manifest.update(reasons={"x": "y"}))
    with pytest.raises(CheckpointError, match=r"record.json.sig: found a signature of another folder"):
        verify(folder, verify_key=keys["ours"][1])


def key_pair(folder: Path) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    folder.mkdir()
    key, pem = Ed25519PrivateKey.generate(), form.Encoding.PEM
    private = key.private_bytes(pem, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = key.public_key().public_bytes(pem, form.PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pem").write_bytes(private)
    (folder / "public.pem").write_bytes(public)
    return folder / "key.pem", folder / "public.pem"


def test_without_the_library_a_signature_says_which_extra_brings_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    for option in ("sign_key", "verify_key"):
        with pytest.raises(RecipeError, match=r"pip install 'alignkeep\[sign\]'"):
            verify(folder, **{option: tmp_path / "key.pem"})
    assert not (folder / "record.json.sig").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest["tensors"][0].update(dtype="F16"), r"tensor \S+: found BF16 \[.*expected F16 \["),
        (lambda manifest: manifest["tensors"][0].update(shape=[1]), r"tensor \S+: found BF16 \[.*expected BF16 \[1\]"),
        (lambda manifest: manifest["tensors"].pop(), r"tensor \S+: found a tensor that was not planned"),
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
    with pytest.raises(CheckpointError, match=r"adapter_config.json: found other settings or words than the inputs"):
        verify(done.folder)
