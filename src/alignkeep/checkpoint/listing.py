"""What a folder of ours consists of, so that nothing else in it, or in its place, is ever touched.

A finished folder carries `record.json`, which lists its files; a folder at work, and one that holds several stages,
carries a claim. What neither lists is the user's, unless it has this tool's mark inside (a page, a card).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

RECORD_NAME = "record.json"
CLAIM_NAME = ".alignkeep.json"
SIGNATURE_NAME = "record.json.sig"
MANIFEST_NAME = "manifest.json"
PAGE_MARKS = ('<meta name="generator" content="alignkeep', "<!-- alignkeep model card -->")
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
_PARTIAL = re.compile(r"\..+\.partial(-[0-9a-f]{12})?")
_PAGES = (".html", ".htm", ".md")


def list_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, object]]:
    """Size in bytes and SHA-256 of files by their path in `folder`. The weights of a folder with a manifest, which
    holds the SHA-256 of every tensor, are not read again (null)."""
    tensors = _object(folder / MANIFEST_NAME).get("tensors") or ()
    proven = {one.get("file") for one in tensors if isinstance(one, dict)}
    return {
        name: {
            "size": (folder / name).stat().st_size,
            "sha256": None if name in proven else sha256_of_file(folder / name),
        }
        for name in names
    }


def fault_in(folder: Path, listed: object) -> str | None:
    """The first of the listed files that is not there as it was listed, and why; None where all are."""
    if not isinstance(listed, Mapping):
        return f"{RECORD_NAME} lists no files"
    for name, facts in listed.items():
        path = folder / str(name)
        if path.is_symlink() or not path.is_file():
            return f"{name} is missing"
        if not isinstance(facts, Mapping) or path.stat().st_size != facts.get("size"):
            return f"{name} has another size"
        if facts.get("sha256") not in (None, sha256_of_file(path)):
            return f"{name} has other bytes"
    return None


def read_listed(folder: Path) -> object:
    """What the record of a folder lists; None where there is no list."""
    return _object(folder / RECORD_NAME).get("files")


def foreign_in(folder: Path) -> Path | None:
    """The first file, link or folder below `folder` that is not known to be this tool's; None where all is."""
    claimed = (folder / CLAIM_NAME).exists()
    listed = {RECORD_NAME, CLAIM_NAME, SIGNATURE_NAME, *_names(folder / RECORD_NAME), *_names(folder / CLAIM_NAME)}
    folders = {str(parent) for name in listed for parent in Path(name).parents}
    waiting = [folder]
    while waiting:
        for path in sorted(waiting.pop().iterdir()):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink():
                return path
            if not path.is_dir():
                if not (name in listed or TEMPORARY.fullmatch(path.name) or _has_mark(path)):
                    return path
            elif owner_of(path) is not None:
                inner = None if _PARTIAL.fullmatch(path.name) else foreign_in(path)
                if inner is not None:
                    return inner
            elif claimed or name in folders:
                waiting.append(path)
            else:
                return path
    return None


def owner_of(folder: Path) -> tuple[str, str] | None:
    """(stage, identity) of the run whose folder it is: from the record, or from the claim of a run in progress."""
    return run_in(folder / RECORD_NAME) or run_in(folder / CLAIM_NAME)


def run_in(path: Path) -> tuple[str, str] | None:
    """The (stage, identity) that a record or claim names; None where it is missing, a link, or not ours."""
    facts = {} if path.is_symlink() else _object(path)
    stage, identity = facts.get("stage"), facts.get("identity")
    return (stage, identity) if isinstance(stage, str) and isinstance(identity, str) else None


def files_below(folder: Path) -> Iterator[str]:
    """The paths, within the folder, of all that is below it and no folder; links are not followed."""
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        yield from ((Path(root) / name).relative_to(folder).as_posix() for name in sorted([*names, *links]))


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits; memory stays flat."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _names(path: Path) -> list[str]:
    files = read_listed(path.parent) if path.name == RECORD_NAME else _object(path).get("files")
    return [str(name) for name in files] if isinstance(files, Mapping | list) else []


def _has_mark(path: Path) -> bool:
    if path.suffix not in _PAGES:
        return False
    with path.open("rb") as file:
        head = file.read(4000).decode("utf-8", errors="replace")
    return any(mark in head for mark in PAGE_MARKS)


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
