"""Rows of data, from a local file or a data set on the hub, each with the place it came from.

Read as text: .jsonl, .jsonl.gz, .json (one list of objects), .csv. Read with pyarrow: .parquet. Anything else that is
no path is taken for `hub_id[:config][@revision][:split]`, where one part alone behind the id is the split. Nothing is
guessed from content, and a damaged file is an error, never a shorter list.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from alignkeep.errors import DataError, MachineError
from alignkeep.extras import HUB, require
from alignkeep.input_files import first_repeated, kind_of, open_input, read_input, user_path

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
_LONGEST_NAME = 255  # of a file
_PART = r"[\w.\-]+(\[[\w%:\-]*\])?"  # of a split
_HUB_NAME = re.compile(
    r"(?P<name>[\w.\-]+(/[\w.\-]+)?)(:(?P<config>[\w.\-+]+)(?=[:@]))?(@(?P<revision>[\w.\-/]+))?"
    rf"(:(?P<split>{_PART}(\+{_PART})*))?"
)


class Row(NamedTuple):
    """One record; `where` is `file.jsonl:3` for text with lines, `file.json row 3` (from 1) otherwise.

    `names` says what a column is called in the file, where that is another name.
    """

    values: dict[str, object]
    where: str
    names: Mapping[str, str] = MappingProxyType({})

    def wrong(self, place: str, seen: str, expected: str, remedy: str) -> DataError:
        """An error at `place`, such as `messages[2]`, in the words of the file."""
        column, bracket, rest = place.partition("[")
        return DataError(
            f"{self.where}: {self.names.get(column, column)}{bracket}{rest}",
            seen=seen, expected=expected, remedy=remedy,
        )  # fmt: skip

    def has(self, column: str) -> bool:
        return self.values.get(column) is not None


class HubName(NamedTuple):
    """A data set on the hub, as `datasets` is asked for it."""

    name: str
    config: str | None
    revision: str | None
    split: str

    @classmethod
    def of(cls, reference: str) -> HubName | None:
        found = _HUB_NAME.fullmatch(reference)
        if found is None:
            return None
        return cls(found["name"], found["config"], found["revision"], found["split"] or "train")


def read_rows(reference: str) -> list[Row]:
    """All records, in file order, at least one.

    Raises DataError (missing, empty, undecodable or malformed, with file and line) and MachineError (`owner/name` and
    the hub not reached).
    """
    path = local_file(reference)
    if path is None:
        rows = _from_hub(reference)
    else:
        match _ending(path):
            case ".parquet":
                rows = _from_parquet(path)
            case ".csv":
                rows = list(_from_csv(path, _text(path)))
            case ".json":
                rows = _from_json(path, _text(path))
            case _:
                rows = list(_from_lines(path, _text(path)))
    if not rows:
        raise DataError(reference, seen="no rows", expected="at least one", remedy="give a file that has data")
    return rows


def fingerprint_data(reference: str) -> str:
    """sha256 of the file's bytes, or `hub:id[:config]@split#revision`: equal fingerprints mean the same rows.

    The revision is what `datasets` knows the loaded split by, its commit on the hub included: new rows under the old
    name have another. Raises as `read_rows` does where the hub is asked.
    """
    path = local_file(reference)
    if path is None:
        found = _hub_name(reference)
        name = found.name if found.config is None else f"{found.name}:{found.config}"
        return f"hub:{name}@{found.split}#{_loaded_from_hub(reference)._fingerprint}"
    digest = hashlib.sha256()
    with open_input(path) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def local_file(reference: str) -> Path | None:
    """The file meant, or None for a hub id. A path that leads nowhere is a DataError naming its neighbours."""
    path = user_path(reference)
    if path.is_dir():
        raise DataError(reference, seen="a folder", expected=f"a file ending in {_listed(ENDINGS)}", remedy="name it")
    if path.is_file():
        if _ending(path) is None:
            raise DataError(
                reference,
                seen=f"the ending {path.suffix or 'of no kind'!r}",
                expected=_listed(ENDINGS),
                remedy="convert or rename the file",
            )
        return path
    # `data/x` in a place where `data` is a folder is a slip of the pen, not a data set of somebody called "data".
    in_a_folder = "/" in reference and Path(path.parts[0]).is_dir()
    if _ending(path) is None and HubName.of(reference) and not reference.startswith(".") and not in_a_folder:
        return None
    raise _no_such_file(reference, path)


def _no_such_file(reference: str, path: Path) -> DataError:
    folder, kind = path.parent, kind_of(path)
    if kind is not None:
        return DataError(reference, seen=kind, expected="an ordinary file", remedy="write the data into a file first")
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    near = difflib.get_close_matches(path.name[:_LONGEST_NAME], names, n=3)
    return DataError(
        reference,
        seen="no such file" if folder.is_dir() else f"no such file, and no folder {folder}",
        expected="a local file, or hub_id[:config][@revision][:split]",
        remedy=f"did you mean {_listed(near)}?" if near else "check the path",
    )


def _ending(path: Path) -> str | None:
    name = path.name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), None)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _text(path: Path) -> str:
    """The file as text; a byte order mark is dropped."""
    try:
        raw = read_input(path)
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            str(path), seen=f"damaged gzip ({error})", expected="whole data", remedy="copy it again"
        ) from error
    except OSError as error:
        seen = error.strerror or str(error)
        raise DataError(str(path), seen=seen, expected="a readable file", remedy="check its rights") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The decoder counts from behind a byte order mark, the reader of the message from the start of the file.
        at = error.start + (3 if raw.startswith(b"\xef\xbb\xbf") else 0)
        line = raw.count(b"\n", 0, at) + 1
        raise DataError(
            f"{path}:{line}",
            seen=f"byte 0x{raw[at]:02x} at offset {at}, which is not UTF-8",
            expected="UTF-8 text",
            remedy="save the file as UTF-8",
        ) from error


class _DuplicateKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _DuplicateKeyError(f"the key {first_repeated(key for key, _ in pairs)!r} twice")
    return values


def _parse(text: str, where: str, line: int) -> object:
    """JSON; `line` is the line of the file on which `text` starts. A key given twice is refused."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}:{line + error.lineno - 1}",
            seen=f"invalid JSON ({error.msg} at column {error.colno})",
            expected="JSON",
            remedy="mend this line",
        ) from error
    except _DuplicateKeyError as error:
        raise DataError(f"{where}:{line}", seen=str(error), expected="each key once", remedy="mend it") from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{where}:{line}", seen=str(error), expected="JSON", remedy="mend this line") from error
    except RecursionError as error:
        raise DataError(
            f"{where}:{line}",
            seen="JSON nested thousands of levels deep",
            expected="rows of columns",
            remedy="mend this line",
        ) from error


def _from_lines(path: Path, text: str) -> Iterator[Row]:
    # Not splitlines: JSON strings may hold U+2028 and the like, which are no line ends in a .jsonl file.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _row(_parse(line, str(path), number), f"{path}:{number}")


def _from_json(path: Path, text: str) -> list[Row]:
    if not text.strip():
        return []
    value = _parse(text, str(path), 1)
    if not isinstance(value, list):
        raise DataError(
            str(path),
            seen=f"a JSON {_kind(value)}",
            expected="a list of objects",
            remedy="wrap the rows in [...] or use .jsonl with one object per line",
        )
    return [_row(item, f"{path} row {number}") for number, item in enumerate(value, start=1)]


def _row(value: object, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(where, seen=f"a JSON {_kind(value)}", expected="an object with columns", remedy="mend this row")
    return Row(value, where)


def _kind(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _from_csv(path: Path, text: str) -> Iterator[Row]:
    """Rows of strings; an empty cell is no value. A quoted cell may span lines: `where` is the row's last line."""
    csv.field_size_limit(1 << 30)
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True, restkey="", restval="")
    try:
        twice = first_repeated(reader.fieldnames or ())
        if twice is not None:
            raise DataError(
                f"{path}:1", seen=f"the column {twice!r} twice", expected="every column once", remedy="rename one"
            )
        for values in reader:
            where = f"{path}:{reader.line_num}"
            if "" in values:
                raise DataError(
                    where,
                    seen="more cells than the header has columns",
                    expected=f"{len(reader.fieldnames or ())} cells",
                    remedy="quote cells that hold commas",
                )
            yield Row({key: value or None for key, value in values.items()}, where)
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num}", seen=f"broken CSV ({error})", expected="CSV", remedy="mend this line"
        ) from error


def _from_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with open_input(path) as file:
            records = pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # text, a date that is none
        raise DataError(
            str(path), seen=f"unreadable parquet ({error})", expected="a whole parquet file", remedy="write it again"
        ) from error
    return [Row(_without_fill(values), f"{path} row {number}") for number, values in enumerate(records, start=1)]


def _without_fill(values: Mapping[str, object]) -> dict[str, object]:
    """The row without the empty fields that Arrow gives to every message, because another one has them."""
    return {name: _unfilled(value) for name, value in values.items()}


def _unfilled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _unfilled(inner) for name, inner in value.items() if inner is not None}
    return [_unfilled(one) for one in value] if isinstance(value, list) else value


def _from_hub(reference: str) -> list[Row]:
    data = _loaded_from_hub(reference)
    return [Row(_without_fill(values), f"{reference} row {number}") for number, values in enumerate(data, start=1)]


def _hub_name(reference: str) -> HubName:
    found = HubName.of(reference)
    if found is None:
        raise _no_such_file(reference, Path(reference))
    return found


def _loaded_from_hub(reference: str) -> Any:
    name, config, revision, split = _hub_name(reference)
    require(HUB, f"{reference}, which is no local file")
    import datasets

    more: dict[str, Any] = {
        key: value for key, value in {"name": config, "revision": revision}.items() if value is not None
    }
    expected = f"a local file ending in {_listed(ENDINGS)}, or a data set with split {split!r} on the hub"
    try:
        return datasets.load_dataset(name, split=split, **more)
    except ConnectionError as error:
        if "/" not in name:  # few hub ids are one word: more likely a file's name, misspelt
            raise _no_such_file(reference, Path(reference)) from error
        raise MachineError(
            reference,
            seen=f"no local file, and cannot reach the hub ({str(error)[:120]})",
            expected=expected,
            remedy="give a local file, or try again when connected",
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            reference,
            seen=f"no local file, and none on the hub ({type(error).__name__}: {' '.join(str(error).split())[:160]})",
            expected=expected,
            remedy="check name, config, revision and split (hub_id:config@revision:split), or give a local file",
        ) from error
