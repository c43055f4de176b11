"""Who says what an answer did: one Protocol, and the way to a judge.

The judge of answers that comes with the package is `keyword.KeywordJudge`; guard models stand in `guards.py`, any chat
model with a rubric in `rubric.py`, judges of pairs of answers in `pairs.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from alignkeep.checkpoint.listing import sha256_of_file
from alignkeep.errors import RecipeError
from alignkeep.judging.guards import GuardJudge, guard_judge
from alignkeep.judging.keyword import KeywordJudge
from alignkeep.judging.rubric import RubricJudge, rubric_judge
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.objects import code_of, faults_of, load_object
from alignkeep.types import Judgement, Prompt, Verdict

REPLIES = "judgements.partial.jsonl"  # what judges who ask were told, in a folder that is not finished

_FORMS = (
    "`keyword`, a guard model, `rubric=MODEL`, `https://host/v1#name` or `package.module:object` with a method "
    "judge(prompt, answer) -> Judgement"
)


@runtime_checkable
class Judge(Protocol):
    """Anything that can say what an answer did. The same answer always gets the same word."""

    @property
    def name(self) -> str:
        """What errors and results call it."""
        ...

    @property
    def version(self) -> str | None:
        """Changes whenever an answer may be judged otherwise; None where nobody keeps count."""
        ...

    def judge(self, prompt: Prompt, answer: str) -> Judgement:
        """`answer` may be empty, and may be anything a model can say; nothing in it is an instruction."""
        ...


@runtime_checkable
class BatchJudge(Judge, Protocol):
    """A judge that is quicker with many answers at once."""

    def judge_all(self, answers: Sequence[tuple[Prompt, str]]) -> Sequence[Judgement]:
        """What `judge` says of each, in their order."""
        ...


@runtime_checkable
class Keeping(Judge, Protocol):
    """A judge that asks somebody, and can keep what it is told: a killed run does not ask for it again."""

    def keeping(self, file: Path) -> Judge:
        """The same judge, with its replies in this file."""
        ...


@runtime_checkable
class _Nameless(Protocol):
    """A judge without name or version: what it is called by is the spec that names it."""

    def judge(self, prompt: Prompt, answer: str) -> Judgement: ...


@dataclass(frozen=True)
class _Named:
    """A nameless judge under the name of its spec."""

    nameless: _Nameless
    name: str
    version: str | None = None

    def judge(self, prompt: Prompt, answer: str) -> Judgement:
        return self.nameless.judge(prompt, answer)


def load_judge(spec: str) -> Judge:
    """ "keyword", a guard model ("wildguard", "wildguard=MODEL"), any chat model with a rubric ("rubric=MODEL",
    "https://host/v1#name"), or "package.module:object" naming a Judge (an object, or a class that makes one without
    arguments). One that has no name and no version goes by the spec.

    Raises RecipeError when the spec has another form, cannot be imported, or is no Judge.
    """
    if spec == "keyword":
        return KeywordJudge()
    asking = guard_judge(spec) or rubric_judge(spec)
    if asking is not None:
        return asking
    found = load_object("judge", spec, expected=_FORMS)
    if isinstance(found, Judge):
        return found
    if isinstance(found, _Nameless):
        return _Named(found, spec)
    raise RecipeError(
        "judge",
        seen=f"{spec!r}, a {type(found).__name__} without judge()",
        expected=_FORMS,
        remedy="give the object a method judge(prompt, answer)",
    )


def load_judges(specs: str) -> list[Judge]:
    """The judges that specs with commas between them name, the first of whom is counted. Raises RecipeError as
    `load_judge`, and for two of one name."""
    found = [load_judge(spec.strip()) for spec in specs.split(",")]
    names = [judge.name for judge in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise RecipeError(
            "judge", seen=f"{twice[0]} twice", expected="judges with names of their own", remedy="name each once"
        )
    return found


def keeping(judges: Sequence[Judge], file: Path) -> list[Judge]:
    """The same judges; those who can keep what they are told do so in this file."""
    return [judge.keeping(file) if isinstance(judge, Keeping) else judge for judge in judges]


def fingerprint_judges(specs: str) -> str:
    """What decides on the words of all judges that specs with commas between them name."""
    return ", ".join(fingerprint_judge(spec.strip()) for spec in specs.split(","))


def fingerprint_judge(spec: str) -> str:
    """What decides on the words of the judge that `spec` names: its name and version, and of one of which nobody keeps
    count the file that it stands in."""
    judge = load_judge(spec)
    file = code_of(spec) if judge.version is None else None
    model = spec.partition("=")[2]
    if isinstance(judge, RubricJudge | GuardJudge) and Path(model or "/dev/null").is_dir():
        return f"{judge.name} {judge.version} {fingerprint_model(model)}"
    if file is None:
        return f"{judge.name} {judge.version}"
    return f"{spec.partition(':')[2]} sha256:{sha256_of_file(file)}"  # a file may hold two


def checked_judgements(judge: Judge, answers: Sequence[tuple[Prompt, str]]) -> list[Judgement]:
    """The judge's words, in the order of the answers; at once where it can. Raises RecipeError as `checked_judgement`,
    and where there are not as many words as answers."""
    if not isinstance(judge, BatchJudge):
        return [checked_judgement(judge, prompt, answer) for prompt, answer in answers]
    found = list(judge.judge_all(answers))
    if len(found) != len(answers):
        raise _unfit(judge, f"{len(found)} judgements of {len(answers)} answers", "one for each")
    return [_checked(judge, one) for one in found]


def checked_judgement(judge: Judge, prompt: Prompt, answer: str) -> Judgement:
    """The judge's word. Raises RecipeError where it is no Judgement, or its score no number in [0, 1]."""
    theirs = judge.nameless if isinstance(judge, _Named) else judge
    expected = "a judgement of any answer"
    with faults_of(theirs, f"judge {judge.name}", "its judge()", expected=expected, remedy="mend the judge"):
        judgement: object = judge.judge(prompt, answer)
    return _checked(judge, judgement)


def _checked(judge: Judge, judgement: object) -> Judgement:
    if not isinstance(judgement, Judgement) or not isinstance(judgement.verdict, Verdict):
        raise _unfit(judge, f"{judgement!r:.80}", "an alignkeep.types.Judgement with a Verdict")
    if judgement.score is not None and not 0 <= judgement.score <= 1:
        raise _unfit(judge, f"score {judgement.score}", "None or a number in [0, 1]")
    return judgement


def _unfit(judge: Judge, seen: str, expected: str) -> RecipeError:
    return RecipeError(f"judge {judge.name}", seen=seen, expected=expected, remedy="mend the judge")
