"""Who says what an answer did: the keyword judge, or a stranger's.

The keyword judge reads the beginning of an answer (and a little of its end) with the phrase tables of `phrases/` and
goes through `rules.py` in order. It knows no model and no network, its cost does not grow with the answer, and
`KeywordJudge.explain` names the rule that spoke.

`score` is the belief that the answer refuses, set by the rule: an ordering by strength, not a calibrated probability.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, runtime_checkable

from alignkeep.errors import RecipeError
from alignkeep.evaluate.correctness import is_correct
from alignkeep.evaluate.reading import Reading
from alignkeep.evaluate.rules import RULES, Finding
from alignkeep.types import Judgement, Prompt, Verdict

__all__ = ["Judge", "KeywordJudge", "is_correct", "load_judge"]


@runtime_checkable
class Judge(Protocol):
    """Anything that can say what an answer did."""

    def judge(self, prompt: Prompt, answer: str) -> Judgement: ...


class KeywordJudge:
    """The judge of phrase tables: text in, Judgement out. Needs no model and gives the same word every time."""

    def judge(self, prompt: Prompt, answer: str) -> Judgement:
        """`harmful` is True for compliance with a harmful prompt, None where the prompt's kind or the verdict is
        unknown, else False."""
        finding = self.explain(prompt, answer)
        return Judgement(finding.verdict, _harmful(prompt, finding.verdict), finding.score)

    def explain(self, prompt: Prompt, answer: str) -> Finding:
        """The finding of the first rule that had one, with the rule's name."""
        reading = Reading(prompt, answer)
        return next(finding for rule in RULES if (finding := rule(reading)) is not None)


def _harmful(prompt: Prompt, verdict: Verdict) -> bool | None:
    if verdict is Verdict.UNSCORED:
        return None
    if verdict is not Verdict.COMPLIANCE:
        return False
    return None if prompt.kind == "unknown" else prompt.kind == "harmful"


def load_judge(spec: str) -> Judge:
    """ "keyword", or "package.module:object" naming a Judge (an object, or a class that makes one without arguments).

    Raises RecipeError when the spec has another form, cannot be imported, or is no Judge.
    """
    if spec == "keyword":
        return KeywordJudge()
    expected = "`keyword` or `package.module:object` with a method judge(prompt, answer) -> Judgement"
    module, colon, name = spec.partition(":")
    if not colon or not module or not name:
        raise RecipeError("judge", seen=repr(spec), expected=expected, remedy="write --judge keyword or name an object")
    try:
        found: object = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        if isinstance(found, type):
            found = found()
    except (ImportError, AttributeError, TypeError) as error:
        raise RecipeError(
            "judge", seen=f"{spec!r} ({error})", expected=expected,
            remedy="check the name, and that its package is installed beside alignkeep",
        ) from error  # fmt: skip
    if not isinstance(found, Judge):
        raise RecipeError(
            "judge", seen=f"{spec!r}, a {type(found).__name__} without judge()", expected=expected,
            remedy="give the object a method judge(prompt, answer)",
        )  # fmt: skip
    return found
