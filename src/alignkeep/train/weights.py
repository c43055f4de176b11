"""Example weights: read from the data or from a file, checked against the data, brought to mean 1.

    w_i = raw_i / mean(raw_j over the kept j),  0 for the dropped.

The division is done once, in float64, and not per batch: uniform weights divided by a float32 batch mean are off by a
rounding, and the tune would no longer equal the unweighted one bit for bit. Equal weights become exactly 1.0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from alignkeep.checkpoint.records import MADE_FROM, Record
from alignkeep.data import Row, fingerprint_data, read_rows
from alignkeep.errors import DataError
from alignkeep.types import Example

WEIGHTS_NAME = "weights.parquet"


def weights_file(reference: str) -> str:
    """`reference`, or the `weights.parquet` inside it where it is a folder. Raises DataError where that is missing."""
    folder = Path(reference)
    if not folder.is_dir():
        return reference
    if not (folder / WEIGHTS_NAME).is_file():
        raise DataError(
            reference, seen=f"a folder without {WEIGHTS_NAME}", expected="example weights", remedy="name the file"
        )
    return str(folder / WEIGHTS_NAME)


def example_weights(examples: Sequence[Example], data: str, weights: str | None) -> list[float]:
    """One weight per example, mean 1 over the kept, 0 for the dropped.

    They come from the rows' own `weight`, or from the file `weights`; from both is a DataError, and so are weights
    that are all 0, and those of a curation of other data.
    """
    if weights is None:
        return normalised([example.weight for example in examples], data)
    if any(example.weight != 1.0 for example in examples):
        raise DataError(
            weights,
            seen=f"example weights here and in the column `weight` of {data}",
            expected="one source of weights",
            remedy="drop the column or the weights",
        )
    _check_made_from(weights, data)
    return normalised(read_weights(weights, len(examples)), weights)


def _check_made_from(weights: str, data: str) -> None:
    """Weights go by the number of a row: those of a curation are of the very file that they were made from, which
    they name themselves, alone as in their folder."""
    made_from = _made_from(Path(weights_file(weights)).expanduser())
    if made_from is not None and made_from != fingerprint_data(data):
        raise DataError(
            weights, seen=f"weights of other data than {data}, or of these in another order",
            expected="weights that were made from this very file", remedy="run curate on it",
        )  # fmt: skip


def _made_from(file: Path) -> str | None:
    """The fingerprint in the file; or that in a curation's record beside it; None for weights from elsewhere."""
    import pyarrow
    import pyarrow.parquet

    if file.suffix == ".parquet":
        try:
            told = (pyarrow.parquet.read_schema(file).metadata or {}).get(MADE_FROM.encode())
        except (pyarrow.ArrowException, OSError):
            return None  # reading the rows says what is wrong
        if told is not None:
            return told.decode()
    try:
        record = Record.read(file.parent)
    except DataError:
        return None
    return record.inputs.get("data") if record.stage == "curate" else None


def read_weights(reference: str, count: int) -> list[float]:
    """The raw weights by example index, 0 where `kept` is false.

    Raises DataError unless `index` is each of 0 .. count - 1 once and every weight is finite and not negative.
    """
    rows = read_rows(weights_file(reference))
    if len(rows) != count:
        raise DataError(
            reference,
            seen=f"{len(rows)} weights for {count} examples",
            expected="one weight per example of the data",
            remedy="give the weights that were made from this very data",
        )
    found: dict[int, float] = {}
    for row in rows:
        index = _index(row, count)
        if index in found:
            raise _wrong(row, f"index {index} a second time", "each index once")
        found[index] = _weight(row)
    return [found[index] for index in range(count)]


def normalised(raw: Sequence[float], where: str) -> list[float]:
    """`raw` divided by its mean over the positive ones; exactly 1.0 (or 0.0) where those are all equal."""
    kept = [value for value in raw if value > 0]
    if not kept:
        raise DataError(
            where,
            seen=f"weight 0 on all {len(raw)} examples",
            expected="a positive weight somewhere",
            remedy="keep some examples",
        )
    if min(kept) == max(kept):
        return [1.0 if value > 0 else 0.0 for value in raw]
    # Divided by the largest first: the sum of huge weights must not overflow.
    largest = max(kept)
    mean = math.fsum(value / largest for value in kept) / len(kept)
    return [value / largest / mean for value in raw]


def _index(row: Row, count: int) -> int:
    value = row.values.get("index")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise _wrong(row, f"index {value!r}", f"a whole number from 0 to {count - 1}")
    return value


def _weight(row: Row) -> float:
    value, kept = row.values.get("weight"), row.values.get("kept", True)
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise _wrong(row, f"weight {value!r}", "a finite number, 0 or more")
    if not isinstance(kept, bool):
        raise _wrong(row, f"kept {kept!r}", "true or false")
    return float(value) if kept else 0.0


def _wrong(row: Row, seen: str, expected: str) -> DataError:
    return DataError(row.where, seen=seen, expected=expected, remedy="mend the weights, or make them again")
