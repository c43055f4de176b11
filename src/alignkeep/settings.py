"""Settings as users write them: YAML with line numbers, `--set key=value` on top, and strict errors for both.

Every key remembers where it came from (`recipe.yaml:7`, `--set`, `command line`), so that an error names the place,
what stood there, what was expected and the nearest key that exists.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from alignkeep.bounded_yaml import LONGEST_TEXT, Document, read_yaml
from alignkeep.errors import RecipeError
from alignkeep.input_files import kind_of, read_input

Key = tuple[str, ...]
Config = TypeVar("Config", bound=BaseModel)

_EMPTY = Document(None, None)
_LONGEST_WORD = 100  # longer ones are no slip of the pen
_SHORT = {"reward": "spec", "embed": "pooling"}  # a text where a group of settings may stand is this one of them


class Checked(BaseModel):
    """A group of settings, frozen and without unknown keys. What does not fit is our error in a Python call, too:
    RecipeError, naming the key.

    A setting of a group within may stand outside of it by its own name, as it does among the options of a command
    (`max_new_tokens` for `generation.max_new_tokens`), where no other has that name; `also` are the options that are
    called otherwise, with the keys that they stand for. `positional` are the settings that a Python call takes in
    order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    also: ClassVar[Mapping[str, str]] = {}
    positional: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _as_on_the_command_line(cls, values: Any) -> Any:
        return cls.placed(values) if isinstance(values, dict) else values

    @classmethod
    def placed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The values with every such setting in its group. Raises RecipeError for one that stands in both places."""
        outside = [key for key in values if isinstance(key, str) and key not in cls.model_fields]
        places = _places(cls) if outside else {}
        for key in outside:
            path = places.get(key.replace("-", "_"))
            if path is not None:
                values = _put_into(cls, values, key, path)
        return values

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            given = Settings(dict(values), source=type(self).__name__)
            raise given.explained(type(self), error) from error

    # Pydantic goes past it when it validates a tree, whose errors then have their whole path.
    __init__.__pydantic_base_init__ = True  # pyright: ignore[reportFunctionMemberAccess]


@dataclass
class Settings:
    """A tree of values and the origin of each key."""

    values: dict[str, object] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)
    source: str = "the command line"
    document: Document = field(default=_EMPTY, repr=False)

    @classmethod
    def read(cls, path: Path) -> Settings:
        """A YAML mapping from a file. Raises RecipeError for anything else, with its line."""
        try:
            text = read_input(path, longest=LONGEST_TEXT).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                str(path),
                seen=_why_unreadable(path, error),
                expected="a YAML file in UTF-8",
                remedy=_near_files(path) or "check the path",
            ) from error
        settings = cls(source=path.name)
        settings.document = _parse(text, path.name, settings.origins)
        settings.values = cast("dict[str, object]", settings.document.value)
        return settings

    def put(self, key: str, value: object, origin: str) -> None:
        """Set a dotted key, creating the levels above it. Raises RecipeError where one of them is not a mapping."""
        parts = tuple(key.split("."))
        level: dict[str, object] = self.values
        for depth, part in enumerate(parts[:-1], 1):
            inner = level.get(part)
            if inner is None:
                inner = level[part] = {}
            elif isinstance(inner, str) and part in _SHORT:
                inner = level[part] = dict[str, object]({_SHORT[part]: inner})
            if not isinstance(inner, dict):
                raise RecipeError(
                    f"{key} ({origin})",
                    seen=f"{'.'.join(parts[:depth])} = {inner!r}",
                    expected="a group of settings there",
                    remedy=f"set {'.'.join(parts[:depth])} itself",
                )
            level = inner
        level[parts[-1]] = value
        self.origins[parts] = origin

    def put_all(self, flags: Mapping[str, object], origin: str = "command line") -> None:
        """Set every key whose value is not None."""
        for key, value in flags.items():
            if value is not None:
                self.put(key, value, origin)

    def lay(self, other: Settings) -> None:
        """Lay another tree over this one: its keys win, key by key."""
        for key, value in _leaves(other.values):
            self.put(".".join(key), value, other.origins.get(key, other.source))

    def change(self, keys: Iterable[Key], change: Callable[[str], str]) -> None:
        """Apply `change` to every text that stands at one of `keys`, alone or in a list."""
        for key in keys:
            level: object = self.values
            for part in key[:-1]:
                level = level.get(part) if isinstance(level, dict) else None
            value = level.get(key[-1]) if isinstance(level, dict) else None
            if isinstance(level, dict) and isinstance(value, str):
                level[key[-1]] = change(value)
            elif isinstance(level, dict) and isinstance(value, list):
                level[key[-1]] = [change(item) if isinstance(item, str) else item for item in value]

    def assign(self, assignments: Iterable[str]) -> None:
        """Apply `key=value` texts; the value is read as YAML, so `3`, `true`, `null`, `[a, b]` have their types."""
        for text in assignments:
            key, equals, value = text.partition("=")
            if not equals or not key.strip() or not all(key.strip().split(".")):
                raise RecipeError(
                    "--set", seen=repr(text), expected="key=value", remedy="write for example --set train.epochs=2"
                )
            self.put(key.strip(), _scalar(value, text), "--set")

    def build(self, cls: type[Config]) -> Config:
        """The values as a `cls`. Raises RecipeError for the first thing that does not fit."""
        self._refuse_unspeakable(self.values, ())
        try:
            return cls.model_validate(self.values)
        except ValidationError as error:
            raise self.explained(cls, error) from error

    def _refuse_unspeakable(self, value: object, key: Key) -> None:
        """Raises RecipeError for text that no file system, tokenizer or terminal takes."""
        if isinstance(value, Mapping):
            for name, inner in value.items():
                self._refuse_unspeakable(inner, (*key, str(name)))
        elif isinstance(value, (list, tuple)):
            for index, inner in enumerate(value):
                self._refuse_unspeakable(inner, (*key, str(index)))
        elif isinstance(value, str) and ("\0" in value or not is_whole_text(value)):
            raise RecipeError(
                self.where(key), seen=_short(value), expected="text without NUL or half a character",
                remedy="correct the value, or rename the file that it names",
            )  # fmt: skip

    def where(self, key: Sequence[str]) -> str:
        """`train.epochs (recipe.yaml:7)`: a key and its origin, or the nearest group that has one."""
        for length in range(len(key), 0, -1):
            if tuple(key[:length]) in self.origins:
                return f"{'.'.join(key)} ({self.origins[tuple(key[:length])]})"
        return f"{'.'.join(key)} ({self.source})"

    def explained(self, cls: type[BaseModel], error: ValidationError) -> RecipeError:
        """The first thing that does not fit, in our form."""
        errors = error.errors()
        # An unknown key first: a misspelt one often explains the missing one.
        first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
        loc = tuple(str(part) for part in first["loc"])
        key = loc if first["type"] in {"extra_forbidden", "missing"} else self.existing(loc)
        others = [_briefly(self, cls, one) for one in errors if one is not first]
        more = f"; and {'; '.join(dict.fromkeys(others))}" if others else ""
        if first["type"] == "extra_forbidden":
            known = _fields(cls, key[:-1])
            return RecipeError(
                self.where(key),
                seen="an unknown key",
                expected="one of " + ", ".join(known),
                remedy=_did_you_mean(key[-1], known) + more,
            )
        missing = first["type"] == "missing"
        message = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
        return RecipeError(
            self.where(key),
            seen="nothing" if missing else _short(first["input"]),
            expected="a value" if missing else message,
            remedy=("give it" if missing else _remedy_for(first)) + more,
        )

    def existing(self, loc: Key) -> Key:
        """The part of pydantic's location that is a key of ours (it appends the names of union branches)."""
        level: object = self.values
        for depth, part in enumerate(loc):
            if not isinstance(level, Mapping) or part not in level:
                return loc[: max(depth, 1)]
            level = level[part]
        return loc


def described(options: type[BaseModel]) -> list[str]:
    """Every setting of a group with its default and what it means: lines for a reader. What a field does not say of
    itself stands in the docstring of its class."""
    lines = []
    for name, known in options.model_fields.items():
        default = "must be given" if known.is_required() else known.get_default(call_default_factory=True)
        lines.append(f"{name} ({default})" + (f": {known.description}" if known.description else ""))
    return lines


def is_whole_text(text: str) -> bool:
    """Whether every character is a whole one: a file's name that is no UTF-8, or JSON, can hold halves."""
    return not any("\ud800" <= one <= "\udfff" for one in text)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was most likely meant to be, None where none is close."""
    if len(word) > _LONGEST_WORD:
        return None
    known = list(known)
    matches = difflib.get_close_matches(word.lower(), {name.lower(): name for name in known}, n=1, cutoff=0.6)
    near = next((name for name in known if matches and name.lower() == matches[0]), None)
    return near or next((name for name in known if word.lower() == _initials(name)), None)


class Described(NamedTuple):
    """One setting: its dotted key, what may stand there, its default (None: it has to be given), what it means."""

    key: str
    kind: str
    default: str | None
    meaning: str


def described_settings(cls: type[BaseModel], above: str = "") -> Iterator[Described]:
    """Every setting of a config and of the groups in it, in their order. What one means is its field's description, or
    the first sentence of the group's docstring that names it."""
    for name, known in cls.model_fields.items():
        group = _group_in(known.annotation)
        if group is not None and group.model_fields:
            yield from described_settings(group, f"{above}{name}.")
            continue
        default = None if known.is_required() else known.get_default(call_default_factory=True)
        shown = None if known.is_required() else "none" if default is None else str(default)
        meaning = known.description or _sentence_on(name, cls.__doc__ or "")
        yield Described(f"{above}{name}", _kind_words(known.annotation), shown, meaning)


def _group_in(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that an annotation allows, alone or beside None and short forms."""
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _kind_words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_kind_words(one) for one in get_args(annotation) if one is not NoneType)
    words = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything"}
    if get_origin(annotation) in (tuple, list):
        return f"list of {_kind_words(get_args(annotation)[0])}"
    return words.get(annotation, "keys and values")


def _sentence_on(name: str, text: str) -> str:
    """The first sentence that names a setting, without line breaks; nothing where none does."""
    sentences = re.split(r"(?<=\.)\s+(?=[`A-Z])", " ".join(text.split()))
    return next((one for one in sentences if re.search(rf"`(\w+\.)?{name}`", one)), "")


@cache
def _places(cls: type[Checked]) -> dict[str, Key]:
    """Where a setting of a group within belongs, by its own name: the nearest one, where one alone is nearest."""
    found: dict[str, Key] = {name: tuple(key.split(".")) for name, key in cls.also.items()}
    level: list[tuple[Key, type[BaseModel]]] = [((), cls)]
    while level:
        inner = [
            ((*above, name), group) for above, one in level for name, known in one.model_fields.items()
            if (group := _group_in(known.annotation)) is not None
        ]  # fmt: skip
        names = [(name, (*above, name)) for above, one in inner for name in one.model_fields]
        for name, path in names:
            if [one for one, _ in names].count(name) == 1 and name not in cls.model_fields:
                found.setdefault(name, path)
        level = inner
    return found


def _put_into(cls: type[Checked], values: dict[str, Any], key: str, path: Key) -> dict[str, Any]:
    """A copy of the values in which what stands at `key` stands at `path`."""
    values = dict(values)
    value, level = values.pop(key), values
    for depth, part in enumerate(path[:-1]):
        inner = level.get(part)
        if isinstance(inner, BaseModel):
            inner = inner.model_dump(exclude_unset=True)
        elif isinstance(inner, str) and part in _SHORT:
            inner = {_SHORT[part]: inner}
        if inner is not None and not isinstance(inner, dict):
            raise RecipeError(key, seen=f"it beside {'.'.join(path[: depth + 1])} = {inner!r}", expected="one of them",
                              remedy=f"write {'.'.join(path)}")  # fmt: skip
        level[part] = dict(inner or {})
        level = level[part]
    if path[-1] in level:
        raise RecipeError(key, seen=f"it and {'.'.join(path)}, which are one setting of {cls.__name__}",
                          expected="one of them", remedy="remove the other")  # fmt: skip
    level[path[-1]] = value
    return values


def _initials(name: str) -> str:
    return "".join(part[:1] for part in re.split(r"[_-]+", name.strip("-")))


def _briefly(settings: Settings, cls: type[BaseModel], error: ErrorDetails) -> str:
    """A further mistake in a few words."""
    loc = tuple(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = nearest(loc[-1], _fields(cls, loc[:-1]))
        return f"{settings.where(loc)} is unknown" + (f" (did you mean {near}?)" if near else "")
    if error["type"] == "missing":
        return f"{settings.where(loc)} is missing"
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{settings.where(settings.existing(loc))} is {_short(error['input'])}, not {message}"


def _leaves(values: Mapping[str, object], above: Key = ()) -> Iterator[tuple[Key, object]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    name = nearest(word, known)
    return f"did you mean {name}?" if name else "remove it"


def _remedy_for(error: ErrorDetails) -> str:
    expected = str((error.get("ctx") or {}).get("expected", ""))
    name = nearest(str(error["input"]), re.findall(r"'([^']+)'", expected))
    return f"did you mean {name}?" if name else "correct the value"


def _fields(cls: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Names of the settings that exist under `path`."""
    current = cls
    for part in path:
        if part.isdigit():  # an item of a list, whose group was found one step before
            continue
        annotation = current.model_fields[part].annotation
        for option in (annotation, *get_args(annotation)):
            if isinstance(option, type) and issubclass(option, BaseModel):
                current = option
    return list(current.model_fields)


def _short(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 1000:  # Python spells no number of thousands of digits
        return f"a number of some {value.bit_length() * 3 // 10} digits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _scalar(value: str, text: str) -> object:
    try:
        return read_yaml(value).value
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(
            f"--set {text[:80]}",
            seen=problem,
            expected="key=value with a YAML value",
            remedy="quote the value",
        ) from error


def _parse(text: str, name: str, origins: dict[Key, str]) -> Document:
    try:
        document = read_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise RecipeError(
            f"{name}:{mark.line + 1}" if mark else name,
            seen=str(getattr(error, "problem", None) or error),
            expected="valid YAML",
            remedy="correct that line (indent with spaces, quote text that holds ': ' or starts with a sign)",
        ) from error
    if not isinstance(document.node, yaml.MappingNode):
        raise RecipeError(
            name,
            seen="an empty file" if document.node is None else "something else than keys and values",
            expected="a YAML mapping (key: value)",
            remedy="write one key per line",
        )
    _note_lines(document.node, (), name, origins, set())
    return document


def _note_lines(node: yaml.MappingNode, above: Key, name: str, origins: dict[Key, str], seen: set[int]) -> None:
    """Remember the line of every key. Raises RecipeError for a key given twice, or one that is not text."""
    if id(node) in seen:
        return
    seen.add(id(node))
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = (*above, str(key_node.value))
        if key_node.tag not in {"tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"}:
            raise RecipeError(f"{name}:{line}", seen=f"the key {key[-1]!r}", expected="text as key", remedy="quote it")
        if key in origins:
            raise RecipeError(
                f"{'.'.join(key)} ({name}:{line})",
                seen=f"a key that was given at {origins[key]} already",
                expected="every key once",
                remedy="remove one of the two",
            )
        origins[key] = f"{name}:{line}"
        if isinstance(value_node, yaml.MappingNode):
            _note_lines(value_node, key, name, origins, seen)


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"a byte that is not UTF-8 at offset {error.start}"
    return kind_of(path) or str(getattr(error, "strerror", None) or error)


def _near_files(path: Path) -> str | None:
    if path.exists() or not path.parent.is_dir():
        return None
    name = nearest(path.name, sorted(entry.name for entry in path.parent.iterdir()))
    return f"did you mean {path.parent / name}?" if name else None
