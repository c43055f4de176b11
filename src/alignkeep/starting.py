"""A first recipe for a model and data, with a comment on every line: a file to read and to change."""

from __future__ import annotations

import json
from pathlib import Path

from alignkeep.checkpoint.files import write_text
from alignkeep.errors import RecipeError
from alignkeep.recipe import Recipe

_TOP = """\
# alignkeep run {file} --out OUT       (--dry-run shows the plan; --list-settings every setting)
name: {name}
seed: 0
model: {model}   # the aligned model: a folder or a hub id

train:
  data: {data}   # prompt and completion, messages, Alpaca or ShareGPT: docs/data.md
  method: lora   # full, lora, or with a defence: alignguard, kl_anchor, replay (they want alignment_data)
  epochs: 1
  learning_rate: 2e-4
  batch_size: 16   # examples per step over all processes
"""
_MERGE = """
merge:   # give safety back: the weight, and of several ways the best, is chosen by measurement
  task: {task}
  prompts: {prompts}   # harmful prompts that measure nothing else
  pick: gain   # the safest of what keeps half of the task's gain; safe, task
"""
_EVALUATE = """
evaluate:
  suite: driftcheck   # 628 prompts of our own; testbed, or a FILE.yaml of yours
{task}  limit: 200   # prompts of each kind; leave it out for all
"""


def write_recipe(path: Path, *, model: str, data: str, task: str | None = None, prompts: str | None = None) -> Recipe:
    """Write a commented recipe and return what it says. With `prompts`, harmful ones, and a `task` the tune is merged
    with its base. Raises RecipeError where a file is there already, or harmful prompts come without a task."""
    if path.exists():
        raise RecipeError(str(path), seen="a file", expected="a name that is free", remedy="choose another --out")
    if prompts is not None and task is None:
        raise RecipeError("--prompts", seen="harmful prompts without a task", expected="--task too",
                          remedy="give prompts with one right answer each")  # fmt: skip
    given = {"model": model, "data": data, "task": task, "prompts": prompts}
    quoted = {key: json.dumps(value, ensure_ascii=False) for key, value in given.items() if value is not None}
    parts = [_TOP.format(file=path.name, name=json.dumps(path.stem), model=quoted["model"], data=quoted["data"])]
    if prompts is not None:
        parts.append(_MERGE.format(**quoted))
    line = "" if task is None else f"  task: {quoted['task']}   # prompts with one right answer each\n"
    parts += [_EVALUATE.format(task=line), "\nreport: {card: true}   # one page, and a model card\n"]
    write_text(path, "".join(parts))
    return Recipe.read(path)
