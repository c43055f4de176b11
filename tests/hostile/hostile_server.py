"""Runs commands in forks of one process that has imported the libraries, each with a folder, streams and limits.

A line of JSON in, `{"arguments", "folder", "environment", "stdout", "stderr", "file_limit", "delete_folder", "kill"}`,
a line out: `{"code", "seconds"}`; the code is negative for a signal, null for a command that did not end in time.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from typing import IO, Any

LIMIT = 40.0  # seconds; a command of the suite takes one or two


def child(order: dict[str, Any], begun: int) -> None:
    """The command, in this process; the streams are those of the order. Does not return.

    `begun` is a descriptor that is closed when the command begins.
    """
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    streams = order["streams"]
    for number, name in ((0, os.devnull), (1, streams["stdout"]), (2, streams["stderr"])):
        if name is None:
            os.close(number)
        elif name == "|":  # a pipe that nobody reads
            reading, writing = os.pipe()
            os.dup2(writing, number)
            os.close(reading)
            os.close(writing)
        else:
            opened = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(opened, number)
            os.close(opened)
    if order.get("file_limit") is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python starts
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], order["file_limit"]))
    if order.get("delete_folder"):
        shutil.rmtree(order["folder"])
    sys.path[:0] = order["environment"]["PYTHONPATH"].split(os.pathsep)
    sys.argv = ["alignkeep", *order["arguments"]]
    code: object = 0
    try:
        from alignkeep.cli import main

        os.close(begun)
        main()
    except SystemExit as left:
        code = left.code
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def run(order: dict[str, Any]) -> dict[str, object]:
    """One command to its end, or to the signal that the order sends after a while."""
    started = time.monotonic()
    begun, beginning = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(begun)
        child(order, beginning)
    os.close(beginning)
    with os.fdopen(begun) as stream:
        return watched(order, process, stream, started)


def watched(order: dict[str, Any], process: int, begun: IO[str], started: float) -> dict[str, object]:
    strike, number = order.get("kill") or (None, 0)
    commanded = None
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        spent = time.monotonic() - started
        if done:
            return {"code": os.waitstatus_to_exitcode(status), "seconds": spent}
        if commanded is None and select.select([begun], [], [], 0)[0]:
            commanded = spent
        if strike is not None and commanded is not None and spent - commanded > strike:
            os.kill(process, number)
            strike = None
        if spent > LIMIT:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return {"code": None, "seconds": spent}
        time.sleep(0.005)


def serve() -> None:
    """Import, then answer until stdin ends."""
    from alignkeep.cli.session import QUIET

    os.environ.update(QUIET)
    import datasets, peft, pyarrow.parquet, torch, transformers, trl  # noqa: E401, F401, I001

    import alignkeep.align.stage, alignkeep.curate.stage, alignkeep.evaluate.stage, alignkeep.inject.stage  # noqa: E401
    import alignkeep.cli.app, alignkeep.lifecycle, alignkeep.merge.stage, alignkeep.report.stage, alignkeep.train.stage  # noqa: E401, F401

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
