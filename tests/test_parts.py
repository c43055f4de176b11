"""State of a killed run: what is not what was written is noticed, said in one line, and made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkeep.checkpoint.parts import SEALED, append_rows, is_whole, recover_rows, seal

ROWS = [{"text": "first\u2028line", "n": 1}, {"text": "größer", "n": 2.5}, {"text": "third", "n": None}]

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit": lambda data: data.replace(b"2.5", b"2.4"),
    "a line of NUL": lambda data: b"\n".join(
        b"\0" * len(line) if b"2.5" in line else line for line in data.split(b"\n")
    ),
    "a line that is another value": lambda data: b"\n".join(
        b"[1]" if b"2.5" in line else line for line in data.split(b"\n")
    ),
    "no checksum": lambda data: data.replace(b'2.5, "check"', b'2.5, "chick"'),
    "bad UTF-8": lambda data: data.replace("ö".encode(), b"\xff"),
    "nested too deep": lambda data: b"\n".join(
        b"[" * 100_000 if b"2.5" in line else line for line in data.split(b"\n")
    ),
}


def log_of(folder: Path) -> Path:
    append_rows(folder / "log.jsonl", ROWS)
    return folder / "log.jsonl"


def test_rows_come_back_as_they_were_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert recover_rows(tmp_path / "log.jsonl") == []
    assert recover_rows(log_of(tmp_path)) == ROWS
    assert not caplog.text
    assert all(json.loads(line)["check"] for line in (tmp_path / "log.jsonl").read_text().split("\n")[:-1])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_row_is_said_and_taken_out_and_the_others_stay(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = log_of(tmp_path)
    log.write_bytes(DAMAGES[damage](log.read_bytes()))
    assert recover_rows(log) == [ROWS[0], ROWS[2]]
    assert len(caplog.records) == 1
    assert f"{log}: 1 of 3 lines are not what was written" in caplog.text
    append_rows(log, [ROWS[1]])
    assert recover_rows(log) == [ROWS[0], ROWS[2], ROWS[1]]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("tail", [b'{"text": "tor', b"\0" * 5000])
def test_a_line_torn_by_a_kill_is_dropped_without_a_word(
    tail: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = log_of(tmp_path)
    log.write_bytes(log.read_bytes() + tail)
    assert recover_rows(log) == ROWS
    assert log.read_bytes().endswith(b"\n")
    assert not caplog.text


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil", [flipped, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(path.read_bytes() + b"x")]
)
def test_a_file_that_is_not_what_was_sealed_is_not_whole(
    spoil: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part = tmp_path / "part.safetensors"
    assert not is_whole(part)
    part.write_bytes(bytes(range(256)))
    assert not is_whole(part), "a kill came before the seal"
    seal(part)
    assert is_whole(part)
    assert not caplog.text
    spoil(part)
    assert not is_whole(part)
    assert f"{part}: other bytes than were written; it is made again" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda part: flipped(part / "optimizer.pt"), "optimizer.pt has other bytes than were written"),
        (lambda part: (part / "optimizer.pt").write_bytes(b""), "optimizer.pt has other bytes than were written"),
        (lambda part: (part / "rng_state.pth").unlink(), "rng_state.pth is missing or was added"),
        (lambda part: (part / "more").touch(), "more is missing or was added"),
        (lambda part: flipped(part / "sub" / "shard"), "sub/shard has other bytes than were written"),
        (lambda part: (part / SEALED).write_text("[]"), "its list of files (complete) cannot be read"),
        (lambda part: (part / SEALED).write_bytes(b"\0\0"), "its list of files (complete) cannot be read"),
        (lambda part: (part / SEALED).write_text("[" * 100_000), "its list of files (complete) cannot be read"),
        (lambda part: (part / SEALED).unlink(), ""),
    ],
)
def test_a_folder_that_is_not_what_was_sealed_is_not_whole(
    spoil: Callable[[Path], object], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part = tmp_path / "checkpoint-8"
    (part / "sub").mkdir(parents=True)
    for name in ("optimizer.pt", "rng_state.pth", "sub/shard"):
        (part / name).write_bytes(name.encode() * 9)
    seal(part)
    seal(part)  # the list is no file of the folder's own
    assert is_whole(part)
    spoil(part)
    assert not is_whole(part)
    assert caplog.text.count("\n") == (1 if said else 0)
    assert said in caplog.text
