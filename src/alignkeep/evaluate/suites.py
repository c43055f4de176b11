"""Suites: the prompts of an evaluation, each with a kind that says which rate its answer counts for.

driftcheck               our own set, shipped with the package (docs/driftcheck.md)
testbed                  the test prompts of the micro world, with attacks in its own small vocabulary
advbench, xstest, ...    prompt sets of the field, from the hub (`benchmarks.py`); NAME=FILE: from a copy
SUITE#choose, #report    one half of any of these: what chose by the first can be judged by the second
FILE.yaml                {name, description, prompts: [{file, kind, category, language}, ...]}, files beside it
package.module:object    prompts, a Suite, or a function that returns one of the two
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

from pydantic import Field

from alignkeep.data import read_prompts
from alignkeep.errors import DataError, RecipeError
from alignkeep.evaluate.attacks import Attack
from alignkeep.evaluate.benchmarks import benchmarks, read_benchmark
from alignkeep.judging.prompts import halves
from alignkeep.objects import call_object, find_object, is_spec
from alignkeep.settings import Checked, Settings, nearest
from alignkeep.types import Kind, Message, Prompt

CHOOSE: Literal["choose"] = "choose"
REPORT: Literal["report"] = "report"

_NAMES = ("driftcheck", "testbed")
_PROBE = Prompt((Message("user", "request"),))  # shows the words an attack adds, and where
_OFFERED = "driftcheck, testbed, a set of the field (advbench, ...), NAME=FILE, FILE.yaml or package.module:object"
_RETURNS = "a sequence of alignkeep.types.Prompt, a Suite, or a function without arguments that returns one"
_DATA_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Suite:
    """Prompts under one name. `fingerprint` changes with every word of prompts and attacks.

    `attacks` in the suite's own wording replace those of the same name; None: the common wording. `notes` is what the
    user is told of where the prompts come from.
    """

    name: str
    prompts: tuple[Prompt, ...]
    fingerprint: str
    description: str = ""
    attacks: tuple[Attack, ...] | None = None
    notes: tuple[str, ...] = ()

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


class _Source(Checked):
    """One file of prompts; what is given here holds for all its rows, what is not is read from its columns."""

    file: str = Field(min_length=1)
    kind: Kind | None = None
    category: str | None = None
    language: str | None = None


class _SuiteFile(Checked):
    name: str = Field(min_length=1)
    description: str = ""
    prompts: list[_Source] = Field(min_length=1)


def load_suite(reference: str) -> Suite:
    """The suite a reference means (see the top of this file).

    Raises RecipeError for a name, file or object that is none, DataError as `Suite.of` and `read_prompts` do.
    """
    whole, mark, half = reference.rpartition("#")
    if mark and half in (CHOOSE, REPORT):
        suite = load_suite(whole)
        prompts = halves(suite.prompts)[half == REPORT]
        return Suite.of(reference, prompts, f"half of {whole}: {suite.description}", suite.attacks)
    if reference == "driftcheck":
        with as_file(files("alignkeep.evaluate") / "driftcheck.jsonl") as path:
            return Suite.of(reference, read_prompts(str(path)), "628 prompts of our own, English and Korean")
    if reference == "testbed":
        return _from_testbed()
    if reference.endswith((".yaml", ".yml")):
        return _from_file(Path(reference))
    if is_spec(reference):
        return _from_object(reference)
    name, equals, file = reference.partition("=")
    if name in benchmarks():
        prompts, notes = read_benchmark(name, file if equals else None)
        return replace(Suite.of(name, prompts, benchmarks()[name].measures), notes=notes)
    near = nearest(name, (*_NAMES, *benchmarks()))
    if reference.endswith(_DATA_ENDINGS):
        remedy = f"write a FILE.yaml: {{name: mine, prompts: [{{file: {Path(reference).name}, kind: harmful}}]}}"
    else:
        remedy = f"did you mean {near}?" if near else "choose one of these"
    raise RecipeError("suite", seen=repr(reference), expected=_OFFERED, remedy=remedy)


def half_of(reference: str, half: Literal["choose", "report"]) -> str:
    """The reference of one half of a suite."""
    return f"{reference}#{half}"


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
    from alignkeep.testbed import suite

    return Suite.of("testbed", suite.prompts(), attacks=suite.attacks())


def _from_object(reference: str) -> Suite:
    return suite_of(reference, find_object(f"suite {reference}", reference, expected=_OFFERED))


def suite_of(reference: str, found: object) -> Suite:
    """Prompts, a Suite, or what a function of these returns, as a Suite. Raises as `Suite.of` does, and RecipeError for
    anything else."""
    value = found
    if callable(found):
        value = call_object(f"suite {reference}", reference, found, expected=_RETURNS)
    if isinstance(value, Suite):
        return value
    if not isinstance(value, (tuple, list)) or not all(isinstance(item, Prompt) for item in value):
        raise RecipeError(
            f"suite {reference}",
            seen=f"a {type(value).__name__}",
            expected=_RETURNS,
            remedy="return one of these",
        )
    return Suite.of(reference, tuple(value))


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
