"""What users rely on is as it was stored. A change that is meant is stored by `python tests/golden/write.py`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "golden"))

import collect
from commands import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden").resolve()


@pytest.fixture(scope="module")
def life(folder: Path) -> dict[str, object]:
    return collect.life(folder)


def stored(part: str) -> dict[str, object]:
    return json.loads((collect.STORED / f"{part}.json").read_text(encoding="utf-8"))


def as_stored(found: dict[str, object]) -> dict[str, object]:
    return json.loads(json.dumps(found))


def test_the_same_settings_on_the_same_inputs_are_the_same_run() -> None:
    assert collect.identities() == stored("identities")


def test_a_life_cycle_plans_returns_and_writes_what_it_did(life: dict[str, object]) -> None:
    found, wanted = as_stored(life), stored("life")
    assert found.pop("files") == wanted.pop("files")
    assert found == wanted


def test_small_verbs_return_and_write_what_they_did(life: dict[str, object], folder: Path) -> None:
    assert as_stored(collect.small_verbs(folder)) == stored("small_verbs")


def test_a_moved_model_is_the_same_run(life: dict[str, object], folder: Path, tmp_path: Path) -> None:
    from alignkeep.merge.config import MergeConfig
    from alignkeep.merge.stage import merge

    records = []
    for place in ("here", "there"):
        tuned = shutil.copytree(folder / "shipped" / "models" / "weak", tmp_path / place)
        config = MergeConfig(base=str(folder / "shipped" / "models" / "aligned"), tuned=(str(tuned),))
        done = merge(config, out=tmp_path / "merged")
        records.append((done.folder / "record.json").read_bytes())
    assert records[0] == records[1]


def test_merged_and_injected_tensors_are_the_same_bytes(tmp_path: Path) -> None:
    assert collect.tensors(tmp_path) == stored("tensors")


def test_every_verb_has_the_options_it_had() -> None:
    assert collect.helps(run) == stored("helps")


def test_every_mistake_leaves_with_the_code_it_had(life: dict[str, object], folder: Path, tmp_path: Path) -> None:
    assert collect.codes(run, folder / "shipped", tmp_path) == stored("codes")


def test_what_an_earlier_version_left_half_done_is_gone_on_with(tmp_path: Path) -> None:
    left = tmp_path / ".out.partial"
    left.mkdir()
    shutil.copy(collect.PARTIAL / "claim.json", left / ".alignkeep.json")
    shutil.copy(collect.PARTIAL / "answers.jsonl", left / "answers.partial.jsonl")
    collect.evaluate_shipped(tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows].count(collect.MARK) == 1
