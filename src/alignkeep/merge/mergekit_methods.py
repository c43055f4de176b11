"""What a file in mergekit's format asks for, as methods of ours, and the file that describes a merge of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import yaml

from alignkeep.errors import RecipeError
from alignkeep.merge.arcs import NuSlerp, Slerp
from alignkeep.merge.linear import Linear
from alignkeep.merge.mergekit_values import PARAMETERS, Setting, layer_positions, resolve
from alignkeep.merge.method import TensorMerge
from alignkeep.merge.model_stock import ModelStock
from alignkeep.merge.sparsify import Magnitude, Outliers, Random, RankedRandom, Sparsifier
from alignkeep.merge.task_vectors import TaskVectors

_LARGEST = 3.4e38  # of float32
_CANCELLED = 1e-12  # share of the largest weight below which a sum is rounding alone (chosen)
OUR_NAMES = {"dare_linear": "dare"}  # the others are called the same
FAMILIES: dict[
    str, tuple[type[Sparsifier] | None, Literal["sum"] | None]
] = {  # what is dropped how, and whether signs are agreed upon
    "task_arithmetic": (None, None),
    "ties": (Magnitude, "sum"),
    "dare_linear": (Random, None),
    "dare_ties": (Random, "sum"),
    "della_linear": (RankedRandom, None),
    "della": (RankedRandom, "sum"),
    "breadcrumbs": (Outliers, None),
    "breadcrumbs_ties": (Outliers, "sum"),
}


@dataclass(frozen=True, slots=True)
class MergekitFile:
    """What a file in mergekit's format asks for.

    `base` and `tuned` are folders, hub ids or `testbed:` references; `merge_method` is mergekit's name of the method;
    `dtype` is the one the output is to have, None for the base's own. `notes` say what a reader may not expect.
    The parameters are read with `rule`, which knows their precedence: a model's own, the file's, the method's default.
    """

    source: str
    base: str
    tuned: tuple[str, ...]
    base_is_named: bool
    merge_method: str
    parameters: Mapping[str, Setting]
    own_parameters: tuple[Mapping[str, Setting], ...]  # of the base, then of the tuned models
    dtype: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The method's name among ours."""
        return OUR_NAMES.get(self.merge_method, self.merge_method)

    def rule(self, names: Sequence[str], *, seed: int = 0) -> Callable[[str], TensorMerge]:
        """The method for each of the tensors `names`, which have to be all of the model: they tell its layers.

        Raises RecipeError where a tensor is left without a value, or with values that make no merge.
        """
        positions = layer_positions(names)
        methods = {name: _Values(self, name, positions[name]).method(seed) for name in names}
        return methods.__getitem__

    def idle_filters(self, names: Sequence[str]) -> tuple[str, ...]:
        """Filters that fit none of the tensors: misspelt, most likely."""
        groups = (self.parameters, *self.own_parameters)
        choices = [choice for group in groups for setting in group.values() for choice in setting.choices]
        idle = [choice.filter for choice in choices if not any(choice.fits(name) for name in names)]
        return tuple(dict.fromkeys(text for text in idle if text is not None))


@dataclass(frozen=True, slots=True)
class _Values:
    """The values that a file has for one tensor."""

    file: MergekitFile
    name: str
    position: float

    def method(self, seed: int) -> TensorMerge:
        match self.file.merge_method:
            case "linear":
                return self._linear()
            case "slerp":
                return Slerp(self._value("t"))
            case "nuslerp":
                return self._nuslerp()
            case "model_stock":
                return ModelStock()
            case _:
                return self._task_vectors(seed)

    def _linear(self) -> Linear:
        weights = self._weights(first=0)
        if not self._value("normalize"):
            return Linear(weights)
        whole = sum(weights)
        if abs(whole) <= _CANCELLED * max(map(abs, weights)):
            raise self._refusal("weight", "weights that sum to 0", "a sum to divide by", "or set normalize: false")
        return Linear(tuple(weight / whole for weight in weights))

    def _nuslerp(self) -> NuSlerp:
        one, other = self._weights(first=1 if self.file.base_is_named else 0)
        whole = one + other
        return NuSlerp(
            t=0.5 if abs(whole) < 1e-6 else other / whole,  # the bound is mergekit's
            over_base=self.file.base_is_named,
            row_wise=bool(self._value("nuslerp_row_wise")),
            flatten=bool(self._value("nuslerp_flatten")),
        )

    def _task_vectors(self, seed: int) -> TaskVectors:
        weights = self._weights(first=1)
        return TaskVectors(
            weights=weights,
            sparsify=tuple(self._sparsifier(model, seed) for model in range(1, 1 + len(weights))),
            consensus=FAMILIES[self.file.merge_method][1],
            normalize=bool(self._value("normalize")),
            scale=self._value("lambda"),
        )

    def _sparsifier(self, model: int, seed: int) -> Sparsifier | None:
        kind, _ = FAMILIES[self.file.merge_method]
        if kind is None:
            return None
        density = self._value("density", model)
        rescale: Literal["l1"] | None = "l1" if self._value("rescale") else None
        if kind is Magnitude:
            return Magnitude(density, rescale)
        if kind is Outliers:
            return Outliers(density, self._value("gamma", model), rescale)
        if kind is Random:
            return Random(density, rescale, seed)
        try:
            return RankedRandom(density, self._value("epsilon", model), rescale, seed)
        except ValueError as error:
            raise self._refusal(
                "epsilon", str(error), "epsilon at most density and 1 - density", "take a smaller epsilon", model
            ) from error

    def _values(self, parameter: str, *, first: int) -> tuple[float, ...]:
        return tuple(self._value(parameter, model) for model in range(first, 1 + len(self.file.tuned)))

    def _weights(self, *, first: int) -> tuple[float, ...]:
        """Of the models from `first` on. Raises RecipeError where float32, in which merges are made, cannot hold them
        or their sum."""
        weights = self._values("weight", first=first)
        if sum(map(abs, weights)) > _LARGEST:
            raise self._refusal(
                "weight", f"weights as large as {max(map(abs, weights)):g}", "weights whose sum float32 can hold",
                "divide all of them by the largest",
            )  # fmt: skip
        return weights

    def _settings(self, parameter: str, model: int | None) -> tuple[Setting, ...]:
        """Strongest first: the model's own, the file's."""
        own = None if model is None else self.file.own_parameters[model].get(parameter)
        return tuple(one for one in (own, self.file.parameters.get(parameter)) if one is not None)

    def _value(self, parameter: str, model: int | None = None) -> float:
        settings = self._settings(parameter, model)
        value = resolve(PARAMETERS[self.file.merge_method][parameter], settings, self.name, self.position)
        if value is None:
            seen = "no value" if model is None else f"no value of {(self.file.base, *self.file.tuned)[model]}"
            remedy = "add one without a filter, last"
            raise self._refusal(parameter, seen, "one for every tensor", remedy, model)
        return value

    def _refusal(self, parameter: str, seen: str, expected: str, remedy: str, model: int | None = None) -> RecipeError:
        places = [setting.where for setting in self._settings(parameter, model)]
        where = next(iter(places), f"{parameter} ({self.file.source})")
        return RecipeError(where, seen=f"{seen} (tensor {self.name})", expected=expected, remedy=remedy)


class _Description(NamedTuple):
    """A method as mergekit names it. `own` are parameters of the tuned models, or of the base and the tuned ones."""

    merge_method: str
    own: tuple[Mapping[str, float], ...]
    parameters: Mapping[str, float]
    base_is_named: bool = True


def write_mergekit(method: TensorMerge, *, base: str, tuned: Sequence[str], dtype: str | None = None) -> str | None:
    """The file that has mergekit do the same to every tensor, as text; None where mergekit has no such method.

    Law: read back, it gives an equal method (with the same seed, which such a file does not hold). `dtype` is the one
    of the output. There is none for a subspace, for what was dropped and made up for by probability (mergekit's rescale
    is l1), for task vectors thinned out in different ways, and for ways to thin out that it does not combine.
    """
    described = _described(method, len(tuned))
    if described is None:
        return None
    listed = [base, *tuned][-len(described.own) :]
    models: list[dict[str, object]] = [
        {"model": _reference(model)} | ({"parameters": dict(own)} if own else {})
        for model, own in zip(listed, described.own, strict=True)
    ]
    file: dict[str, object] = {"merge_method": described.merge_method}
    if described.base_is_named:
        file["base_model"] = _reference(base)
    file["models"] = models
    if described.parameters:
        file["parameters"] = dict(described.parameters)
    if dtype is not None:
        file |= {"dtype": "float32", "out_dtype": dtype}
    return yaml.dump(file, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31)


def _described(method: TensorMerge, tuned: int) -> _Description | None:
    match method:
        case Linear():
            own = tuple({"weight": weight} for weight in method.weights)
            return _Description("linear", own, {"normalize": False})
        case Slerp():
            return _Description("slerp", ({},), {"t": method.t})
        case NuSlerp():
            flags = {"nuslerp_row_wise": method.row_wise, "nuslerp_flatten": method.flatten}
            own = ({"weight": 1 - method.t}, {"weight": method.t})
            return _Description("nuslerp", own, flags, base_is_named=method.over_base)
        case ModelStock():
            return _Description("model_stock", ({},) * tuned, {})
        case TaskVectors():
            return _described_task_vectors(method)
        case _:
            return None


def _described_task_vectors(method: TaskVectors) -> _Description | None:
    kinds = {None if one is None else type(one) for one in method.sparsify}
    rescales = {None if one is None else one.rescale for one in method.sparsify}
    if len(kinds) != 1 or len(rescales) != 1 or not rescales <= {None, "l1"}:
        return None
    family = (kinds.pop(), method.consensus)
    name = next((name for name, known in FAMILIES.items() if known == family), None)
    if name is None:
        return None
    own = tuple(
        {"weight": weight} | {key: getattr(one, key) for key in ("density", "gamma", "epsilon") if hasattr(one, key)}
        for weight, one in zip(method.weights, method.sparsify, strict=True)
    )
    shared = {"normalize": method.normalize, "rescale": rescales == {"l1"}, "lambda": method.scale}
    return _Description(name, own, shared)


class _Quoted(str):
    """Text that is always quoted, so that no loader takes a folder called 1e5 for a number."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Quoted, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, '"'))


def _reference(model: str) -> object:
    """A model as mergekit reads it: `+` and `@` have a meaning in its short form."""
    return {"model": {"path": _Quoted(model)}} if "+" in model or "@" in model else _Quoted(model)
