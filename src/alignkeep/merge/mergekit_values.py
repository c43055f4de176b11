"""The parameters of mergekit's methods, and what a setting in its file says about one tensor.

Source
    The behaviour of mergekit 0.1.5 (its `config`, `parameter_resolver`, `plan` and method files).

A setting is a number or truth value; a gradient, which is a list of them spread evenly over the layers; or a list of
`{filter, value}`, of which the first counts whose filter is a part of the tensor's name (`*` or none: of any name).
Numbers of a gradient are interpolated at the tensor's position, of truth values the last one passed is taken.

Position: `layer / (layers - 1)`, and 1 in a model of one layer. What lies outside the layers (embeddings, final norm,
head) has position 0, the first value of a gradient.

Departures from mergekit
    1. Tensors and their names are those on disk. mergekit filters by the names in its architecture tables, or by those
       that transformers gives in memory, where the experts of a layer are one tensor.
    2. A layer is the first number between dots in a name (`model.layers.3.mlp`), and layers are counted for each text
       before it, as mergekit does for a model that it has no table of. That gives the positions of its tables, too,
       except in the vision mergers of Qwen2-VL and in Phi's first layout, and where a checkpoint holds layers that its
       config does not count.
    3. Shares (density, gamma, epsilon) outside [0, 1] and numbers that are not finite are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import yaml
from pydantic import TypeAdapter

from alignkeep.errors import RecipeError
from alignkeep.settings import Key, Settings

_LAYER = re.compile(r"\.(\d+)\.")
_NUMBER, _TRUTH = TypeAdapter(float), TypeAdapter(bool)


class Parameter(NamedTuple):
    """What a method wants to know: `of` the whole file, of every model, or of every model but the base.

    Without a default it has to be given. A share lies in [0, 1].
    """

    of: Literal["file", "models", "tuned"]
    kind: Literal["number", "share", "truth"]
    default: float | bool | None = None


def _task_vectors(*, normalize: bool = False, rescale: bool = False, **more: float) -> dict[str, Parameter]:
    return {
        "weight": Parameter("tuned", "number"),
        "density": Parameter("tuned", "share", 1.0),
        **{name: Parameter("tuned", "share", default) for name, default in more.items()},
        "normalize": Parameter("file", "truth", normalize),
        "rescale": Parameter("file", "truth", rescale),
        "lambda": Parameter("file", "number", 1.0),
        "int8_mask": Parameter("file", "truth", False),
    }


PARAMETERS: dict[str, dict[str, Parameter]] = {
    "linear": {"weight": Parameter("models", "number"), "normalize": Parameter("file", "truth", True)},
    "slerp": {"t": Parameter("file", "number")},
    "nuslerp": {
        "weight": Parameter("tuned", "number"),
        "nuslerp_row_wise": Parameter("file", "truth", False),
        "nuslerp_flatten": Parameter("file", "truth", True),
    },
    "model_stock": {"filter_wise": Parameter("file", "truth", False)},
    "task_arithmetic": _task_vectors(),
    "ties": _task_vectors(normalize=True),
    "dare_linear": _task_vectors(rescale=True),
    "dare_ties": _task_vectors(rescale=True),
    "della": _task_vectors(normalize=True, rescale=True, epsilon=0.15),
    "della_linear": _task_vectors(rescale=True, epsilon=0.15),
    "breadcrumbs": _task_vectors(gamma=0.01),
    "breadcrumbs_ties": _task_vectors(gamma=0.01),
}
# Parameters of some method: another method ignores them, as mergekit does, and the reader says so.
KNOWN = tuple(dict.fromkeys(name for table in PARAMETERS.values() for name in table))


@dataclass(frozen=True, slots=True)
class Choice:
    """A value (one) or a gradient (several) for the tensors whose name holds `filter`; None and `*` are for all."""

    values: tuple[float | bool, ...]
    filter: str | None = None

    def fits(self, name: str) -> bool:
        return self.filter is None or self.filter == "*" or self.filter in name

    def at(self, position: float) -> float | bool | None:
        """The value at a position in [0, 1]; None for an empty gradient."""
        if not self.values:
            return None
        place = position * (len(self.values) - 1)
        below = int(place)
        if isinstance(self.values[below], bool):
            return self.values[below]
        share = place - below
        above = self.values[min(below + 1, len(self.values) - 1)]
        return (1 - share) * self.values[below] + share * above


@dataclass(frozen=True, slots=True)
class Setting:
    """A parameter as one place of the file gives it, and that place, for messages."""

    choices: tuple[Choice, ...]
    where: str = ""

    def at(self, name: str, position: float) -> float | bool | None:
        """The value of the first choice that fits the tensor; None where none does."""
        return next((choice.at(position) for choice in self.choices if choice.fits(name)), None)


Refuse = Callable[[Sequence[str], object, str], Exception]  # (key below the setting, what stands there, what should)


def resolve(parameter: Parameter, settings: Iterable[Setting], name: str, position: float) -> float | bool | None:
    """The value in the first of `settings` (strongest first) that has one for the tensor, else the default."""
    values = (setting.at(name, position) for setting in settings)
    return next((value for value in values if value is not None), parameter.default)


def layer_positions(names: Iterable[str]) -> dict[str, float]:
    """The position of every tensor in [0, 1], as the head of this file defines it."""
    layers: dict[str, tuple[str, int]] = {}
    last: dict[str, int] = {}
    positions: dict[str, float] = {}
    for name in names:
        positions[name] = 0.0
        if found := _LAYER.search(name):
            stack, layer = name[: found.start()], int(found.group(1))
            layers[name] = stack, layer
            last[stack] = max(last.get(stack, 0), layer)
    for name, (stack, layer) in layers.items():
        positions[name] = layer / last[stack] if last[stack] else 1.0
    return positions


def read_choices(parameter: Parameter, given: object, refuse: Refuse) -> tuple[Choice, ...]:
    """The choices of a setting as it stands in the file. Raises what `refuse` makes where it is none."""
    if isinstance(given, Mapping):
        return (_choice(parameter, given, refuse, ()),)
    if isinstance(given, list) and any(isinstance(entry, Mapping) for entry in given):
        return tuple(_choice(parameter, entry, refuse, (str(index),)) for index, entry in enumerate(given))
    return (Choice(_values(parameter, given, refuse, ())),)


def _choice(
    parameter: Parameter,
    given: object,
    refuse: Refuse,
    key: tuple[str, ...],
) -> Choice:
    if not isinstance(given, Mapping) or "value" not in given:
        raise refuse(key, given, "a value, with or without a filter")
    for name in given:
        if name not in {"value", "filter"}:
            raise refuse((*key, str(name)), given[name], "filter and value, and nothing else")
    text = given.get("filter")
    if text is not None and not isinstance(text, str):
        raise refuse((*key, "filter"), text, "a part of a tensor's name, as text")
    return Choice(_values(parameter, given["value"], refuse, (*key, "value")), text)


def _values(
    parameter: Parameter,
    given: object,
    refuse: Refuse,
    key: tuple[str, ...],
) -> tuple[float | bool, ...]:
    entries = given if isinstance(given, list) else [given]
    values: list[float | bool] = []
    for entry in entries:
        try:
            value = _TRUTH.validate_python(entry) if parameter.kind == "truth" else _NUMBER.validate_python(entry)
        except (ValueError, OverflowError):
            value = math.nan
        if not math.isfinite(value) or (parameter.kind == "share" and not 0 <= value <= 1):
            expected = {"number": "a number", "share": "a number in [0, 1]", "truth": "true or false"}[parameter.kind]
            raise refuse(key, entry, expected + ", or a list of them (a gradient over the layers)")
        values.append(value)
    return tuple(values)


def note_lines_in_lists(node: yaml.Node, key: Key, settings: Settings, seen: set[int]) -> None:
    """Give `settings` the lines of what stands in lists, where it does not look. Raises RecipeError for a key given
    twice there.
    """
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, entry in enumerate(node.value):
            place = (*key, str(index))
            settings.origins.setdefault(place, f"{settings.source}:{entry.start_mark.line + 1}")
            note_lines_in_lists(entry, place, settings, seen)
    elif isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for name, value in node.value:
            place = (*key, str(name.value))
            line = f"{settings.source}:{name.start_mark.line + 1}"
            if str(name.value) in names:
                raise RecipeError(
                    f"{'.'.join(place)} ({line})",
                    seen=f"a key that was given at {settings.origins[place]} already",
                    expected="every key once",
                    remedy="remove one of the two",
                )
            names.add(str(name.value))
            settings.origins.setdefault(place, line)
            note_lines_in_lists(value, place, settings, seen)
