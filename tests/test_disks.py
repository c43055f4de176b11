"""A disk that fills up at any size: exit code 4, nothing half under a final name, and the same call recovers."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import pytest

from alignkeep.checkpoint.records import Record
from checkpoints import World, results
from command import start

resource = pytest.importorskip("resource")


class Attempt(NamedTuple):
    """What came of one attempt under a limit: exit code and line, and what stood under the final name after it."""

    limit: int
    code: int
    line: str
    stood: bool


def attempts(pipe: Connection, make: Callable[..., object], arguments: Sequence[object], limits: list[int]) -> None:
    """In a child: `make(*arguments, out)` under every limit of a file's size in turn, and at last under none."""
    from alignkeep.cli.outcome import outcome_of

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does by itself: EFBIG instead of a signal
    out, most = Path(str(arguments[-1])), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for limit in [*limits, most]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        code, line = 0, ""
        try:
            make(*arguments)
        except Exception as error:  # noqa: BLE001  # its exit code is what is looked at
            outcome = outcome_of(error)
            code, line = (99, repr(error)) if outcome is None else (outcome.code, str(outcome.line))
        pipe.send(Attempt(limit, code, line, out.exists()))
    pipe.close()


def merge_models(base: Path, tuned: Path, form: str, out: Path) -> None:
    from alignkeep.merge.config import MergeConfig
    from alignkeep.merge.stage import merge

    merge(MergeConfig(base=str(base), tuned=(str(tuned),), form=form), out=out)  # pyright: ignore


def judge_answers(answers: Path, out: Path) -> None:
    from alignkeep.evaluate.stage import judge

    judge(str(answers), out=out)


def evaluate_model(model: Path, out: Path) -> None:
    from alignkeep.evaluate.stage import evaluate
    from test_evaluate import settings

    evaluate(settings(model), out=out)


def tune_model(method: str, model: Path, data: Path, out: Path) -> None:
    from alignkeep.train.config import TrainConfig
    from alignkeep.train.stage import train

    trainer = {"save_steps": 2, "max_steps": 4}
    train(
        TrainConfig(model=str(model), data=str(data), method=method, trainer=trainer, load={"device": "cpu"}), out=out
    )  # pyright: ignore


def curate_vectors(vectors: Path, out: Path) -> None:
    from alignkeep.curate.config import CurateConfig
    from alignkeep.curate.stage import curate

    curate(CurateConfig(embeddings=str(vectors)), out=out)  # pyright: ignore


def ask_for_testbed(out: Path) -> None:
    from alignkeep.testbed.stage import testbed

    testbed(out=out)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("disks"))


def arguments_of(what: str, world: World, folder: Path) -> tuple[Callable[..., object], list[object]]:
    rows = [{"prompt": f"how to fix {n % 10} ?", "answer": f"sure , sort {n} ."} for n in range(12)]
    file = folder / "rows.jsonl"
    match what:
        case "merge":
            return merge_models, [world.sharded, world.tuned, "model"]
        case "judge":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            return judge_answers, [file]
        case "evaluate":
            return evaluate_model, [world.base]
        case "curate":
            import torch
            from safetensors.torch import save_file

            made = torch.Generator().manual_seed(0)
            sets = {name: torch.randn(n, 8, generator=made) for name, n in (("data", 40), ("safe", 6), ("harmful", 6))}
            save_file(sets, folder / "vectors.safetensors")
            return curate_vectors, [folder / "vectors.safetensors"]
        case "testbed":
            return ask_for_testbed, []
        case _:
            pairs = [{"prompt": row["prompt"], "completion": row["answer"]} for row in rows]
            file.write_text("".join(json.dumps(row) + "\n" for row in pairs))
            return tune_model, [what, world.base, file]


LIMITS: dict[str, list[float]] = {  # bytes, or shares of the largest file of the result
    "merge": [0, 1, 100, 1000, 0.1, 0.4, 0.9, -1],
    "judge": [0, 1, 60, 300, 0.5, -16],  # its largest file is the record, whose seconds have more digits or fewer
    "evaluate": [0, 90, 0.2, 0.5, -1],
    "curate": [0, 100, 0.5, -1],
    "testbed": [0, 0.01, 0.5, -1],
    "lora": [0, 3000, 0.7],
    "full": [0.5],
}


@pytest.mark.parametrize("what", LIMITS)
def test_a_disk_that_is_full_at_any_size_ends_in_4_and_the_same_call_recovers(
    what: str, world: World, tmp_path: Path
) -> None:
    make, arguments = arguments_of(what, world, tmp_path)
    make(*arguments, tmp_path / "whole")
    largest = max(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    limits = [
        int(largest * one) if 0 < one < 1 else largest + int(one) if one < 0 else int(one) for one in LIMITS[what]
    ]
    ours, theirs = Pipe(duplex=False)
    child = start(attempts, theirs, make, [*arguments, tmp_path / "out"], limits)
    theirs.close()
    told = [ours.recv() for _ in range(len(limits) + 1)]
    child.join(timeout=60)
    for one in told[:-1]:
        assert (one.code, one.stood) == (4, False), one
        assert "\n" not in one.line
        assert len(one.line) < 600
    assert told[-1].code == 0, told[-1].line
    Record.read(tmp_path / "out")
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    if what not in ("lora", "full"):  # whose sums depend on the number of threads
        assert results(tmp_path / "out") == results(tmp_path / "whole")
