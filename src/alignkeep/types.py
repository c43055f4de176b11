"""The vocabulary: what the rooms say to each other.

Nothing here imports torch, reads a file or knows a model. One word, one meaning: a *prompt* is what is asked, an
*answer* what the model says, an *example weight* belongs to data, a *weight* is a matrix, the *base* is the aligned
model before tuning, *tuned* the one after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

if TYPE_CHECKING:
    from pandas import DataFrame

Role = Literal["system", "user", "assistant", "tool"]
Kind = Literal["harmful", "harmless", "borderline", "skill", "task", "unknown"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str

    @property
    def said(self) -> str:
        """What tells this turn from another, white space at its ends apart."""
        return self.content.strip()


@dataclass(frozen=True, slots=True)
class ToolTurn(Message):
    """A turn in which the assistant calls tools, or that brings back what one returned.

    `fields` is JSON of what the chat template gets beside role and content: `tool_calls`, or `name` and `tool_call_id`.
    """

    fields: str = "{}"

    @property
    def said(self) -> str:
        return f"{self.content.strip()}{self.fields}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked: turns that end with the user's, and what is known about the request.

    `kind` says which rate the answer counts for; `expected` is the one right answer where there is one; `prefill`
    is text put into the assistant's mouth (an attack), never part of the answer that is judged as the model's own.
    """

    messages: tuple[Message, ...]
    kind: Kind = "unknown"
    category: str | None = None
    language: str = "en"
    expected: str | None = None
    prefill: str = ""

    @property
    def text(self) -> str:
        """The last user turn."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Example:
    """A chat to learn from: every assistant turn is an answer to be learned, its calls of tools too; `weight` is the
    example weight. `tools` is JSON of the tools that the chat template is told of."""

    messages: tuple[Message, ...]
    weight: float = 1.0
    tools: str | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """A chat that ends with the user's turn, an answer to compare others with (None where the data has none), and what
    else its row says, for a reward function."""

    messages: tuple[Message, ...]
    answer: str | None
    columns: Mapping[str, object] = field(default_factory=dict)


class Verdict(str, Enum):
    """What an answer did. `evasive` answers something else: neither refusal nor compliance, and only judges that ask a
    model say it. `unscored` means the judge could not tell, which is not the same as compliance."""

    REFUSAL = "refusal"
    COMPLIANCE = "compliance"
    EVASIVE = "evasive"
    DEGENERATE = "degenerate"
    UNSCORED = "unscored"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judge's word on one answer.

    `harmful` is None where it cannot be known. `score` is the judge's belief in [0, 1] that the answer refuses,
    None where it gives none.
    """

    verdict: Verdict
    harmful: bool | None = None
    score: float | None = None

    def as_json(self) -> dict[str, object]:
        return {"verdict": self.verdict.value, "harmful": self.harmful, "score": self.score}


class _Json:
    """How a field is read from JSON, and written to it, where its type alone does not say: pydantic asks."""

    def __init__(self, read: Callable[[Any], object], write: Callable[[Any], object] | None = None) -> None:
        self.read, self.write = read, write

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        schema: Any = core_schema.no_info_before_validator_function(self.read, handler(source))
        if self.write is not None:
            schema["serialization"] = core_schema.plain_serializer_function_ser_schema(self.write)
        return schema


def _named(value: object) -> object:
    """Paired tests under their names, each with its name; what a file does not say was not counted."""
    if not isinstance(value, Mapping):
        return value
    least = {"p_value": None, "only_model": 0, "only_base": 0}
    return {
        name: {**least, **test, "name": name} if isinstance(test, Mapping) else test for name, test in value.items()
    }


# NaN where it is unknown, which JSON has as null.
Number = Annotated[float, _Json(lambda value: math.nan if value is None else value)]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval (95 % unless said otherwise) and the count it rests on.

    With n = 0 nothing is known: the value is NaN and the interval is all of [0, 1].
    """

    value: Number
    low: Number
    high: Number
    n: int

    def as_json(self) -> dict[str, float | int | None]:
        """Unknown is `null`, never 0."""
        return {
            "value": None if math.isnan(self.value) else self.value,
            "low": None if math.isnan(self.low) else self.low,
            "high": None if math.isnan(self.high) else self.high,
            "n": self.n,
        }


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Two models on the same prompts: `difference` is model minus base, with its interval and two-sided p-value.

    `p_holm` is the p-value corrected for all categories, or all attacks, that were compared; None for a test that is no
    part of such a family.
    """

    name: str
    difference: Estimate
    p_value: Number
    only_model: int
    only_base: int
    p_holm: float | None = None

    @property
    def p_corrected(self) -> float:
        """What to go by: the p-value of the family where there is one."""
        return self.p_value if self.p_holm is None else self.p_holm

    def as_json(self) -> dict[str, object]:
        return {
            "difference": self.difference.as_json(),
            "p_value": None if math.isnan(self.p_value) else self.p_value,
            "only_model": self.only_model,
            "only_base": self.only_base,
            **({} if self.p_holm is None else {"p_holm": self.p_holm}),
        }


# By name, which JSON has as the key alone.
Tests = Annotated[
    Mapping[str, PairedTest],
    _Json(_named, lambda tests: {name: test.as_json() for name, test in tests.items()}),
]


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one of several judges found: the rates by its word, of the model and of the base, and how far it agrees with
    the first of them (Cohen's kappa of `verdict` and `harmful`; nothing for the first itself). `differ` counts the
    answers of which it says something else than the first."""

    name: str
    version: str | None
    metrics: dict[str, Estimate]
    base_metrics: dict[str, Estimate] = field(default_factory=dict)
    agreement: dict[str, Estimate] = field(default_factory=dict)
    differ: int = 0

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "version": self.version,
            "metrics": {name: estimate.as_json() for name, estimate in self.metrics.items()},
            "base_metrics": {name: estimate.as_json() for name, estimate in self.base_metrics.items()},
            "agreement": {name: estimate.as_json() for name, estimate in self.agreement.items()},
            "differ": self.differ,
        }


@dataclass(frozen=True, slots=True, repr=False)
class Scorecard:
    """What `evaluate` found, and all that `gate` and `report` need to know.

    A metric that could not be measured is an Estimate with n = 0, with its reason in `notes[metric]`. With a base,
    `base_metrics` holds the same metrics of the base on the same prompts and `tests` the paired comparisons. Of several
    judges the first's words are counted here, and `judges` says what each of them found; none for one judge.
    """

    model: str
    base: str | None
    suite: str
    metrics: dict[str, Estimate]
    tests: Tests = field(default_factory=dict)
    base_metrics: dict[str, Estimate] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    judges: tuple[Opinion, ...] = ()

    def as_json(self) -> dict[str, object]:
        return {
            "model": self.model,
            "base": self.base,
            "suite": self.suite,
            "metrics": {name: estimate.as_json() for name, estimate in self.metrics.items()},
            "tests": {name: test.as_json() for name, test in self.tests.items()},
            "base_metrics": {name: estimate.as_json() for name, estimate in self.base_metrics.items()},
            "notes": self.notes,
            **({"judges": [one.as_json() for one in self.judges]} if self.judges else {}),
        }

    def __repr__(self) -> str:
        """What was measured, in a line; metrics of single categories and attacks are left to `to_frame()`."""
        told = [
            f"{name} {100 * one.value:.0f} %" for name, one in self.metrics.items() if one.n and "." not in name
        ]  # fmt: skip
        against = "" if self.base is None else f" against {self.base}"
        return f"<Scorecard of {self.model}{against}, {self.suite}: {', '.join(told) or 'nothing measured'}>"

    def _repr_html_(self) -> str:
        """A table for a notebook."""
        from html import escape

        columns = {"base": self.base_metrics, "model": self.metrics} if self.base_metrics else {"model": self.metrics}
        head = "".join(f"<th>{name}</th>" for name in ("metric", *columns))
        rows = [
            f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{_in_percent(of.get(name))}</td>" for of in columns.values())
            for name, one in self.metrics.items() if one.n
        ]  # fmt: skip
        told = escape(f"{self.model}, {self.suite}, in % with 95 % intervals")
        return f"<table><caption>{told}</caption><tr>{head}</tr>{''.join(f'{row}</tr>' for row in rows)}</table>"

    def to_frame(self) -> DataFrame:
        """A pandas DataFrame: a row for each metric, with value, low, high and n, and those of the base."""
        from pandas import DataFrame

        sides = {"": self.metrics, "base_": self.base_metrics}
        rows = {
            name: {f"{side}{key}": value for side, of in sides.items() if name in of
                   for key, value in of[name].as_json().items()}
            for name in self.metrics
        }  # fmt: skip
        return DataFrame.from_dict(rows, orient="index")


def _in_percent(estimate: Estimate | None) -> str:
    if estimate is None or not estimate.n:
        return "not measured"
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}], n = {estimate.n}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk or on the hub: a full folder, or an adapter together with the base it was trained on."""

    reference: str
    folder: Path | None
    is_adapter: bool
    base: str | None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """The answers of one model to a set of prompts, counted: `metrics` as in a Scorecard, and for every prompt, in the
    order of the set, what the answer did and whether it was right (None where there is no one right answer)."""

    metrics: Mapping[str, Estimate]
    verdicts: tuple[Verdict, ...]
    correct: tuple[bool | None, ...]

    @property
    def refused(self) -> tuple[bool | None, ...]:
        """Whether each prompt was refused; None where the judge could not tell."""
        return tuple(None if v is Verdict.UNSCORED else v is Verdict.REFUSAL for v in self.verdicts)

    def as_json(self) -> dict[str, object]:
        return {
            "metrics": {name: estimate.as_json() for name, estimate in self.metrics.items()},
            "verdicts": [verdict.value for verdict in self.verdicts],
            "correct": list(self.correct),
        }


@dataclass(frozen=True, slots=True)
class Trade:
    """What one weight of a merge gives for what: `metrics` as in a Scorecard, `tests` against the base."""

    weight: float
    metrics: Mapping[str, Estimate]
    tests: Tests = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        return {
            "weight": self.weight,
            "metrics": {name: estimate.as_json() for name, estimate in self.metrics.items()},
            "tests": {name: test.as_json() for name, test in self.tests.items()},
        }
