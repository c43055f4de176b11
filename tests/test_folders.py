"""Output folders: whole or not at all, whoever kills us and whenever."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkeep.checkpoint.files import machine_errors, sweep
from alignkeep.checkpoint.folders import OutputFolder, append_jsonl, claim_folder, read_jsonl, write_json, write_text
from alignkeep.checkpoint.records import Record, identity_of, versions
from alignkeep.errors import DataError, MachineError, RecipeError
from checkpoints import edit_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def a_record(identity: str, stage: str = "stage") -> Record:
    return Record(stage=stage, identity=identity, config={}, inputs={}, seed=0, seconds=0.5, result={"n": 1})


def make(out: Path, identity: str, content: str, **options: bool) -> OutputFolder:
    folder = OutputFolder.open(out, stage="stage", identity=identity, **options)
    with closing(folder):
        if not folder.finished:
            write_text(folder.work / "file.txt", content)
            folder.finish(a_record(identity))
    return folder


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_nothing_stands_under_the_final_name_before_the_end(tmp_path: Path) -> None:
    folder = OutputFolder.open(tmp_path / "out", stage="stage", identity="a")
    write_text(folder.work / "file.txt", "half")
    assert not (tmp_path / "out").exists()
    folder.finish(a_record("a"))
    assert everything_in(tmp_path) == ["out", "out/file.txt", "out/record.json"]


def test_the_same_run_finds_itself_finished_and_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path / "out", "a", "first")
    assert make(tmp_path / "out", "a", "second").finished
    assert (tmp_path / "out" / "file.txt").read_text() == "first"
    assert make(tmp_path / "out", "a", "second", overwrite=True).finished
    assert (tmp_path / "out" / "file.txt").read_text() == "first"


def test_fresh_does_finished_work_again(tmp_path: Path) -> None:
    make(tmp_path / "out", "a", "first")
    make(tmp_path / "out", "a", "second", resume=False)
    assert (tmp_path / "out" / "file.txt").read_text() == "second"
    assert everything_in(tmp_path) == ["out", "out/file.txt", "out/record.json"]


def test_another_runs_folder_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    make(tmp_path / "out", "a", "first")
    with pytest.raises(RecipeError, match=r"another run.*--overwrite"):
        OutputFolder.open(tmp_path / "out", stage="stage", identity="b")
    assert (tmp_path / "out" / "file.txt").read_text() == "first"


def test_overwrite_keeps_the_old_result_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, "a", "first")
    folder = OutputFolder.open(out, stage="stage", identity="b", overwrite=True)
    write_text(folder.work / "file.txt", "second")
    assert (out / "file.txt").read_text() == "first"
    folder.finish(a_record("b"))
    assert (out / "file.txt").read_text() == "second"
    assert everything_in(tmp_path) == ["out", "out/file.txt", "out/record.json"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_the_users_own_are_never_deleted(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="choose another --out"):
        OutputFolder.open(tmp_path / "out", stage="stage", identity="a", overwrite=overwrite)
    with pytest.raises(RecipeError, match="choose another --out"):
        claim_folder(tmp_path / "out", stage="run", identity="a", overwrite=overwrite)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_a_foreign_record_does_not_make_a_folder_ours(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "record.json").write_text('{"artist": "Can"}')
    with pytest.raises(RecipeError, match="did not write"):
        OutputFolder.open(tmp_path / "out", stage="stage", identity="a", overwrite=True)


def test_an_empty_folder_may_be_used_and_a_file_may_not(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    make(tmp_path / "out", "a", "first")
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecipeError, match="found a file"):
        OutputFolder.open(tmp_path / "file", stage="stage", identity="a")


@pytest.mark.parametrize("out", ["model", "model/out", "."])
def test_an_output_that_touches_an_input_is_refused(tmp_path: Path, out: str) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(RecipeError, match="inputs are never written to"):
        OutputFolder.open(tmp_path / out, stage="stage", identity="a", inputs=[tmp_path / "model"])


def test_interrupted_work_is_continued_by_the_same_run_only(tmp_path: Path) -> None:
    folder = OutputFolder.open(tmp_path / "out", stage="stage", identity="a")
    write_text(folder.work / "file.txt", "half")
    folder.close()
    again = OutputFolder.open(tmp_path / "out", stage="stage", identity="a")
    assert again.resumed
    assert (again.work / "file.txt").read_text() == "half"
    again.close()
    other = OutputFolder.open(tmp_path / "out", stage="stage", identity="b")
    assert not other.resumed
    assert not (other.work / "file.txt").exists()
    write_text(other.work / "file.txt", "half")
    other.close()
    assert not OutputFolder.open(tmp_path / "out", stage="stage", identity="b", resume=False).resumed


def test_a_partial_folder_in_which_nothing_was_made_goes_and_one_with_work_stays(tmp_path: Path) -> None:
    folder = OutputFolder.open(tmp_path / "out", stage="stage", identity="a")
    folder.close()
    assert list(tmp_path.iterdir()) == []
    folder = OutputFolder.open(tmp_path / "out", stage="stage", identity="a")
    (folder.work / "half").touch()
    folder.close()
    assert (folder.work / "half").exists()


def test_two_commands_on_one_folder_at_once_are_refused(tmp_path: Path) -> None:
    folder = OutputFolder.open(tmp_path / "out", stage="stage", identity="a")
    with pytest.raises(RecipeError, match="another alignkeep command"):
        OutputFolder.open(tmp_path / "out", stage="stage", identity="a")
    folder.close()
    OutputFolder.open(tmp_path / "out", stage="stage", identity="a").close()


def _finish_and_die(out: Path, call: str, count: int) -> None:
    """Overwrite `out` in a child that is killed at the `count`-th `call` of the finish."""
    real, left = getattr(os, call), count

    def deadly(*arguments: object, **options: object) -> object:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    folder = OutputFolder.open(out, stage="stage", identity="b", overwrite=True)
    write_text(folder.work / "file.txt", "new")
    setattr(os, call, deadly)
    folder.finish(a_record("b"))


@pytest.mark.parametrize("call", ["rename", "replace", "fsync", "unlink", "rmdir"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_kill_anywhere_in_the_finish_leaves_the_old_or_the_new_and_the_same_command_ends_well(
    tmp_path: Path, call: str, count: int
) -> None:
    out = tmp_path / "out"
    make(out, "a", "old")
    child = multiprocessing.get_context("fork").Process(target=_finish_and_die, args=(out, call, count))
    child.start()
    child.join()
    if out.exists():
        record = Record.read(out)
        assert (out / "file.txt").read_text() == {"a": "old", "b": "new"}[record.identity]
    make(out, "b", "new", overwrite=True)
    assert (out / "file.txt").read_text() == "new"
    assert everything_in(tmp_path) == ["out", "out/file.txt", "out/record.json"]


def cut_off_between_its_renames(out: Path, **changes: object) -> Path:
    """A replacement of run a by run b, killed between its renames; returns the partial folder."""
    make(out, "a", "old")
    folder = OutputFolder.open(out, stage="stage", identity="b", overwrite=True)
    work = folder.work
    write_text(work / "file.txt", "new")
    folder.close()
    a_record("b").write(work)
    listed = {"file.txt": {"size": 3, "sha256": hashlib.sha256(b"new").hexdigest()}} | changes
    edit_json(work / "record.json", files=listed)
    out.rename(out.with_name(".out.old-a"))
    return work


def test_a_finish_cut_off_between_its_renames_is_completed_by_the_same_command(tmp_path: Path) -> None:
    cut_off_between_its_renames(tmp_path / "out")
    assert OutputFolder.open(tmp_path / "out", stage="stage", identity="b").finished
    assert everything_in(tmp_path) == ["out", "out/file.txt", "out/record.json"]
    assert (tmp_path / "out" / "file.txt").read_text() == "new"


def test_a_finish_cut_off_between_its_renames_is_taken_back_by_another_command(tmp_path: Path) -> None:
    cut_off_between_its_renames(tmp_path / "out")
    with pytest.raises(RecipeError, match="another run"):
        OutputFolder.open(tmp_path / "out", stage="stage", identity="c")
    assert (tmp_path / "out" / "file.txt").read_text() == "old"


def test_a_finished_partial_folder_does_not_replace_what_another_run_has_put_there_since(tmp_path: Path) -> None:
    cut_off_between_its_renames(tmp_path / "out").rename(tmp_path / "kept")
    make(tmp_path / "out", "c", "other", overwrite=True)
    (tmp_path / "kept").rename(tmp_path / ".out.partial")
    before = everything_in(tmp_path)
    with pytest.raises(RecipeError, match="another run"):
        OutputFolder.open(tmp_path / "out", stage="stage", identity="b")
    assert everything_in(tmp_path) == before
    assert (tmp_path / "out" / "file.txt").read_text() == "other"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda work: (work / "file.txt").write_text("nEw"),
        lambda work: (work / "file.txt").write_text("newer"),
        lambda work: (work / "file.txt").unlink(),
        lambda work: edit_json(work / "record.json", files=None),
        lambda work: edit_json(work / "record.json", identity="a"),
        lambda work: (work / ".alignkeep.json").unlink(),
    ],
)
def test_a_partial_folder_made_to_look_finished_is_not_taken(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    work = cut_off_between_its_renames(tmp_path / "out")
    spoil(work)
    folder = OutputFolder.open(tmp_path / "out", stage="stage", identity="b", overwrite=True)
    assert not folder.finished
    assert (tmp_path / "out" / "file.txt").read_text() == "old"
    write_text(folder.work / "file.txt", "new")
    folder.finish(a_record("b"))
    assert everything_in(tmp_path / "out") == ["file.txt", "record.json"]


def test_a_partial_folder_that_got_the_final_name_is_not_taken_for_finished(tmp_path: Path) -> None:
    folder = OutputFolder.open(tmp_path / "out", stage="stage", identity="a")
    write_text(folder.work / "file.txt", "half")
    folder.close()
    folder.work.rename(tmp_path / "out")
    with pytest.raises(RecipeError, match=r"out/file\.txt, which alignkeep did not write"):
        OutputFolder.open(tmp_path / "out", stage="stage", identity="a", overwrite=True)


def test_what_only_the_work_needed_is_not_in_the_result_nor_in_its_list(tmp_path: Path) -> None:
    folder = OutputFolder.open(tmp_path / "out", stage="stage", identity="a")
    for name in ("file.txt", "journal", ".file.txt.sha256", "sub/.x.4711.tmp", "sub/more.txt"):
        (folder.work / name).parent.mkdir(exist_ok=True)
        (folder.work / name).write_text(name)
    folder.finish(a_record("a"), leftovers=["journal"])
    assert everything_in(tmp_path / "out") == ["file.txt", "record.json", "sub", "sub/more.txt"]
    facts = {"size": 12, "sha256": hashlib.sha256(b"sub/more.txt").hexdigest()}
    assert Record.read(tmp_path / "out").files["sub/more.txt"] == facts


PARTIAL_NAMES = (".out.partial", ".out.old", ".out.old-a", ".out.partial-b")


def users_own(place: Path, kind: str, elsewhere: Path) -> None:
    """Something of the user's at a place: a folder, a file, an empty link, a link to a folder of his."""
    if kind == "file":
        place.write_text("mine")
    elif kind == "dangling link":
        place.symlink_to(elsewhere / "nowhere")
    else:
        (folder := place if kind == "folder" else elsewhere).mkdir(exist_ok=True)
        (folder / "thesis.txt").write_text("mine")
        if kind == "link":
            place.symlink_to(elsewhere)
        elif kind == "folder with a strange claim":
            place.mkdir()
            (place / ".alignkeep.json").write_text('{"artist": "Can"}')


def test_where_both_names_for_the_work_are_the_users_nothing_is_begun(tmp_path: Path) -> None:
    for name in (".out.partial", ".out.partial-b"):
        users_own(tmp_path / name, "folder", tmp_path)
    before = everything_in(tmp_path)
    with pytest.raises(RecipeError, match=r"\.out\.partial-b beside it, which alignkeep did not write"):
        OutputFolder.open(tmp_path / "out", stage="stage", identity="b")
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("kind", ["folder", "file", "link", "dangling link", "folder with a strange claim"])
@pytest.mark.parametrize("name", PARTIAL_NAMES)
def test_what_the_user_has_under_a_name_of_ours_stays_as_it_is(name: str, kind: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    make(root / "out", "a", "old")
    users_own(root / name, kind, tmp_path / "elsewhere")
    before = [everything_in(tmp_path / "elsewhere"), everything_in(root / name), (root / name).lstat().st_mtime_ns]
    with pytest.raises(RecipeError, match="another run"):
        OutputFolder.open(root / "out", stage="stage", identity="c")
    taken = nullcontext() if name != ".out.old-a" else pytest.raises(RecipeError, match=r"old-a.*did not write")
    with taken:
        make(root / "out", "b", "new", overwrite=True)
        assert (root / "out" / "file.txt").read_text() == "new"
    shutil.rmtree(root / "out")
    assert not OutputFolder.open(root / "out", stage="stage", identity="c").finished
    after = [everything_in(tmp_path / "elsewhere"), everything_in(root / name), (root / name).lstat().st_mtime_ns]
    assert after == before
    if kind in ("folder", "link"):
        assert (root / name / "thesis.txt").read_text() == "mine"


def test_beside_a_partial_folder_of_the_users_work_is_continued_after_a_kill(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    users_own(tmp_path / ".out.partial", "folder", tmp_path)
    folder = OutputFolder.open(tmp_path / "out", stage="stage", identity="b" * 64)
    assert folder.work.name == ".out.partial-bbbbbbbbbbbb"
    assert ".out.partial is not this tool's and stays as it is" in caplog.text
    write_text(folder.work / "file.txt", "half")
    folder.close()
    again = OutputFolder.open(tmp_path / "out", stage="stage", identity="b" * 64)
    assert again.resumed
    again.finish(a_record("b" * 64))
    assert everything_in(tmp_path) == [
        ".out.partial",
        ".out.partial/thesis.txt",
        *(["out", "out/file.txt"]),
        "out/record.json",
    ]


def test_a_partial_folder_with_a_link_in_it_is_begun_anew_and_the_link_not_followed(tmp_path: Path) -> None:
    users_own(tmp_path / "own", "folder", tmp_path)
    folder = OutputFolder.open(tmp_path / "out", stage="stage", identity="a")
    (folder.work / "trainer").symlink_to(tmp_path / "own")
    folder.close()
    again = OutputFolder.open(tmp_path / "out", stage="stage", identity="a")
    assert not again.resumed
    assert not (again.work / "trainer").is_symlink()
    assert (tmp_path / "own" / "thesis.txt").read_text() == "mine"


def test_a_link_to_a_partial_folder_of_ours_is_not_followed(tmp_path: Path) -> None:
    other = OutputFolder.open(tmp_path / "elsewhere" / "out", stage="stage", identity="b")
    write_text(other.work / "file.txt", "half")
    other.close()
    (tmp_path / ".out.partial").symlink_to(other.work)
    make(tmp_path / "out", "b", "new")
    assert not (tmp_path / "out").is_symlink()
    assert (other.work / "file.txt").read_text() == "half"


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "sub/notes.txt", "empty/", "report.html", "link"])
def test_a_result_into_which_the_user_put_something_is_not_replaced(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, "a", "old")
    if name == "link":
        (out / name).symlink_to(tmp_path)
    else:
        (out / name).mkdir() if name.endswith("/") else (out / name).parent.mkdir(exist_ok=True)
        _ = name.endswith("/") or (out / name).write_text("mine")
    before = everything_in(tmp_path)
    first = name.split("/")[0]
    with pytest.raises(RecipeError, match=rf"found \S+/{first}\S*, which alignkeep did not write"):
        make(out, "b", "new", overwrite=True)
    with pytest.raises(RecipeError, match="move it away"):
        make(out, "a", "new", resume=False)
    assert everything_in(tmp_path) == before
    assert make(out, "a", "new").finished


def test_a_page_of_our_own_in_a_result_does_not_keep_it_from_being_replaced(tmp_path: Path) -> None:
    make(tmp_path / "out", "a", "old")
    (tmp_path / "out" / "report.html").write_text('<meta name="generator" content="alignkeep">')
    make(tmp_path / "out", "b", "new", overwrite=True)
    assert everything_in(tmp_path) == ["out", "out/file.txt", "out/record.json"]


def test_what_the_user_puts_into_the_folder_while_the_work_goes_on_is_kept_too(tmp_path: Path) -> None:
    make(tmp_path / "out", "a", "old")
    folder = OutputFolder.open(tmp_path / "out", stage="stage", identity="b", overwrite=True)
    write_text(folder.work / "file.txt", "new")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(RecipeError, match=r"notes\.txt, which alignkeep did not write"):
        folder.finish(a_record("b"))
    folder.close()
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "out" / "notes.txt").unlink()
    assert make(tmp_path / "out", "b", "not made", overwrite=True).finished
    assert (tmp_path / "out" / "file.txt").read_text() == "new"


def test_overwriting_a_run_of_several_stages_keeps_what_the_user_put_between_them(tmp_path: Path) -> None:
    out = claim_folder(tmp_path / "run", stage="demo", identity="a", writes=["poisoned/prompts.jsonl"])
    make(out / "poisoned" / "train", "t", "old")
    (out / "poisoned" / "prompts.jsonl").write_text("{}")
    OutputFolder.open(out / "killed", stage="stage", identity="k").close()
    work = OutputFolder.open(out / "killed", stage="stage", identity="k").work
    (work / "half").touch()
    (out / "poisoned" / "train" / "notes.txt").write_text("mine")
    before = everything_in(tmp_path)
    with pytest.raises(RecipeError, match=r"train/notes\.txt, which alignkeep did not write"):
        claim_folder(out, stage="demo", identity="b", overwrite=True)
    assert everything_in(tmp_path) == before
    (out / "poisoned" / "train" / "notes.txt").unlink()
    claim_folder(out, stage="demo", identity="b", overwrite=True)
    assert everything_in(out) == [".alignkeep.json"]


def test_a_claimed_folder_belongs_to_its_run_and_keeps_what_is_in_it(tmp_path: Path) -> None:
    out = claim_folder(tmp_path / "run", stage="run", identity="a")
    (out / "train").mkdir()
    claim_folder(out, stage="run", identity="a")
    assert (out / "train").exists()
    with pytest.raises(RecipeError, match="another run"):
        claim_folder(out, stage="run", identity="b")
    claim_folder(out, stage="run", identity="b", overwrite=True)
    assert not (out / "train").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
def test_a_full_or_broken_disk_is_the_machines_fault_and_keeps_its_exit_code(number: int, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="free some space") as caught, machine_errors(tmp_path):
        raise OSError(number, os.strerror(number), str(tmp_path / "file"))
    assert caught.value.exit_code == 4


def test_a_disk_that_fills_up_leaves_the_old_file_whole() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(OSError, match="No space"), full.open("w") as file:
        file.write("x" * 100_000)
    with pytest.raises(MachineError, match="No space left"):
        append_jsonl(full, [{"a": "x" * 100_000}])


@settings(deadline=None)
@given(value=JSON)
def test_whatever_is_json_is_written_and_read_back_with_unknown_numbers_as_null(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    path = write_json(tmp_path_factory.mktemp("json") / "file.json", value)

    def forbid(name: str) -> None:
        raise AssertionError(name)

    json.loads(path.read_text(encoding="utf-8"), parse_constant=forbid)
    assert write_json(path.with_name("nan.json"), float("nan")).read_text() == "null\n"


def test_rows_survive_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_jsonl(path) == []
    append_jsonl(path, [{"text": "first\u2028line"}, {"rate": float("inf")}])
    with path.open("a") as file:
        file.write('{"text": "tor')
    assert read_jsonl(path) == [{"text": "first\u2028line"}, {"rate": None}]
    append_jsonl(path, [{"text": "third"}])
    assert [row.get("text") for row in read_jsonl(path)] == ["first\u2028line", None, "third"]


def test_what_a_kill_leaves_beside_a_file_is_swept_away_and_nothing_else(tmp_path: Path) -> None:
    names = [".record.json.4711.tmp", ".hidden.tmp", "note.tmp", "file.json"]
    for name in names:
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert everything_in(tmp_path) == sorted(names[1:])


def test_identity_is_what_determines_the_result_and_nothing_else() -> None:
    config = {"model": "a/b", "epochs": 2, "load": {"device": "cpu", "dtype": "auto"}}
    identity = identity_of("train", config, {"model": "f00"})
    same = {"load": {"dtype": "auto", "device": "cuda"}, "epochs": 2, "model": "./a/b"}
    assert identity_of("train", same, {"model": "f00"}) == identity
    assert len(identity) == 64
    for stage, changed, inputs in (
        ("evaluate", config, {"model": "f00"}),
        ("train", {**config, "epochs": 3}, {"model": "f00"}),
        ("train", {**config, "load": {"device": "cpu", "dtype": "float32"}}, {"model": "f00"}),
        ("train", config, {"model": "ba5"}),
    ):
        assert identity_of(stage, changed, inputs) != identity


def test_a_record_is_read_back_and_a_missing_one_is_named(tmp_path: Path) -> None:
    record = a_record("a")
    record.write(tmp_path)
    assert Record.read(tmp_path) == record
    assert record.versions == versions()
    assert set(record.versions) >= {"python", "alignkeep", "torch"}
    with pytest.raises(DataError, match=r"record\.json.*finished command"):
        Record.read(tmp_path / "nowhere")
