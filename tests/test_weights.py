"""Example weights: read, checked against the data, brought to mean 1."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkeep.checkpoint.records import MADE_FROM, Record
from alignkeep.data import fingerprint_data, read_examples
from alignkeep.errors import DataError
from alignkeep.train.weights import example_weights, normalised, read_weights
from alignkeep.types import Example, Message


def test_weights_are_divided_by_the_mean_of_the_kept():
    assert normalised([1.0, 3.0, 0.0], "w") == [0.5, 1.5, 0.0]


@given(st.lists(st.floats(min_value=0, max_value=1e300), min_size=1).filter(any))
def test_weights_have_mean_one_over_the_kept_and_keep_their_order(raw):
    weights = normalised(raw, "w")
    kept = [weight for weight, value in zip(weights, raw, strict=True) if value > 0]
    assert math.fsum(kept) / len(kept) == pytest.approx(1.0)
    assert [weight for _, weight in sorted(zip(raw, weights, strict=True))] == sorted(weights)
    assert all(math.isfinite(weight) for weight in weights)


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False), st.integers(1, 50))
def test_equal_weights_become_exactly_one(value, count):
    assert normalised([value] * count, "w") == [1.0] * count


def _example(weight: float = 1.0) -> Example:
    return Example((Message("user", "how"), Message("assistant", "so")), weight)


def _write_weights(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_a_weights_file_is_read_by_index_and_the_dropped_are_zero(tmp_path):
    lines = [
        '{"index": 2, "weight": 4.0, "kept": true}',
        '{"index": 0, "weight": 2.0, "kept": true}',
        '{"index": 1, "weight": 9.0, "kept": false}',
    ]
    assert read_weights(_write_weights(tmp_path / "w.jsonl", lines), 3) == [2.0, 0.0, 4.0]


def test_a_folder_with_weights_parquet_is_a_weights_file(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"index": [0, 1], "weight": [1.0, 3.0], "kept": [True, True], "mass": [0.5, 0.5]})
    pq.write_table(table, tmp_path / "weights.parquet")
    assert example_weights([_example(), _example()], "d.jsonl", str(tmp_path)) == [0.5, 1.5]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"index": 0, "weight": 1}'], "1 weights for 2 examples"),
        (['{"index": 0, "weight": 1}', '{"index": 0, "weight": 1}'], "index 0 a second time"),
        (['{"index": 0, "weight": 1}', '{"index": 2, "weight": 1}'], "whole number from 0 to 1"),
        (['{"index": 0, "weight": 1}', '{"index": 1, "weight": -1}'], "finite number, 0 or more"),
        (['{"index": 0, "weight": 1}', '{"index": 1}'], "weight None"),
        (['{"index": 0, "weight": 1}', '{"index": 1, "weight": 1, "kept": 2}'], "kept 2"),
    ],
)
def test_weights_that_do_not_fit_the_data_are_refused(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        read_weights(_write_weights(tmp_path / "w.jsonl", lines), 2)


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(DataError, match="weight 0 on all 2 examples"):
        normalised([0.0, 0.0], "w.jsonl")


def test_weights_in_two_places_are_refused(tmp_path):
    path = _write_weights(tmp_path / "w.jsonl", ['{"index": 0, "weight": 1}'])
    with pytest.raises(DataError, match="one source of weights"):
        example_weights([_example(2.0)], "d.jsonl", path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"weights\.parquet"):
        example_weights([_example()], "d.jsonl", str(tmp_path))


def test_weights_of_a_curation_are_those_of_its_very_data(tmp_path: Path) -> None:
    """They go by the number of a row: of the same rows in another order they would drop the wrong ones."""
    lines = [json.dumps({"prompt": f"how {n}", "completion": "so"}) + "\n" for n in range(4)]
    for name, some in (("data", lines), ("turned", lines[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(some), encoding="utf-8")
    folder = tmp_path / "curated"
    folder.mkdir()
    table = pyarrow.table({"index": [0, 1, 2, 3], "weight": [1.0, 1.0, 0.0, 1.0]})
    pyarrow.parquet.write_table(table, folder / "weights.parquet")
    inputs = {"data": fingerprint_data(str(tmp_path / "data.jsonl"))}
    Record("curate", "sha256:0", {}, inputs, 0, 1.0, {}).write(folder)
    data, turned = (str(tmp_path / f"{name}.jsonl") for name in ("data", "turned"))
    for weights in (str(folder), str(folder / "weights.parquet")):
        assert example_weights(read_examples(data), data, weights) == [1.0, 1.0, 0.0, 1.0]
        with pytest.raises(DataError, match=r"weights of other data than \S+turned\.jsonl"):
            example_weights(read_examples(turned), turned, weights)


def test_weights_alone_know_the_data_that_they_were_made_from(tmp_path: Path) -> None:
    """As `curate` writes them (its tests see to that), taken out of their folder."""
    lines = [json.dumps({"prompt": f"how {n}", "completion": "so"}) + "\n" for n in range(3)]
    for name, some in (("data", lines), ("turned", lines[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(some), encoding="utf-8")
    data, turned = (str(tmp_path / f"{name}.jsonl") for name in ("data", "turned"))
    weights = tmp_path / "elsewhere.parquet"
    table = pyarrow.table({"index": [0, 1, 2], "weight": [1.0, 0.0, 1.0]})
    pyarrow.parquet.write_table(table.replace_schema_metadata({MADE_FROM: fingerprint_data(data)}), weights)
    assert example_weights(read_examples(data), data, str(weights)) == [1.0, 0.0, 1.0]
    with pytest.raises(DataError, match=r"weights of other data than \S+turned\.jsonl"):
        example_weights(read_examples(turned), turned, str(weights))
