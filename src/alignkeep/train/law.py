"""A law of forgetting on disk: `forgetting.json`, the tunes that were measured and what was fitted to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import PlainSerializer

from alignkeep.runs.results import read_result, write_result
from alignkeep.train.forgetting import Forgetting, Interval, Observation

FORGETTING_NAME = "forgetting.json"


class Fitted(NamedTuple):
    """What was fitted to one method's tunes, in nats."""

    amplitude: Interval
    offset: Interval


@dataclass(frozen=True)
class ForgettingLaw:
    """loss - base_loss = amplitude (amount / unit)^exponent + offset, of every method, and the tunes it was fitted
    to."""

    base_loss: float
    unit: float
    exponent: Interval
    methods: Annotated[
        Mapping[str, Fitted], PlainSerializer(lambda many: {name: many[name]._asdict() for name in many})
    ]
    tunes: Annotated[tuple[Observation, ...], PlainSerializer(lambda many: [one._asdict() for one in many])]

    @classmethod
    def of(cls, fit: Forgetting, base_loss: float, tunes: Sequence[Observation]) -> ForgettingLaw:
        """What `fit_forgetting(tunes, base_loss)` found."""
        methods = {name: Fitted(fit.amplitude[name], fit.offset[name]) for name in fit.amplitude}
        return cls(base_loss, fit.unit, fit.exponent, methods, tuple(tunes))

    def excess(self, method: str, amount: float) -> float:
        """The loss over the base's that is fitted to this amount, in nats."""
        fitted = self.methods[method]
        return fitted.amplitude.value * (amount / self.unit) ** self.exponent.value + fitted.offset.value

    def write(self, folder: Path) -> Path:
        """Put it into `folder` (atomically)."""
        return write_result(folder / FORGETTING_NAME, self)


def read_forgetting(path: Path) -> ForgettingLaw:
    """Raises DataError naming the file where it is none of ours."""
    return read_result(ForgettingLaw, path, writer="ForgettingLaw.write", again="fit it again")
