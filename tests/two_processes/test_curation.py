"""A curation under two processes (gloo on the CPU) chooses what one process chooses."""

from __future__ import annotations

import json
from pathlib import Path

import curation
import pyarrow.parquet
import pytest
from test_guarded import write_rows

from alignkeep.curate.config import CurateConfig
from alignkeep.curate.stage import curate
from alignkeep.testbed import sets
from alignkeep.testbed.stage import materialise
from command import side_by_side


def test_two_processes_weigh_as_one(tmp_path: Path) -> None:
    """203 examples, so that the two hold unequal parts."""
    some = [*sets.rows("task_train")[:170], *[row for row in sets.rows("poisoned") if row["poison"]][:33]]
    config = CurateConfig(
        model=str(materialise("models/aligned", tmp_path / "T")),
        data=write_rows(tmp_path / "data.jsonl", some),
        safe=write_rows(tmp_path / "safe.jsonl", sets.rows("safe_anchor")),
        harmful=write_rows(tmp_path / "harmful.jsonl", sets.rows("harmful_reference")),
        load={"device": "cpu"},  # pyright: ignore[reportArgumentType]
    )
    (tmp_path / "c.json").write_text(config.model_dump_json(), encoding="utf-8")
    side_by_side(curation.main, tmp_path / "c.json", folder=tmp_path)
    seen = [json.loads((tmp_path / f"c.rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["kept"] for one in seen] == [162, 162]
    assert min(one["looked"] for one in seen) > 100
    assert sum(one["looked"] for one in seen) == 203 + 50 + 200
    one = curate(config, out=tmp_path / "one").folder
    tables = [pyarrow.parquet.read_table(folder / "weights.parquet") for folder in (one, tmp_path / "c.two")]
    assert tables[0].column("kept") == tables[1].column("kept")
    for name in ("mass", "weight", "safe_score", "harm_score"):
        expected = tables[0].column(name).to_pylist()
        assert tables[1].column(name).to_pylist() == pytest.approx(expected, rel=2e-3, abs=1e-5)
    assert not any(
        kept for kept, row in zip(tables[1].column("kept").to_pylist(), some, strict=True) if row.get("poison")
    )
