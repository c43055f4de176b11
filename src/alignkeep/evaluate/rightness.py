"""Whether an answer to a task is right: by its text, or by a function of the user's (`package.module:object`).

The function gets the prompt (with what is `expected`) and the answer behind its thought, and says True, False, or None
where it cannot tell: such an answer is left out of the task's accuracy. Skills of the suite go by their text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from alignkeep.checkpoint.listing import sha256_of_file
from alignkeep.errors import RecipeError
from alignkeep.judging.reading import after_thinking, is_correct
from alignkeep.objects import code_of, faults_of, find_object
from alignkeep.types import Prompt

Rightness = Callable[[Prompt, str], "bool | None"]

_WHERE = "task_score"
_EXPECTED = "package.module:object, a function of (prompt, answer) that returns True, False or None"


def load_rightness(spec: str | None) -> Rightness:
    """Raises RecipeError for what is no function, and later for whatever the function raises or says else."""
    if spec is None:
        return is_correct
    function: Any = find_object(_WHERE, spec, expected=_EXPECTED)
    if not callable(function) or isinstance(function, type):
        raise RecipeError(
            _WHERE, seen=f"{spec}, a {type(function).__name__}", expected=_EXPECTED, remedy="name a function"
        )

    def is_right(prompt: Prompt, answer: str) -> bool | None:
        if prompt.kind != "task":
            return is_correct(prompt, answer)
        said = after_thinking(answer)
        if said is None:
            return False
        with faults_of(function, _WHERE, spec, expected="True, False or None", remedy="mend the function"):
            found: Any = function(prompt, said)
        if not isinstance(found, bool | int | np.bool_ | None) or found not in (True, False, None):
            raise RecipeError(
                _WHERE, seen=f"{found!r}, said by {spec}", expected="True, False or None", remedy="mend the function"
            )
        return None if found is None else bool(found)

    return is_right


def fingerprint_rightness(spec: str) -> str:
    """What decides on its words: its name, and the file that it stands in where there is one."""
    file = code_of(spec)
    return spec if file is None else f"{spec.partition(':')[2]} sha256:{sha256_of_file(file)}"
