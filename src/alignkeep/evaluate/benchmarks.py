"""Prompt sets of the field by name: `--suite advbench`, or `--suite advbench=FILE` for a copy in the same columns.

What is known of each stands in benchmarks.yaml, a row each. Nothing is downloaded but the one set that is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files

from pydantic import Field, model_validator

from alignkeep.data import Row, read_rows
from alignkeep.errors import AlignkeepError, DataError
from alignkeep.settings import Checked, Settings
from alignkeep.types import Kind, Message, Prompt


class Labels(Checked):
    """The column that says what kind of prompt a row is, and what its values mean."""

    column: str
    values: dict[str, Kind]


class Benchmark(Checked):
    """One prompt set. The first column of `prompt` (of `category`) that a row has counts; `only` keeps the rows with
    these values in columns that are there; a `headerless` file has one column, whose name is its first prompt."""

    title: str
    hub: str = Field(pattern=r"[\w.-]+/[\w.-]+")
    config: str | None = None
    splits: tuple[str, ...] = Field(min_length=1)
    revision: str | None = Field(default=None, pattern=r"[0-9a-f]{40}")
    gated: bool = False
    prompt: tuple[str, ...] = Field(min_length=1)
    category: tuple[str, ...] = ()
    kind: Kind | None = None
    kinds: Labels | None = None
    only: dict[str, str] = Field(default_factory=dict)
    headerless: bool = False
    licence: str
    paper: str
    measures: str

    @model_validator(mode="after")
    def _one_kind(self) -> Benchmark:
        if (self.kind is None) == (self.kinds is None):
            raise ValueError("exactly one of kind and kinds")
        return self

    def reference(self, split: str) -> str:
        """The split as the hub is asked for it: `hub_id:config@revision:split`."""
        config = f":{self.config}" if self.config else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.hub}{config}{revision}:{split}"


@cache
def benchmarks() -> dict[str, Benchmark]:
    """All of them by name, in the order of the file."""
    with as_file(files("alignkeep.evaluate") / "benchmarks.yaml") as path:
        return dict(Settings.read(path).build(_Table).rows)


class _Table(Checked):
    rows: dict[str, Benchmark]

    @model_validator(mode="before")
    @classmethod
    def _of_file(cls, data: object) -> object:
        return {"rows": data}


def read_benchmark(name: str, file: str | None = None) -> tuple[list[Prompt], tuple[str, ...]]:
    """The prompts of a set, from the hub or from a copy, and what is to be said about them.

    Raises DataError and MachineError as `read_rows` does (with the way to a gated set), and DataError naming file and
    row for columns that are not there, labels that mean nothing, or where no row is left.
    """
    row = benchmarks()[name]
    where = file if file is not None else row.hub
    notes = [f"suite {name}: {row.title}; {row.paper}; licence: {row.licence}"]
    if file is None and row.revision is None:
        notes.append(f"suite {name}: no revision is pinned, {row.hub} is read as it is today")
    prompts: list[Prompt] = []
    unlabelled = 0
    for split in row.splits if file is None else (None,):
        for one in _rows(row, split, name, file):
            kind = _kind(row, one)
            if kind is None:
                unlabelled += 1
                continue
            prompts.append(Prompt((Message("user", _text(row, one)),), kind=kind, category=_category(row, one, split)))
    if unlabelled:
        notes.append(f"suite {name}: {unlabelled} rows have no label and were left out")
    if not prompts:
        seen = f"no row that counts (of {', '.join(f'{key} {value}' for key, value in row.only.items()) or 'any kind'})"
        raise DataError(where, seen=seen, expected=f"prompts of {row.title}", remedy="give a copy of that set")
    return prompts, tuple(notes)


def _rows(row: Benchmark, split: str | None, name: str, file: str | None) -> Sequence[Row]:
    if file is not None or split is None:
        rows = read_rows(str(file))
    else:
        try:
            rows = read_rows(row.reference(split))
        except AlignkeepError as error:
            raise type(error)(error.where, seen=error.seen, expected=error.expected, remedy=_way(row, name)) from error
    if row.headerless and rows and len(rows[0].values) == 1:
        (column,) = rows[0].values
        if column not in row.prompt:
            first = Row({row.prompt[0]: column}, rows[0].where)
            return [first, *(Row({row.prompt[0]: one.values[column]}, one.where) for one in rows)]
    return [one for one in rows if all(one.values.get(key, value) == value for key, value in row.only.items())]


def _way(row: Benchmark, name: str) -> str:
    copy = f"or give a copy: --suite {name}=FILE"
    if not row.gated:
        return f"see that the hub can be reached, {copy}"
    return f"it is gated: accept its terms at https://huggingface.co/datasets/{row.hub} and set HF_TOKEN, {copy}"


def _text(row: Benchmark, one: Row) -> str:
    column = next((name for name in row.prompt if one.has(name)), None)
    if column is None:
        raise one.wrong(
            row.prompt[0], f"the columns {', '.join(one.values) or 'none'}", " or ".join(row.prompt), "name it so"
        )
    value = one.values[column]
    if isinstance(value, list) and len(value) == 1:  # SORRY-Bench: the turns of a chat, always one
        (value,) = value
    if not isinstance(value, str) or not value.strip():
        raise one.wrong(column, f"{value!r:.60}", "text", "mend or drop this row")
    return value.strip()


def _category(row: Benchmark, one: Row, split: str | None) -> str | None:
    column = next((name for name in row.category if one.has(name)), None)
    if column is not None:
        return str(one.values[column])
    return split if row.headerless else None


def _kind(row: Benchmark, one: Row) -> Kind | None:
    """The kind of the row; None where its label is empty."""
    if row.kinds is None:
        return row.kind
    column, values = row.kinds.column, row.kinds.values
    if column not in one.values:
        raise one.wrong(column, f"the columns {', '.join(one.values) or 'none'}", f"a column {column}", "add it")
    label = one.values[column]
    if label is None or label == "":
        return None
    if str(label) not in values:
        raise one.wrong(column, repr(label), " | ".join(values), "mend or drop this row")
    return values[str(label)]
