"""Utility by lm-evaluation-harness: its tasks, found and read before a model is loaded, then put to a model in memory.

A task is a name that the harness knows (`mmlu`, `hellaswag`, a group or tag too), or stands in a local folder of its
YAML files: FOLDER means all tasks there, FOLDER#NAME one. Every item gets one score in [0, 1]: by `acc_norm` where a
task has it, else by its first metric that is a mean over items and better when higher; of several filters the first
counts.

Everything else is the harness's own: prompts, examples before the question, stop words, scoring, and that what is
longer than the model reads is cut at its beginning. The chat template is used where the tokenizer has one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alignkeep.checkpoint.files import says_no_memory
from alignkeep.errors import AlignkeepError, DataError, MachineError, RecipeError
from alignkeep.extras import EVAL, require
from alignkeep.input_files import user_path
from alignkeep.settings import nearest

if TYPE_CHECKING:
    from alignkeep.models.loading import LoadedModel

_PREFERRED = "acc_norm"  # what leaderboards show of a task that has it
_SEED = 1234  # the harness's own, of the examples before a question
_A_FOLDER = "a folder of the harness's YAML files"


@dataclass(frozen=True)
class Part:
    """One task of the harness with its metric, and the numbers of the items that are asked."""

    name: str
    task: Any  # lm_eval.api.task.Task
    metric: str
    items: tuple[int, ...]


@dataclass(frozen=True)
class UtilityTask:
    """What was asked for by name; a group or a tag has several parts."""

    name: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        return sum(len(part.items) for part in self.parts)

    @property
    def facts(self) -> dict[str, object]:
        metrics = ", ".join(dict.fromkeys(part.metric for part in self.parts))
        return {"metric": metrics, "tasks": len(self.parts), "items": self.size}


@dataclass(frozen=True)
class Utility:
    """The tasks, the version of the harness, and the fingerprint of items, wording and metrics; nothing by default."""

    tasks: tuple[UtilityTask, ...] = ()
    version: str = ""
    fingerprint: str = ""


NOTHING = Utility()


class Item(NamedTuple):
    """One item of one task, as a model did it. `score` is None where the task gave none; `said` is the answer, or the
    log-likelihood of every choice."""

    utility: str
    task: str
    item: int
    score: float | None
    expected: str
    said: str | list[float]


def find_tasks(asked: Sequence[str], limit: int | None, seed: int) -> Utility:
    """The tasks, with their data sets; of each `limit` items, drawn with the seed.

    Raises RecipeError where lm-eval is not installed or a name is unknown, DataError for a task that cannot be loaded
    or has no score per item, MachineError where a data set cannot be reached.
    """
    if not asked:
        return NOTHING
    require(EVAL, "utility")
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    with _faults(", ".join(asked)):
        places = [place for one in asked for place in _places(one)]
    with _faults(", ".join(asked)):
        # One for each folder, so that none replaces another's task; the bundled ones (five seconds) where asked for.
        managers = {
            folder: TaskManager(include_path=None if folder is None else str(folder), include_defaults=folder is None)
            for folder, _ in places
        }
    names = [name for _, name in places]
    for at, (folder, name) in enumerate(places):
        if name not in managers[folder].all_tasks:
            raise _unknown(name, managers[folder].all_tasks)
        if name in names[:at]:
            raise RecipeError("utility", seen=f"{name} twice", expected="every task once", remedy="leave one out")
    tasks = tuple(_loaded(managers[folder], name, limit, seed) for folder, name in places)
    found = version("lm_eval")
    facts = [found, *([task.name, *map(_facts, task.parts)] for task in tasks)]
    return Utility(tasks, found, f"sha256:{sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}")


def _places(asked: str) -> list[tuple[Path | None, str]]:
    """Folder (None: the harness's own tasks) and name of every task that this means."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    text, mark, name = asked.partition("#")
    folder = user_path(text)
    if not folder.is_dir():
        if mark or "/" in asked:
            raise RecipeError("utility", seen=f"no such folder: {text}", expected=_A_FOLDER, remedy="mend the path")
        return [(None, asked)]
    if mark:
        return [(folder.absolute(), name)]
    there = TaskManager(include_path=str(folder.absolute()), include_defaults=False).all_subtasks
    if not there:
        raise RecipeError("utility", seen=f"no task in {folder}", expected=_A_FOLDER, remedy="give another folder")
    return [(folder.absolute(), one) for one in there]


def _unknown(name: str, known: Sequence[str]) -> RecipeError:
    near = nearest(name, known)
    return RecipeError(
        "utility",
        seen=repr(name),
        expected="a task of lm-eval (lm-eval ls tasks lists them), FOLDER or FOLDER#NAME",
        remedy=f"did you mean {near}?" if near else "choose one of these",
    )


def _loaded(manager: Any, name: str, limit: int | None, seed: int) -> UtilityTask:
    with _faults(name):
        found: dict[str, Any] = manager.load([name])["tasks"]
        return UtilityTask(name, tuple(_part(one, task, limit, seed) for one, task in found.items()))


def _part(name: str, task: Any, limit: int | None, seed: int) -> Part:
    for marked, what in (
        ("UNSAFE_CODE", "a task that runs what the model writes"),
        ("MULTIMODAL", "pictures or sound"),
    ):
        if getattr(task, marked, False):
            raise _unfit(name, what, "a task of text alone")
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    every = range(len(task.eval_docs))
    drawn = every if limit is None or limit >= len(every) else np.random.default_rng(seed).choice(every, limit, False)
    return Part(name, task, _metric(name, task), tuple(sorted(map(int, drawn))))


def _metric(name: str, task: Any) -> str:
    from lm_eval.api.registry import get_aggregation  # pyright: ignore[reportMissingImports]

    mean, better = get_aggregation("mean"), task.higher_is_better()
    aggregations: dict[str, Any] = task.aggregation()
    fit = [metric for metric, how in aggregations.items() if how is mean and better.get(metric, True)]
    if not fit:
        raise _unfit(name, f"no score for an item ({', '.join(aggregations)})", "a metric that is a mean over items")
    return _PREFERRED if _PREFERRED in fit else fit[0]


def _unfit(name: str, seen: str, expected: str) -> DataError:
    return DataError(
        f"utility: {name}", seen=seen, expected=expected, remedy="leave it out, or run it in lm-eval itself"
    )


def _facts(part: Part) -> list[object]:
    """What decides on the scores of a part, besides the model: its settings without the places of files, and items."""
    settings = {
        key: value
        for key, value in part.task.dump_config().items()
        if key not in ("metadata", "dataset_path", "dataset_kwargs")
    }
    docs, digest = part.task.eval_docs, sha256()
    for item in part.items:
        digest.update(json.dumps(docs[item], sort_keys=True, default=str).encode())
    if part.task.config.num_fewshot:
        for doc in part.task.fewshot_docs():
            digest.update(json.dumps(doc, sort_keys=True, default=str).encode())
    told = json.dumps(settings, sort_keys=True, default=lambda one: getattr(one, "__qualname__", type(one).__name__))
    told = re.sub(r" at 0x[0-9a-f]+", "", told)  # where a function lies in memory
    return [part.name, part.metric, part.task.VERSION, told, list(part.items), digest.hexdigest()]


class Harness:
    """A model in memory, as the harness asks it."""

    def __init__(self, loaded: LoadedModel, batch_size: int) -> None:
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

        class Quiet(HFLM):
            """Without bars of its own, and answers as long as the task allows."""

            def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
                return super().loglikelihood(requests, disable_tqdm=True)

            def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
                settings = self.model.generation_config
                longest, settings.max_new_tokens = settings.max_new_tokens, None  # would outrule the task's own length
                try:
                    return super().generate_until(requests, disable_tqdm=True)
                finally:
                    settings.max_new_tokens = longest

        tokenizer = deepcopy(loaded.tokenizer)  # the harness changes it
        self._model = Quiet(pretrained=loaded.model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
        self._has_template = bool(tokenizer.chat_template)

    def measure(self, utility: str, part: Part) -> list[Item]:
        """Every item once, in the order of their numbers. Raises DataError for what the harness cannot do or score,
        MachineError where memory runs out."""
        from lm_eval.evaluator import evaluate  # pyright: ignore[reportMissingImports]

        part.task.set_fewshot_seed(_SEED)
        with _faults(part.name):
            found: Any = evaluate(
                self._model,
                {"tasks": {part.name: part.task}},
                samples={part.name: list(part.items)},
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=self._has_template,
                fewshot_as_multiturn=True,
            )
            rows = found["samples"][part.name]
            return [_item(utility, part, row) for row in rows if row["filter"] == rows[0]["filter"]]


def _item(utility: str, part: Part, row: dict[str, Any]) -> Item:
    value = row.get(part.metric)
    score = None if value is None else float(value)
    if score is not None and not 0 <= score <= 1:
        raise _unfit(part.name, f"{part.metric} {score:g}", "scores from 0 to 1")
    said = row["filtered_resps"]
    choices = [round(float(one[0]), 6) for one in said] if isinstance(said[0], (tuple, list)) else str(said[0])
    return Item(utility, part.name, int(row["doc_id"]), score, str(row["target"]), choices)


@contextmanager
def _faults(name: str) -> Iterator[None]:
    """Whatever the harness raises, as an error of ours."""
    import torch

    try:
        yield
    except AlignkeepError:
        raise
    except ConnectionError as error:
        raise MachineError(
            f"utility: {name}",
            seen=f"a data set that cannot be reached ({_said(error)})",
            expected="one that is here already, or a connection to the hub",
            remedy="try again when connected, or give a local task folder",
        ) from error
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or says_no_memory(error):
            raise MachineError(
                f"utility: {name}", seen="out of memory", expected="room for a batch", remedy="lower --batch-size"
            ) from error
        raise _unfit(name, f"{type(error).__name__} in lm-eval ({_said(error)})", "a task that it can run") from error


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
