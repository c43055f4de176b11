"""What goes to the Hub: a model that was proven, as `export` leaves it, and nothing that is there already is lost.

A folder of `merge`, `inject` or `fix` is verified (made again from its inputs), exported beside itself and uploaded;
one that `export` wrote is held against its own record and manifest and uploaded as it is. A new repository is private.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.checkpoint.listing import (
    MANIFEST_NAME,
    RECORD_NAME,
    fault_in,
    files_below,
    owner_of,
    sha256_of_file,
)  # fmt: skip
from alignkeep.checkpoint.manifest import Manifest
from alignkeep.checkpoint.records import Record
from alignkeep.checkpoint.shards import check_hashes
from alignkeep.errors import AlignkeepError, CheckpointError, DataError, MachineError, RecipeError, plain
from alignkeep.lifecycle import verify
from alignkeep.models.folders import resolve
from alignkeep.progress import Progress, Silent
from alignkeep.sharing import AUDIT, CARD, HUB_ID, chosen, copied, export

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_EXPORT = "export"  # the stage in the record of what `export` wrote
_OF_THE_HUB = ".gitattributes"
_TO_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


@dataclass(frozen=True)
class PushResult:
    """What is on the Hub now. `private` is None where the repository was there before; `uploaded` are the files that it
    did not have, none where all were there; `proven` says what was shown of the model before."""

    to: str
    url: str
    private: bool | None
    uploaded: tuple[str, ...]
    removed: tuple[str, ...]
    bytes: int
    proven: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        return {**vars(self), **{key: list(getattr(self, key)) for key in ("uploaded", "removed", "proven")}}


def push(
    folder: str | Path,
    *,
    to: str,
    measured: str | Path | None = None,
    hub_base: str | None = None,
    license: str | None = None,  # the hub's word
    public: bool = False,
    overwrite: bool = False,
    unverified: bool = False,
    progress: Progress | None = None,
) -> PushResult:
    """Upload a model to the repository `to` (OWNER/NAME), which is made where there is none: private, unless `public`.

    `measured`, `hub_base` and `license` are as in `export`, for a folder that it did not write. Nothing is uploaded
    before all is proven. Raises RecipeError for an id, a token or a repository that cannot be used, for one that holds
    something else (unless `overwrite`), and for a model without a manifest (unless `unverified`); what `verify` and
    `export` raise; MachineError where the network fails: the same call then goes on with what is missing.
    """
    folder = Path(folder)
    _check_id(to)
    token = _token()
    _refuse_unproven(folder, unverified=unverified)
    with _ready(folder, to, measured, hub_base, license) as (ready, is_export):
        proven = _prove_export(ready) if is_export else _prove_model(folder, unverified, progress)
        if not is_export:
            export(folder, out=ready, measured=measured, hub_base=hub_base, license=license, overwrite=True)
        progress = progress or Silent()
        progress.start("uploading", None)
        made = _uploaded(ready, to, token, proven, public=public, overwrite=overwrite)
        progress.done()
        return made


def plan_push(
    folder: str | Path,
    *,
    to: str,
    measured: str | Path | None = None,
    public: bool = False,
    unverified: bool = False,
) -> dict[str, object]:
    """What `push` would upload, with sizes in bytes (None: written by then). Asks no network and touches nothing."""
    folder = Path(folder)
    _check_id(to)
    _refuse_unproven(folder, unverified=unverified)
    sizes: dict[str, int | None]
    if _is_export(folder):
        sizes = {name: (folder / name).stat().st_size for name in sorted(files_below(folder))}
    else:
        model, numbers = chosen(folder, None if measured is None else Path(measured))
        patterns = copied(is_adapter=resolve(str(model)).is_adapter)
        names = sorted(path.name for path in model.iterdir() if path.is_file())
        sizes = {name: (model / name).stat().st_size for name in names if any(fnmatch(name, one) for one in patterns)}
        sizes |= {CARD: None, RECORD_NAME: None}
        sizes |= {f"{AUDIT}/{MANIFEST_NAME}": None} if (model / MANIFEST_NAME).is_file() else {}
        sizes |= {} if numbers is None else {f"{AUDIT}/scorecard.json": None, "report.html": None}
    return {
        "to": to, "new_repository": "public" if public else "private", "files": sizes,
        "bytes": sum(size or 0 for size in sizes.values()), "to_be_verified": not unverified,
    }  # fmt: skip


def _check_id(to: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(to)
        is_good = HUB_ID.fullmatch(to) is not None
    except HFValidationError:
        is_good = False
    if not is_good:
        raise RecipeError("--to", seen=to or "nothing", expected="an id of the Hub (OWNER/NAME)", remedy="correct it")


def _token() -> str:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise RecipeError(
            "HF_HUB_OFFLINE", seen="it set", expected="a network, to push to", remedy="unset it (--dry-run needs none)"
        )
    token = get_token()
    if token is None:
        raise RecipeError("token of the Hub", seen="none", expected="one that may write", remedy=_TO_LOG_IN)
    return token


def _is_export(folder: Path) -> bool:
    return (owner_of(folder) or ("",))[0] == _EXPORT


def _refuse_unproven(folder: Path, *, unverified: bool) -> None:
    """A folder that holds no model, or one of which nobody can prove what it was made from."""
    model = folder if _is_export(folder) else chosen(folder, None)[0]
    if resolve(str(model)).folder is None:
        raise DataError(str(folder), seen="no folder", expected="a folder with a model", remedy="give one of yours")
    manifest = model / AUDIT / MANIFEST_NAME if _is_export(folder) else model / MANIFEST_NAME
    if not manifest.is_file() and not unverified:
        owner = owner_of(model)
        what = "a model of another tool" if owner is None else f"the result of {owner[0]}, without a manifest"
        raise RecipeError(
            str(model), seen=what, expected="a model that `alignkeep verify` can prove (of merge, inject or fix)",
            remedy="give --unverified to push it all the same",
        )  # fmt: skip


@contextmanager
def _ready(
    folder: Path, to: str, measured: str | Path | None, hub_base: str | None, license: str | None
) -> Iterator[tuple[Path, bool]]:
    """The folder to upload, and whether it is an export already: else a place beside it, gone afterwards."""
    if _is_export(folder):
        for name, value in (("measured", measured), ("hub-base", hub_base), ("license", license)):
            if value is not None:
                raise RecipeError(
                    f"--{name}", seen=f"it beside {folder}, which `export` wrote", expected="it with what is exported",
                    remedy="leave it out, or export the model again with it",
                )  # fmt: skip
        yield folder, True
        return
    place = folder.resolve()
    with tempfile.TemporaryDirectory(prefix=f".{place.name}.push-", dir=place.parent) as beside:
        yield Path(beside) / to.partition("/")[2], False


def _prove_model(folder: Path, unverified: bool, progress: Progress | None) -> tuple[str, ...]:
    model = chosen(folder, None)[0]
    if not (model / MANIFEST_NAME).is_file():
        return ()
    told: Any = verify(model, files_only=unverified, progress=progress)
    return tuple(map(str, told["proven"]))


def _prove_export(folder: Path) -> tuple[str, ...]:
    """Every byte is what `export` wrote, nothing lies beside it, and the tensors are those of its manifest."""
    listed = Record.read(folder).files
    fault = fault_in(folder, listed)
    stray = min({*files_below(folder)} - {*listed, RECORD_NAME}, default=None)  # pages of ours, too, hold answers
    if fault is not None or stray is not None:
        raise CheckpointError(
            str(folder), seen=fault or f"{stray}, which `export` did not write", expected="what `export` wrote",
            remedy="export it again",
        )  # fmt: skip
    proven = ("every byte is what export wrote, and nothing is there besides",)
    if not (folder / AUDIT / MANIFEST_NAME).is_file():
        return proven
    with ThreadPoolExecutor() as pool:
        check_hashes(folder, list(Manifest.read(folder / AUDIT).tensors), pool)
    return (*proven, "every tensor is that of the manifest")


def _uploaded(
    ready: Path, to: str, token: str, proven: tuple[str, ...], *, public: bool, overwrite: bool
) -> PushResult:
    from huggingface_hub import HfApi

    from alignkeep import __version__

    api = HfApi(
        endpoint=os.environ.get("HF_ENDPOINT"), token=token, library_name="alignkeep", library_version=__version__
    )
    names = sorted(files_below(ready))
    with _failures(to):
        there = _files_of(api, to)
    same = {name for name in names if name in (there or {}) and _is_same(ready / name, (there or {})[name])}
    other = sorted({*(there or {})} - same - {_OF_THE_HUB})
    if other and not overwrite:
        raise RecipeError(
            f"--to {to}", seen=f"{len(other)} files that are not these ({other[0]})",
            expected="a new or empty repository, or this model",
            remedy="choose another --to, or give --overwrite to replace them (its history keeps them)",
        )  # fmt: skip
    missing = tuple(name for name in names if name not in same)
    if missing or other:
        with _failures(to):
            if there is None:
                api.create_repo(to, private=not public, exist_ok=True)
            api.upload_folder(
                repo_id=to, folder_path=ready, delete_patterns="*" if overwrite else None,
                commit_message=f"Upload by alignkeep {__version__}",
            )  # fmt: skip
    return PushResult(
        to, f"{api.endpoint}/{to}", (not public) if there is None else None, missing,
        tuple(name for name in other if name not in names),
        sum((ready / name).stat().st_size for name in missing), proven,
    )  # fmt: skip


def _files_of(api: HfApi, to: str) -> Mapping[str, Any] | None:
    """The files of a repository by their names; None where there is no such repository."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return {one.path: one for one in api.list_repo_tree(to, recursive=True) if hasattr(one, "blob_id")}
    except RepositoryNotFoundError:
        return None


def _is_same(path: Path, remote: Any) -> bool:
    """Whether a file of the Hub has these bytes, by the checksum that git or its store of large files has of it."""
    if remote.size != path.stat().st_size:
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == sha256_of_file(path)
    data = path.read_bytes()
    return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextmanager
def _failures(to: str) -> Iterator[None]:
    """What the Hub or the network says, as an error of ours."""
    try:
        yield
    except AlignkeepError:
        raise
    except Exception as error:
        raise _failed(to, error) from error


def _failed(to: str, error: BaseException) -> AlignkeepError:
    chain: list[BaseException] = [error]
    while (under := chain[-1].__cause__ or chain[-1].__context__) is not None and under not in chain:
        chain.append(under)
    status = next((code for one in chain if (code := _status(one)) is not None), None)
    said = plain(str(chain[0]), 160)
    if status in (401, 403, 404):
        return RecipeError(
            f"--to {to}", seen=f"HTTP {status} ({said})", expected="a token that may write there", remedy=_TO_LOG_IN
        )
    if status is not None and 400 <= status < 500 and status not in (408, 409, 429):
        return RecipeError(
            f"--to {to}", seen=f"HTTP {status} ({said})", expected="an upload that the Hub takes",
            remedy="do what it says",
        )  # fmt: skip
    if isinstance(error, ValueError):
        return DataError(f"--to {to}", seen=said, expected="an upload that the Hub takes", remedy="do what it says")
    return MachineError(
        f"--to {to}", seen=f"a network that failed ({type(chain[-1]).__name__}: {said})", expected="the Hub",
        remedy="give the same command again: what has arrived is not sent twice",
    )  # fmt: skip


def _status(error: BaseException) -> int | None:
    found = getattr(getattr(error, "response", None), "status_code", None)
    return found if isinstance(found, int) else None
