"""Suites: the prompts of an evaluation, each with a kind that says which rate its answer counts for.

driftcheck               our own set, shipped with the package (docs/driftcheck.md)
testbed                  the test prompts of the micro world, with attacks in its own small vocabulary
FILE.yaml                {name, description, prompts: [{file, kind, category, language}, ...]}, files beside it
package.module:object    prompts, a Suite, or a function that returns one of the two
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from types import BuiltinFunctionType

from pydantic import BaseModel, ConfigDict, Field

from alignkeep.data import read_prompts
from alignkeep.errors import AlignkeepError, DataError, RecipeError
from alignkeep.evaluate.attacks import Attack
from alignkeep.settings import Settings, nearest
from alignkeep.types import Kind, Message, Prompt

# Rooms do not import each other: another room's prompts are found by name, as a stranger's are.
_TESTBED = "alignkeep.testbed.suite"
_NAMES = ("driftcheck", "testbed")
_PROBE = Prompt((Message("user", "request"),))  # shows the words an attack adds, and where
_OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_DATA_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Suite:
    """Prompts under one name. `fingerprint` changes with every word of prompts and attacks.

    `attacks` in the suite's own wording replace those of the same name; None: the common wording.
    """

    name: str
    prompts: tuple[Prompt, ...]
    fingerprint: str
    description: str = ""
    attacks: tuple[Attack, ...] | None = None

    @classmethod
    def of(
        cls, name: str, prompts: Sequence[Prompt], description: str = "", attacks: Sequence[Attack] | None = None
    ) -> Suite:
        """A checked suite. DataError: no prompts, one of unknown kind, a skill or task without its right answer."""
        _check(name, prompts)
        own = None if attacks is None else tuple(attacks)
        wording = None if own is None else [[attack.name, asdict(attack.apply(_PROBE))] for attack in own]
        facts = [[asdict(prompt) for prompt in prompts], wording]
        text = json.dumps(facts, sort_keys=True, ensure_ascii=True)
        return cls(name, tuple(prompts), f"sha256:{hashlib.sha256(text.encode()).hexdigest()}", description, own)


class _Source(BaseModel):
    """One file of prompts; what is given here holds for all its rows, what is not is read from its columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(min_length=1)
    kind: Kind | None = None
    category: str | None = None
    language: str | None = None


class _SuiteFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    description: str = ""
    prompts: list[_Source] = Field(min_length=1)


def load_suite(reference: str) -> Suite:
    """The suite a reference means (see the top of this file).

    Raises RecipeError for a name, file or object that is none, DataError as `Suite.of` and `read_prompts` do.
    """
    if reference == "driftcheck":
        with as_file(files("alignkeep.evaluate") / "driftcheck.jsonl") as path:
            return Suite.of(reference, read_prompts(str(path)), "628 prompts of our own, English and Korean")
    if reference == "testbed":
        return _from_testbed()
    if reference.endswith((".yaml", ".yml")):
        return _from_file(Path(reference))
    if _OBJECT.fullmatch(reference):
        return _from_object(reference)
    near = nearest(reference, _NAMES)
    if reference.endswith(_DATA_ENDINGS):
        remedy = f"write a FILE.yaml: {{name: mine, prompts: [{{file: {Path(reference).name}, kind: harmful}}]}}"
    else:
        remedy = f"did you mean {near}?" if near else "choose one of these"
    raise RecipeError(
        "suite", seen=repr(reference), expected="driftcheck, testbed, FILE.yaml or package.module:object", remedy=remedy
    )


def limit_prompts(prompts: Sequence[Prompt], limit: int | None, seed: int) -> tuple[Prompt, ...]:
    """At most `limit` prompts of every kind, drawn with `seed`, in their old order; None: all.

    Categories and languages keep their shares within a kind, up to one prompt: every N-th of the prompts sorted by them
    (systematic sampling), so that a rate over the sample estimates the rate over all.
    """
    if limit is None:
        return tuple(prompts)
    of_kind: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        of_kind.setdefault(prompt.kind, []).append(index)
    kept: list[int] = []
    for kind, indices in of_kind.items():
        draw = random.Random(f"{seed} {kind}")
        shuffled = draw.sample(indices, len(indices))
        shuffled.sort(key=lambda index: (prompts[index].category or "", prompts[index].language))
        step, offset = max(len(shuffled) / limit, 1.0), draw.random()
        kept += [shuffled[int((turn + offset) * step)] for turn in range(min(limit, len(shuffled)))]
    return tuple(prompts[index] for index in sorted(kept))


def _check(name: str, prompts: Sequence[Prompt]) -> None:
    if not prompts:
        raise DataError(f"suite {name}", seen="no prompts", expected="at least one", remedy="give it prompts")
    for number, prompt in enumerate(prompts, start=1):
        where = f"suite {name}, prompt {number} ({prompt.text[:40]!r})"
        if prompt.kind == "unknown":
            raise DataError(
                where,
                seen="no kind",
                expected="harmful, harmless, borderline, skill or task: the rate its answer counts for",
                remedy="add a column `kind`, or `kind:` in the suite file",
            )
        if prompt.kind in ("skill", "task") and prompt.expected is None:
            raise DataError(
                where,
                seen=f"a {prompt.kind} without its right answer",
                expected="a column `expected`",
                remedy="add it, or give these prompts another kind",
            )


def _from_testbed() -> Suite:
    module = _module(_TESTBED, "testbed")
    wording = getattr(module, "attacks", None)
    attacks = wording() if callable(wording) else wording
    return _suite_of("testbed", _value(_TESTBED, "prompts", "testbed"), attacks)


def _from_object(reference: str) -> Suite:
    module, _, name = reference.partition(":")
    return _suite_of(reference, _value(module, name, reference))


def _suite_of(reference: str, value: object, attacks: object = None) -> Suite:
    if isinstance(value, Suite):
        return value
    if not _all_are(value, Prompt) or not (attacks is None or _all_are(attacks, Attack)):
        raise RecipeError(
            f"suite {reference}",
            seen=f"a {type(value).__name__}",
            expected="a sequence of alignkeep.types.Prompt, a Suite, or a function that returns one",
            remedy="return one of these",
        )
    return Suite.of(reference, tuple(value), attacks=attacks)  # pyright: ignore[reportArgumentType]


def _all_are(value: object, kind: type) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(item, kind) for item in value)


def _value(module: str, name: str, reference: str) -> object:
    found = getattr(_module(module, reference), name, None)
    if found is None:
        raise RecipeError(
            f"suite {reference}",
            seen=f"no {name} in {module}",
            expected="it",
            remedy="correct the name after the colon",
        )
    return _called(found, reference) if callable(found) else found


def _called(function: Callable[[], object], reference: str) -> object:
    """What a stranger's function returns; whatever it raises, to leave the program too, is its error and no other's."""
    expected = "a function without arguments that returns prompts or a Suite"
    if isinstance(function, BuiltinFunctionType):  # os.abort would end the process before anything could be said
        raise RecipeError(
            f"suite {reference}", seen="a function built into Python", expected=expected, remedy="name your own"
        )
    try:
        return function()
    except AlignkeepError:
        raise
    except (Exception, SystemExit) as error:
        seen = f"{type(error).__name__}, raised by it ({error})"
        raise RecipeError(f"suite {reference}", seen=seen, expected=expected, remedy="correct that function") from error


def _module(name: str, reference: str) -> object:
    try:
        return import_module(name)
    except (Exception, SystemExit) as error:
        raise RecipeError(
            f"suite {reference}",
            seen=f"{name}, which cannot be imported ({error})",
            expected="a module on the Python path",
            remedy="install it, or run from its folder with PYTHONPATH=.",
        ) from error


def _from_file(path: Path) -> Suite:
    settings = Settings.read(path)
    content = settings.build(_SuiteFile)
    prompts: list[Prompt] = []
    for source in content.prompts:
        beside = path.parent / source.file
        local = beside.exists() or source.file.endswith(_DATA_ENDINGS)
        for prompt in read_prompts(str(beside) if local else source.file, kind=source.kind):
            category, language = source.category or prompt.category, source.language or prompt.language
            prompts.append(replace(prompt, category=category, language=language))
    return Suite.of(content.name, prompts, content.description)
