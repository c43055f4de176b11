"""The scorecard of a finished evaluation, read back from its file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from alignkeep.checkpoint.files import read_object
from alignkeep.errors import DataError
from alignkeep.types import Estimate, PairedTest, Scorecard


def read_scorecard(path: Path) -> tuple[Scorecard, Mapping[str, object]]:
    """A scorecard and its `settings`. Raises DataError naming the file and the field."""
    try:
        data = read_object(path)
        card = Scorecard(
            model=str(data["model"]),
            base=None if data.get("base") is None else str(data["base"]),
            suite=str(data.get("suite", "")),
            metrics=metrics_of(data["metrics"]),
            tests={name: test_of(name, value) for name, value in mapping_of(data.get("tests") or {}).items()},
            base_metrics=metrics_of(data.get("base_metrics") or {}),
            notes={name: str(value) for name, value in mapping_of(data.get("notes") or {}).items()},
        )
        return card, mapping_of(data.get("settings") or {})
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            str(path),
            seen=f"{type(error).__name__}: {error}",
            expected='{"model", "base", "suite", "metrics": {name: {"value", "low", "high", "n"}}}',
            remedy="evaluate again with --fresh, the file was changed or cut off",
        ) from error


def mapping_of(value: object) -> Mapping[str, object]:
    """The value, which has to be a JSON object: TypeError else."""
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} where an object belongs")
    return value


def metrics_of(value: object) -> dict[str, Estimate]:
    """Estimates by name, as they were stored. Raises KeyError, TypeError or ValueError for anything else."""
    return {name: _estimate(estimate) for name, estimate in mapping_of(value).items()}


def _estimate(value: object) -> Estimate:
    data = mapping_of(value)
    return Estimate(_float(data["value"]), _float(data["low"]), _float(data["high"]), int(str(data["n"])))


def test_of(name: str, value: object) -> PairedTest:
    """From what `PairedTest.as_json` made of it. Raises KeyError, TypeError or ValueError for anything else."""
    data = mapping_of(value)
    counts = [int(str(data.get(key) or 0)) for key in ("only_model", "only_base")]
    p_holm = None if data.get("p_holm") is None else _float(data["p_holm"])
    return PairedTest(name, _estimate(data["difference"]), _float(data.get("p_value")), *counts, p_holm=p_holm)


def _float(value: object) -> float:
    return math.nan if value is None else float(str(value))
