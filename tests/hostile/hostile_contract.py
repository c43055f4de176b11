"""What every command keeps whatever it is given: its exit code, one line, its inputs, and what lies around."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"


@dataclass
class Order:
    """A command on hostile input. `codes` are the exit codes it may leave with; with 0 there is a result."""

    arguments: list[str]
    codes: tuple[int, ...] = (1,)
    environment: dict[str, str] = field(default_factory=dict)
    streams: dict[str, str | None] = field(default_factory=dict)
    file_limit: int | None = None
    delete_folder: bool = False
    kill: tuple[float, int] | None = None
    said: str = ""  # stands in the line


@dataclass(frozen=True)
class Case:
    """`build` puts what the command reads into an empty folder, with what `assets` has, and says the command."""

    name: str
    family: str
    build: Callable[[random.Random, Path, Path], Order]


class Server:
    """The process that runs commands (hostile_server.py)."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{SOURCE}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "hostile_server.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def run(self, order: Mapping[str, object]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)


def environment(extra: Mapping[str, str], folder: Path) -> dict[str, str]:
    """What a command sees; nothing of the tests' own surroundings but what Python needs."""
    return {
        "PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": f"{folder}{os.pathsep}{SOURCE}",
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "COLUMNS": "100",
        "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1", **extra,
    }  # fmt: skip


def faults_of(case: Case, folder: Path, assets: Path, server: Server) -> list[str]:
    """Every part of the contract that the case breaks; none where it holds."""
    given, streams = folder / "given", folder / "streams"
    shutil.rmtree(folder, ignore_errors=True)
    for one in (given, streams):
        one.mkdir(parents=True)
    order = case.build(random.Random(case.name), given, assets)
    before = {**snapshot(given), **snapshot(assets)}
    done = _run(order, given, streams, server)
    texts = {name: _read(streams / name) for name in ("stdout", "stderr")}
    faults = [f"alignkeep {' '.join(order.arguments)[:300]}"]
    code = done["code"]
    if code not in order.codes:
        faults.append(f"code {code}, not one of {order.codes}")
    faults += _faults_of_streams(code, texts, order)
    if not order.delete_folder:
        faults += _faults_of_files(code, before, {**snapshot(given), **snapshot(assets)}, killed=order.kill is not None)
    if order.kill is not None:
        faults += _faults_of_recovery(order, given, streams, server)
    return [*faults, *(f"{name}: {text[-600:]!r}" for name, text in texts.items())] if len(faults) > 1 else []


def _run(order: Order, given: Path, streams: Path, server: Server) -> dict[str, Any]:
    told = {name: str(streams / name) for name in ("stdout", "stderr")} | order.streams
    return server.run(
        {
            "arguments": order.arguments,
            "folder": str(given),
            "streams": told,
            "environment": environment(order.environment, given),
            "file_limit": order.file_limit,
            "delete_folder": order.delete_folder,
            "kill": order.kill,
        }
    )


def _faults_of_recovery(order: Order, given: Path, streams: Path, server: Server) -> list[str]:
    """The same command, undisturbed, ends well, with what it makes where nobody ever disturbed it."""
    results = []
    for name in ("out", "undisturbed"):
        arguments = [str(given / name) if word == str(given / "out") else word for word in order.arguments]
        done = _run(replace(order, arguments=arguments, kill=None), given, streams, server)
        if done["code"] != 0:
            return [f"the same command then leaves with {done['code']}: {_read(streams / 'stderr')[-400:]}"]
        files = snapshot(given / name)
        results.append({os.path.relpath(path, given / name): is_ for path, is_ in files.items()})
    kept, undisturbed = results
    times = {"record.json"}  # holds seconds
    if {path: is_ for path, is_ in kept.items() if path not in times} != {
        path: is_ for path, is_ in undisturbed.items() if path not in times
    }:
        return ["another result than without the signal"]
    leftovers = [path.name for path in given.iterdir() if path.name not in ("out", "undisturbed")]
    return [f"{leftovers} were left behind"] if leftovers else []


def _faults_of_streams(code: int | None, texts: Mapping[str, str], order: Order) -> list[str]:
    faults = []
    lines = texts["stderr"].splitlines()
    shown = texts["stdout"] + texts["stderr"]
    if "Traceback" in shown:
        faults.append("a traceback")
    if any(unicodedata.category(one) in ("Cc", "Cs") and one != "\n" for one in shown):
        faults.append("control characters")
    if order.streams:  # where nobody listens nothing is told
        return faults
    if code in (1, 4, 130):
        if len(lines) != 1 or not lines[0].startswith(("error: ", "interrupted: ")):
            faults.append(f"{len(lines)} lines on stderr")
        if texts["stdout"]:
            faults.append("something on stdout")
    if code != 2 and any(len(line) >= 400 for line in lines):
        faults.append("a line of 400 characters or more")
    if code == 0 and "--json" in order.arguments and not isinstance(json.loads(texts["stdout"] or "0"), dict):
        faults.append("no result on stdout")
    if order.said and order.said not in texts["stderr"]:
        faults.append(f"{order.said!r} is not said")
    return faults


def _faults_of_files(
    code: int | None, before: Mapping[str, str], after: Mapping[str, str], *, killed: bool
) -> list[str]:
    """A signal may come behind the last write: then the result is there, whole, which the recovery looks at."""
    faults = [f"{path} was changed or removed" for path, is_ in before.items() if after.get(path) != is_]
    new = {Path(path) for path in after.keys() - before.keys()}
    state = (".out.partial", "out") if killed else (".out.partial",)
    allowed = {0: ("out",), 1: (), 4: state, 130: state}.get(code or 0, state)
    for path in new:
        parts = path.parts[path.parts.index("given") + 1 :] if "given" in path.parts else ("outside",)
        if parts[0] not in allowed and parts[0] != "__pycache__":
            faults.append(f"{path} was made")
    return faults


def snapshot(folder: Path) -> dict[str, str]:
    """What lies under a folder, links not followed: kind and content of each."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(root, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode):
                with open(path, "rb") as file:
                    found[path] = hashlib.sha256(file.read()).hexdigest()
            else:
                found[path] = os.readlink(path) if stat.S_ISLNK(mode) else str(stat.S_IFMT(mode))
    return found


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="surrogateescape") if path.exists() else ""
