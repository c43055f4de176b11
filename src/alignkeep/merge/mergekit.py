"""Files in mergekit's format: what `mergekit-yaml` would merge, as base, tuned models and methods of ours.

    merge_method: ties
    base_model: path-or-hub-id
    models:
      - model: path-or-hub-id
        parameters: {weight: [0.2, 0.8], density: 0.5}     # a gradient over the layers
    parameters: {normalize: true}

Source
    The behaviour of mergekit 0.1.5. What its settings mean for a tensor stands in `mergekit_values.py`.

Departures from mergekit
    1. What it ignores in silence is refused (unknown keys, parameters of the whole file given for one model) or said in
       the notes (parameters of other methods, those of a base that has none).
    2. Arithmetic is in float32 and rounded once; `dtype` and `out_dtype` say what the output is to be, no more.
    3. Without `base_model` the first model is the base: it gives config, tokenizer and chat template.
    4. A relative path is one from the file's folder where that exists, else as given.
    5. Whole models only: no slices, modules, tokenizer surgery, `model+adapter` or `model@revision`.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from alignkeep.errors import RecipeError
from alignkeep.merge.mergekit_methods import OUR_NAMES, MergekitFile
from alignkeep.merge.mergekit_values import KNOWN, PARAMETERS, Parameter, Setting, note_lines_in_lists, read_choices
from alignkeep.settings import Key, Settings, nearest

_KEYS = (
    "merge_method", "base_model", "models", "parameters", "dtype", "out_dtype", "tokenizer_source", "tokenizer",
    "chat_template",
)  # fmt: skip
_OTHER_METHODS = ("arcee_fusion", "karcher", "multislerp", "nearswap", "passthrough", "ram", "ramplus_tl", "sce")
_OTHER_FORMATS = {
    "slices": "list whole models under models",
    "modules": "list whole models under models",
    "layer_range": "leave it out: all layers are merged",
    **dict.fromkeys(("experts", "gate_mode", "experts_per_token"), "make mixtures of experts with mergekit-moe"),
}
_WITHOUT_BASE = ("linear", "nuslerp")
_DTYPES = ("bfloat16", "float16", "float32")
_show = reprlib.Repr()
_show.maxstring = _show.maxother = 80


def read_mergekit(path: Path) -> MergekitFile:
    """The merge that a file asks for.

    Raises RecipeError naming key, line, what was seen and what to do: for what is no such file, for methods, keys and
    parameters that do not exist, and for what is mergekit's but not ours.
    """
    return _Reader(path).file()


class _Entry(NamedTuple):
    """A model of the file: where it stands, and its parameters as they stand there."""

    key: Key
    parameters: object = None


class _Reader:
    """Goes through a file once and collects notes on the way."""

    def __init__(self, path: Path) -> None:
        self._settings = Settings.read(path)
        self._folder = path.parent
        self._notes: list[str] = []
        node = self._settings.document.node
        if node is not None:
            note_lines_in_lists(node, (), self._settings, set())
        self._check_keys(self._settings.values, (), _KEYS)
        self._name = self._merge_method()

    def file(self) -> MergekitFile:
        values = self._settings.values
        named = self._reference(("base_model",), values["base_model"]) if values.get("base_model") is not None else None
        entries = self._models(named)
        base = next(iter(entries)) if named is None else named
        tuned = tuple(model for model in entries if model != base)
        self._check_count(len(tuned), named is not None)
        if named is None:
            self._notes.append(f"no base_model: config, tokenizer and chat template are the first model's, {base}")
        scopes = {model: {"models", "tuned"} for model in entries}
        if named is not None:
            scopes[base] = {"models"}
        shared = self._parameters(("parameters",), values.get("parameters"), {"file", "models", "tuned"})
        own = {
            model: self._parameters((*entry.key, "parameters"), entry.parameters, scopes[model])
            for model, entry in entries.items()
        }
        self._check_required(entries, scopes, shared, own)
        self._check_tokenizer(base)
        return MergekitFile(
            source=self._settings.source,
            base=base,
            tuned=tuned,
            base_is_named=named is not None,
            merge_method=self._name,
            parameters=shared,
            own_parameters=tuple(own[model] for model in (base, *tuned)),
            dtype=self._dtype(),
            notes=tuple(self._notes),
        )

    def _refusal(self, key: Sequence[str], seen: str, expected: str, remedy: str) -> RecipeError:
        return RecipeError(self._settings.where(key), seen=seen, expected=expected, remedy=remedy)

    def _check_keys(self, given: Mapping[str, object], above: Key, known: Sequence[str]) -> None:
        for name in map(str, given):
            if name in _OTHER_FORMATS:
                raise self._refusal((*above, name), f"the key {name}", "a merge of whole models", _OTHER_FORMATS[name])
            if name not in known:
                remedy = "move it under parameters" if name in KNOWN else _did_you_mean(name, known)
                raise self._refusal((*above, name), "an unknown key", "one of " + ", ".join(known), remedy)

    def _merge_method(self) -> str:
        name = self._settings.values.get("merge_method")
        if isinstance(name, str) and name in PARAMETERS:
            return name
        word = name if isinstance(name, str) else ""
        theirs = next((theirs for theirs, ours in OUR_NAMES.items() if ours == word), None)
        remedy = f"did you mean {theirs}?" if theirs else _did_you_mean(word, PARAMETERS)
        if word in _OTHER_METHODS:
            remedy = "merge with mergekit itself"
        raise self._refusal(
            ("merge_method",),
            "nothing" if name is None else _show.repr(name),
            "one of " + ", ".join(PARAMETERS),
            remedy,
        )

    def _models(self, base: str | None) -> dict[str, _Entry]:
        given = self._settings.values.get("models")
        if not isinstance(given, list) or not given:
            raise self._refusal(
                ("models",),
                "nothing" if given is None else _show.repr(given),
                "a list of models",
                "write models: and below it a line - model: PATH for every one",
            )
        entries: dict[str, _Entry] = {}
        for index, entry in enumerate(cast("list[object]", given)):
            key = ("models", str(index))
            if not isinstance(entry, Mapping):
                raise self._refusal(key, _show.repr(entry), "model: PATH (and parameters)", "write it so")
            self._check_keys(entry, key, ("model", "parameters"))
            model = self._reference((*key, "model"), entry.get("model"))
            if model in entries:
                raise self._refusal((*key, "model"), f"{model} again", "every model once", "remove one of the two")
            entries[model] = _Entry(key, entry.get("parameters"))
        if base is not None and base not in entries:
            entries[base] = _Entry(("base_model",))
        return entries

    def _reference(self, key: Key, given: object) -> str:
        long = given.get("model") if isinstance(given, Mapping) and list(given) == ["model"] else None
        if isinstance(long, Mapping) and list(long) == ["path"]:
            given = long["path"]  # mergekit's form for paths with signs that mean something in the short one
        if not isinstance(given, str) or not given:
            seen = "nothing" if given is None else _show.repr(given)
            raise self._refusal(key, seen, "a folder or a hub id", "name the model, in quotes")
        path = os.path.expanduser(given)
        if os.path.isabs(path):
            found = path
        else:
            beside = os.path.join(self._folder, path)
            found = str(Path(beside).resolve()) if os.path.exists(beside) else path
        if long is not None or os.path.exists(found):
            return found
        for sign, what, remedy in (
            ("+", "a model with an adapter on it", "name the adapter's folder alone: it says what its base is"),
            ("@", "a revision", "download it and name its folder"),
        ):
            if sign in given:
                raise self._refusal(key, f"{given}, {what} (there is no such folder)", "a folder or a hub id", remedy)
        return found

    def _check_count(self, tuned: int, base_is_named: bool) -> None:
        if not base_is_named and self._name not in _WITHOUT_BASE:
            raise self._refusal(
                ("base_model",), "nothing", f"the model that {self._name} starts from", "write base_model: PATH"
            )
        exactly = {"slerp": 1, "nuslerp": 2 if base_is_named else 1}.get(self._name)
        least = 2 if self._name == "model_stock" else 1
        if tuned < least or (exactly is not None and tuned != exactly):
            expected = f"at least {least}" if exactly is None else f"{exactly}"
            raise self._refusal(
                ("models",),
                f"{tuned} models beside the base",
                f"{expected} for {self._name}" + ("" if base_is_named else " without base_model"),
                "add or remove models",
            )

    def _parameters(self, key: Key, given: object, scopes: set[str]) -> dict[str, Setting]:
        """The settings of one place in the file, where parameters of these `scopes` have a meaning."""
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            raise self._refusal(key, _show.repr(given), "parameters with values", "write name: value")
        settings: dict[str, Setting] = {}
        for name in map(str, given):
            here, parameter = (*key, name), PARAMETERS[self._name].get(name)
            if name not in KNOWN:
                known = list(PARAMETERS[self._name])
                remedy = _did_you_mean(name, known)
                raise self._refusal(here, "an unknown parameter", f"one of {', '.join(known)} for {self._name}", remedy)
            if parameter is None:
                self._notes.append(f"{self._settings.where(here)}: {self._name} has no such parameter, ignored")
            elif parameter.of == "file" and parameter.of not in scopes:
                raise self._refusal(
                    here, f"{name} of one model", "it once, for the whole merge", "move it to the file's own parameters"
                )
            elif parameter.of not in scopes:
                self._notes.append(f"{self._settings.where(here)}: the base has none in {self._name}, ignored")
            else:
                settings[name] = self._setting(here, parameter, given[name])
        return settings

    def _setting(self, key: Key, parameter: Parameter, given: object) -> Setting:
        def refuse(below: Sequence[str], seen: object, expected: str) -> RecipeError:
            return self._refusal((*key, *below), _show.repr(seen), expected, "correct the value")

        choices = read_choices(parameter, given, refuse)
        if key[-1] == "filter_wise" and any(True in choice.values for choice in choices):
            raise self._refusal(key, "true", "a ratio for each tensor: filter_wise false", "remove it")
        return Setting(choices, self._settings.where(key))

    def _check_required(
        self,
        entries: Mapping[str, _Entry],
        scopes: Mapping[str, set[str]],
        shared: Mapping[str, Setting],
        own: Mapping[str, Mapping[str, Setting]],
    ) -> None:
        for name, parameter in PARAMETERS[self._name].items():
            if parameter.default is not None or name in shared:
                continue
            if parameter.of == "file":
                raise self._refusal(("parameters", name), "nothing", "a value", f"write parameters: {{{name}: 0.5}}")
            for model, entry in entries.items():
                if parameter.of in scopes[model] and name not in own[model]:
                    key = (*entry.key, "parameters", name)
                    raise self._refusal(key, f"no {name} of {model}", "one", f"give parameters: {{{name}: 0.5}}")

    def _check_tokenizer(self, base: str) -> None:
        """Tokenizer and chat template are the base's: anything else is refused."""
        values = self._settings.values
        for key in ("tokenizer_source", "tokenizer"):
            given = values.get(key)
            if key == "tokenizer" and isinstance(given, Mapping) and list(given) == ["source"]:
                given = given["source"]
            other = not isinstance(given, str) or given == "union" or self._reference((key,), given) != base
            if given not in (None, "base") and other:
                raise self._refusal((key,), _show.repr(given), "base: the tokenizer stays the base's", "remove the key")
        template = values.get("chat_template")
        if template == "auto":
            self._notes.append("chat_template auto: the base's, where mergekit takes the most frequent one")
        elif template is not None:
            raise self._refusal(
                ("chat_template",),
                _show.repr(template),
                "auto, or none: the chat template stays the base's",
                "remove the key (the merge's own setting chat_template can take the tuned model's)",
            )

    def _dtype(self) -> str | None:
        found: dict[str, str] = {}
        for key in ("dtype", "out_dtype"):
            given = self._settings.values.get(key)
            name = given.removeprefix("torch.") if isinstance(given, str) else given
            if isinstance(name, str) and name in _DTYPES:
                found[key] = name
            elif given is not None:
                raise self._refusal((key,), _show.repr(given), "one of " + ", ".join(_DTYPES), "remove it")
        if found.get("dtype", "float32") != "float32":
            self._notes.append(f"dtype {found['dtype']}: computed in float32 all the same, and rounded once")
        return found.get("out_dtype", found.get("dtype"))


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    name = nearest(word, list(known))
    return f"did you mean {name}?" if name else "remove it, or correct it"
