"""A law of forgetting on disk: `forgetting.json`, the tunes that were measured and what was fitted to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkeep.checkpoint.files import read_object, write_json
from alignkeep.checkpoint.scorecards import mapping_of
from alignkeep.errors import DataError

FORGETTING_NAME = "forgetting.json"
Fitted = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True)
class ForgettingLaw:
    """loss - base_loss = amplitude (amount / unit)^exponent + offset, of every method, in nats; `tunes` are (method,
    amount, loss) as they were measured."""

    base_loss: float
    unit: float
    exponent: Fitted
    amplitude: Mapping[str, Fitted]
    offset: Mapping[str, Fitted]
    tunes: Sequence[tuple[str, float, float]]

    def write(self, folder: Path) -> Path:
        """Put it into `folder` (atomically)."""
        facts: dict[str, Any] = {
            "base_loss": self.base_loss,
            "unit": self.unit,
            "exponent": list(self.exponent),
            "methods": {
                name: {"amplitude": list(self.amplitude[name]), "offset": list(self.offset[name])}
                for name in self.amplitude
            },
            "tunes": [{"method": method, "amount": amount, "loss": loss} for method, amount, loss in self.tunes],
        }
        return write_json(folder / FORGETTING_NAME, facts)


def read_forgetting(path: Path) -> ForgettingLaw:
    """Raises DataError naming the file where it is none of ours."""
    try:
        data = read_object(path)
        methods, tunes = mapping_of(data["methods"]), data["tunes"]
        if not isinstance(tunes, list):
            raise TypeError("no list of tunes")
        return ForgettingLaw(
            base_loss=float(str(data["base_loss"])),
            unit=float(str(data["unit"])),
            exponent=_fitted(data["exponent"]),
            amplitude={name: _fitted(mapping_of(one)["amplitude"]) for name, one in methods.items()},
            offset={name: _fitted(mapping_of(one)["offset"]) for name, one in methods.items()},
            tunes=tuple(
                (str(one["method"]), float(str(one["amount"])), float(str(one["loss"])))
                for one in map(mapping_of, tunes)
            ),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            str(path),
            seen=f"{type(error).__name__}: {error}",
            expected='{"base_loss", "unit", "exponent", "methods", "tunes"} as `ForgettingLaw.write` has it',
            remedy="fit it again, the file was changed or cut off",
        ) from error


def _fitted(value: object) -> Fitted:
    if not isinstance(value, list) or len(value) != 3:
        raise TypeError("no [value, low, high] where one belongs")
    first, low, high = (float(str(one)) for one in value)
    return first, low, high
