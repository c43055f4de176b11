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
            metrics={name: _estimate(value) for name, value in _mapping(data["metrics"]).items()},
            tests={name: _test(name, value) for name, value in _mapping(data.get("tests") or {}).items()},
            base_metrics={name: _estimate(value) for name, value in _mapping(data.get("base_metrics") or {}).items()},
            notes={name: str(value) for name, value in _mapping(data.get("notes") or {}).items()},
        )
        return card, _mapping(data.get("settings") or {})
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            str(path),
            seen=f"{type(error).__name__}: {error}",
            expected='{"model", "base", "suite", "metrics": {name: {"value", "low", "high", "n"}}}',
            remedy="evaluate again with --fresh, the file was changed or cut off",
        ) from error


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} where an object belongs")
    return value


def _estimate(value: object) -> Estimate:
    data = _mapping(value)
    return Estimate(_float(data["value"]), _float(data["low"]), _float(data["high"]), int(str(data["n"])))


def _test(name: str, value: object) -> PairedTest:
    data = _mapping(value)
    counts = [int(str(data.get(key) or 0)) for key in ("only_model", "only_base")]
    return PairedTest(name, _estimate(data["difference"]), _float(data.get("p_value")), *counts)


def _float(value: object) -> float:
    return math.nan if value is None else float(str(value))
