"""`push`: what was proven is uploaded whole, once, and over nothing else; tried against a stand-in of the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from alignkeep.checkpoint.records import Record
from alignkeep.errors import CheckpointError, DataError, MachineError, RecipeError
from alignkeep.publishing import plan_push, push
from alignkeep.sharing import export
from golden.commands import run
from hub_stand_in import TOKEN, Hub, Repository
from test_report import Reader
from test_sharing import Bed

TO = "me/safer"
CALL = {"to": TO, "hub_base": "org/base"}


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    torch.manual_seed(0)
    return Bed(tmp_path_factory.mktemp("bed"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    found = Hub()
    monkeypatch.setenv("HF_ENDPOINT", found.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in speaks the older protocol
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    yield found
    found.close()


@pytest.fixture
def merged(bed: Bed, tmp_path: Path) -> Path:
    """A copy, that a test may change."""
    return shutil.copytree(bed.merged, tmp_path / "merged")


def test_a_merge_is_proven_exported_and_uploaded_into_a_private_repository(bed: Bed, hub: Hub) -> None:
    made = push(bed.merged, measured=bed.numbers[bed.merged], **CALL)
    repository = hub.repositories[TO]
    assert repository.private
    assert made.private is True
    assert made.proven[0].startswith("every byte is what the manifest says")
    assert any("inputs" in one or "again" in one for one in made.proven)
    assert set(made.uploaded) == {*repository.files} - {".gitattributes"}
    assert {"README.md", "report.html", "model.safetensors", "config.json", "audit/manifest.json"} <= {*made.uploaded}
    assert repository.files["model.safetensors"] == (bed.merged / "model.safetensors").read_bytes()
    assert not any(str(bed.root).encode() in data for data in repository.files.values())
    assert [path.name for path in bed.root.iterdir() if path.name.startswith(".")] == []  # the export is gone
    card = repository.files["README.md"].decode()
    assert "# safer" in card
    assert "base_model: org/base" in card


def test_the_page_that_goes_along_has_the_numbers_and_no_answer(bed: Bed, tmp_path: Path) -> None:
    made = export(bed.merged, out=tmp_path / "ready", measured=bed.numbers[bed.merged], hub_base="org/base")
    page = Reader(made.folder / "report.html")
    assert "ready" in page.text
    assert "90.0" in page.text
    assert "answers" not in {attributes.get("id") for _, attributes in page.tags}
    assert "script" not in {tag for tag, _ in page.tags}


def test_what_is_there_already_is_not_sent_again(bed: Bed, hub: Hub) -> None:
    push(bed.merged, **CALL)
    sent = len(hub.asked)
    again = push(bed.merged, **CALL)
    assert (again.uploaded, again.bytes, again.private) == ((), 0, None)
    assert {method for method, _ in hub.asked[sent:]} == {"GET"}
    assert len(hub.repositories[TO].commits) == 1


def test_an_export_is_uploaded_as_it_is_once_its_bytes_and_tensors_are_proven(
    bed: Bed,
    hub: Hub,
    tmp_path: Path,
) -> None:
    ready = export(bed.merged, out=tmp_path / "ready", hub_base="org/base").folder
    made = push(ready, to=TO, public=True)
    assert not hub.repositories[TO].private
    assert made.proven[1] == "every tensor is that of the manifest"
    for name in made.uploaded:
        assert hub.repositories[TO].files[name] == (ready / name).read_bytes()
    with pytest.raises(RecipeError, match="--license: found it beside"):
        push(ready, to=TO, license="mit")


def test_a_network_that_fails_half_way_leaves_nothing_behind_and_the_same_call_goes_on(
    bed: Bed,
    hub: Hub,
) -> None:
    hub.fault = lambda method, path: 503 if "/commit/" in path else None
    with pytest.raises(MachineError, match="the same command again"):
        push(bed.merged, **CALL)
    assert {*hub.repositories[TO].files} == {".gitattributes"}
    stored, before = len(hub.objects), len(hub.asked)
    assert stored == 1
    hub.fault = lambda method, path: None
    made = push(bed.merged, **CALL)
    assert "model.safetensors" in made.uploaded
    assert not [path for method, path in hub.asked[before:] if method == "PUT"]


def test_no_network_is_the_machine_s_fault(bed: Bed, hub: Hub) -> None:
    hub.close()
    with pytest.raises(MachineError, match="a network that failed"):
        push(bed.merged, **CALL)


def test_another_model_is_replaced_only_when_that_is_said_and_then_whole(bed: Bed, hub: Hub) -> None:
    hub.repositories[TO] = Repository(False, {".gitattributes": b"*", "old.safetensors": b"old", "README.md": b"mine"})
    with pytest.raises(RecipeError, match=r"2 files that are not these \(README\.md\).*--overwrite"):
        push(bed.merged, **CALL)
    assert hub.repositories[TO].files["README.md"] == b"mine"
    made = push(bed.merged, **CALL, overwrite=True)
    assert (made.removed, made.private) == (("old.safetensors",), None)
    assert "old.safetensors" not in hub.repositories[TO].files
    assert hub.repositories[TO].files["README.md"] != b"mine"
    assert not hub.repositories[TO].private


def test_a_model_that_was_changed_is_not_uploaded(merged: Path, hub: Hub) -> None:
    (merged / "config.json").write_text((merged / "config.json").read_text() + " ")
    with pytest.raises(CheckpointError, match="other bytes than were written"):
        push(merged, **CALL)
    with pytest.raises(CheckpointError, match="other bytes than were written"):
        push(merged, **CALL, unverified=True)
    assert hub.asked == []


def test_an_export_that_was_changed_is_not_uploaded(bed: Bed, hub: Hub, tmp_path: Path) -> None:
    ready = export(bed.merged, out=tmp_path / "ready").folder
    (ready / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes\.txt, which `export` did not write"):
        push(ready, to=TO)
    (ready / "notes.txt").unlink()
    # What this package wrote is not yet what `export` wrote: a page of ours, and an evaluation with its answers.
    (ready / "report.html").write_text('<meta name="generator" content="alignkeep">')
    with pytest.raises(CheckpointError, match=r"report\.html, which `export` did not write"):
        push(ready, to=TO)
    (ready / "report.html").unlink()
    shutil.copytree(bed.numbers[bed.merged], ready / "measured")
    with pytest.raises(CheckpointError, match=r"measured/\S+, which `export` did not write"):
        push(ready, to=TO)
    shutil.rmtree(ready / "measured")
    (ready / "README.md").write_text("mine")
    with pytest.raises(CheckpointError, match=r"README\.md has another size"):
        push(ready, to=TO)
    assert hub.asked == []


def test_a_model_without_a_manifest_is_called_what_it_is_and_goes_when_that_is_said(bed: Bed, hub: Hub) -> None:
    with pytest.raises(RecipeError, match=r"a model of another tool.*--unverified"):
        push(bed.adapter, **CALL)
    assert hub.asked == []
    made = push(bed.adapter, **CALL, unverified=True)
    assert made.proven == ()
    assert "adapter_model.safetensors" in made.uploaded


def test_of_a_repair_the_kept_model_is_proven_and_uploaded(bed: Bed, hub: Hub, tmp_path: Path) -> None:
    shutil.copytree(bed.merged, tmp_path / "fixed" / "merged" / "merge")
    shutil.copytree(bed.numbers[bed.merged], tmp_path / "fixed" / "merged" / "evaluate")
    told = {"model": "merged/merge", "scorecard": "merged/evaluate"}
    Record("fix", "0" * 64, {}, {}, 0, 1.0, dict(told)).write(tmp_path / "fixed")
    made = push(tmp_path / "fixed", **CALL)
    assert {"report.html", "audit/scorecard.json", "model.safetensors"} <= {*made.uploaded}


@pytest.mark.parametrize("to", ["", "safer", "me/../x", "me/a--b", "me/safer/more", "me/ safer", "https://x/y"])
def test_an_id_that_is_none_is_refused_before_anything_is_looked_at(to: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--to: found .*OWNER/NAME"):
        push(tmp_path / "nowhere", to=to)


def test_no_token_and_a_token_that_may_not_write_are_one_line_each_without_it(
    bed: Bed,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.fault = lambda method, path: 403 if path == "/api/repos/create" else None
    with pytest.raises(RecipeError, match=r"HTTP 403.*token that may write") as raised:
        push(bed.merged, **CALL)
    assert TOKEN not in str(raised.value)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(RecipeError, match=r"token of the Hub: found none.*hf auth login"):
        push(bed.merged, **CALL)


def test_offline_is_said(bed: Bed, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match="HF_HUB_OFFLINE: found it set"):
        push(bed.merged, **CALL)


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises((CheckpointError, DataError)):
            push(place, **CALL)
    assert hub.asked == []


def test_the_plan_names_every_file_that_is_uploaded_and_asks_no_network(bed: Bed, hub: Hub, tmp_path: Path) -> None:
    ready = export(bed.merged, out=tmp_path / "ready", hub_base="org/base").folder
    measured = {"measured": bed.numbers[bed.merged]}
    for folder, call, more in ((bed.merged, CALL, measured), (bed.merged, CALL, {}), (ready, {"to": TO}, {})):
        hub.asked.clear()
        hub.repositories.clear()
        plan = plan_push(folder, to=TO, **more)
        assert hub.asked == []
        sizes = dict(plan["files"])  # type: ignore[call-overload]
        made = push(folder, **call, **more)
        assert set(sizes) == set(made.uploaded)
        known = {name: size for name, size in sizes.items() if size is not None and name != "tokenizer_config.json"}
        assert known == {name: len(hub.repositories[TO].files[name]) for name in known}


def test_the_command_line_plans_pushes_and_says_what_is_there(bed: Bed, hub: Hub) -> None:
    words = ["push", str(bed.merged), "--to", TO, "--hub-base", "org/base", "--json", "--quiet"]
    code, text = run([*words, "--dry-run"])
    assert (code, json.loads(text)["new_repository"]) == (0, "private")
    assert hub.repositories == {}
    code, text = run(words)
    assert (code, json.loads(text)["url"]) == (0, f"{hub.url}/{TO}")
    code, text = run([*words[:3], "nothing"])
    assert code == 1
