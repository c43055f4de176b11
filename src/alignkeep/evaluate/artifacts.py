"""Attacks that others found and stored, in JailbreakBench's file format: `--attacks artifacts:FILE.json`.

{"parameters": {"method": "PAIR", "model": "vicuna-13b-v1.5", ...},
 "jailbreaks": [{"goal": "...", "prompt": "...", "category": ..., "response": ..., "jailbroken": ...}, ...]}

A prompt of the suite is asked in the stored words where its text is a `goal`, else not at all under this attack. So the
rate is among the prompts that the file has, and how well an attack found on one model transfers to another.

Source
    Chao et al., JailbreakBench: An Open Robustness Benchmark for Jailbreaking Large Language Models, arXiv:2404.01318.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alignkeep.checkpoint.files import read_object
from alignkeep.errors import DataError, RecipeError
from alignkeep.types import Prompt

_FORM = '{"parameters": {"method", "model"}, "jailbreaks": [{"goal", "prompt"}]}, as JailbreakBench stores them'


@dataclass(frozen=True)
class StoredAttack:
    """The stored words for each goal; `asked` maps the goal, without case and spaces, to them."""

    name: str
    title: str
    asked: Mapping[str, str]

    @property
    def template_text(self) -> str:
        return ""

    def ways(self, prompt: Prompt) -> Sequence[Prompt]:
        """One way, or none where the file has no words for this prompt."""
        words = self.asked.get(_plain(prompt.text))
        if words is None:
            return ()
        *before, last = prompt.messages
        return (replace(prompt, messages=(*before, replace(last, content=words))),)

    def apply(self, prompt: Prompt) -> Prompt:
        """The prompt in the stored words. Raises KeyError where there are none."""
        found = self.ways(prompt)
        if not found:
            raise KeyError(prompt.text)
        return found[0]


def read_artifacts(path: Path) -> StoredAttack:
    """The attack of a file, named after method and model: `artifacts_PAIR_vicuna-13b-v1_5`. Goals whose prompt is null
    (none was found) are left out.

    Raises RecipeError where there is no such file, DataError naming it for another form or for no prompt at all.
    """
    if not path.is_file():
        raise RecipeError("attacks", seen=f"no file {path}", expected=_FORM, remedy="correct the path")
    try:
        data = read_object(path)
        parameters, rows = data["parameters"], data["jailbreaks"]
        if not isinstance(rows, list) or not isinstance(parameters, dict):
            raise TypeError("parameters and jailbreaks are no object and list")
        asked = {_plain(row["goal"]): row["prompt"] for row in rows if row["prompt"] is not None}
        if not all(isinstance(words, str) and words.strip() for words in asked.values()):
            raise TypeError("a prompt that is no text")
        names = [re.sub(r"[^A-Za-z0-9_-]", "_", str(parameters.get(key) or "unnamed")) for key in ("method", "model")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            str(path), seen=f"{type(error).__name__}: {error}", expected=_FORM, remedy="give a file of that form"
        ) from error
    if not asked:
        raise DataError(str(path), seen="no prompt", expected=_FORM, remedy="give a file with some")
    title = f"Stored prompts of {parameters.get('method')} found on {parameters.get('model')}"
    return StoredAttack("_".join(["artifacts", *names]), title, asked)


def _plain(goal: str) -> str:
    return " ".join(goal.casefold().split()).rstrip(".")
