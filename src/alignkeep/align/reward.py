"""What tells a better answer from a worse one, in the one form that TRL takes: a function

    reward(prompts, completions, **columns) -> list[float | None]

that is given every column of the data as a list, and says None where it cannot score. A judge that compares two answers
is such a function through `PairwiseReward`.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkeep.align.config import RewardSettings
from alignkeep.align.reference import answer_text, as_messages
from alignkeep.errors import AlignkeepError, DataError, MachineError, RecipeError
from alignkeep.judging.pairs import Comparison, PairJudge
from alignkeep.models.config import GenerationConfig, LoadConfig
from alignkeep.models.folders import resolve
from alignkeep.models.loading import fingerprint_model
from alignkeep.objects import find_object, make_object
from alignkeep.testbed.reward import rule_reward

if TYPE_CHECKING:
    from alignkeep.models.endpoint import Endpoint

Reward = Callable[..., list[float | None]]

_FORMS = "`package.module:object`, `judge:MODEL`, `judge:https://host/v1#model`, `scorer:MODEL` or `testbed`"
_HOPELESS = 8  # chosen: so many requests that fail, and none that does not, and a judge is given up
_PARTS = 8  # chosen: of so many requests per connection the slowest is waited for once
_WHERE = "align.reward.spec"


# What TRL gives to a reward function itself, and what it takes for pictures.
GIVEN = frozenset(
    {
        *("prompt", "prompts", "completion", "completions", "completion_ids", "reference", "image", "images"),
        *("trainer_state", "log_extra", "log_metric", "environment", "environments"),
    }
)


@dataclass(frozen=True)
class PairwiseReward:
    """A judge as a reward function. An answer that is its reference has the reward 0, and the judge is not asked."""

    judge: PairJudge

    def __call__(
        self, *, prompts: Sequence[Any], completions: Sequence[Any], reference: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        pairs = [
            Comparison(as_messages(prompt), answer_text(completion), answer_text(other))
            for prompt, completion, other in zip(prompts, completions, reference, strict=True)
        ]
        asked = [pair for pair in pairs if pair.answer != pair.reference]
        given = list(self.judge.compare(asked)) if asked else []
        if len(given) != len(asked):
            raise DataError(
                "align.reward", seen=f"{len(given)} verdicts on {len(asked)} pairs", expected="one for every pair",
                remedy="mend the judge",
            )  # fmt: skip
        wrong = [verdict for verdict in given if verdict not in (-1, 0, 1, None)]
        if wrong:
            raise DataError(
                "align.reward", seen=f"the verdict {wrong[0]!r}", expected="1, 0, -1 or None", remedy="mend the judge"
            )
        verdicts = iter(given)
        return [0.0 if pair.answer == pair.reference else next(verdicts) for pair in pairs]


class CheckedReward:
    """A reward function whose faults have a name: it raises DataError for another number of rewards than answers, for
    one that is not a finite number or None, and for what the function itself raises."""

    def __init__(self, reward: Callable[..., Any], name: str) -> None:
        self._reward = reward
        self.__name__ = name  # what TRL logs it under

    def __call__(self, **columns: Any) -> list[float | None]:
        count = len(columns["completions"])
        try:
            given: Any = self._reward(**columns)
            rewards = list(asyncio.run(given) if inspect.iscoroutine(given) else given)
        except AlignkeepError:
            raise
        except OSError as error:
            raise MachineError(
                f"align.reward, {self.__name__}", seen=f"{type(error).__name__}: {str(error)[:200]}",
                expected="rewards", remedy="see to what it asks; what was learned so far is kept",
            ) from error  # fmt: skip
        except Exception as error:
            raise self._unfit(f"{type(error).__name__}: {str(error)[:200]}", "a list of rewards", count) from error
        if len(rewards) != count:
            raise self._unfit(f"{len(rewards)} rewards", "one for every answer", count)
        wrong = [one for one in rewards if one is not None and not (_is_number(one) and math.isfinite(one))]
        if wrong:
            raise self._unfit(f"the reward {wrong[0]!r}", "a finite number, or None where it cannot be told", count)
        return [None if one is None else float(one) for one in rewards]

    def _unfit(self, seen: str, expected: str, count: int) -> DataError:
        return DataError(
            f"align.reward, {self.__name__}", seen=f"{seen}, of {count} answers", expected=expected,
            remedy="mend the reward function",
        )  # fmt: skip


def load_reward(settings: RewardSettings, load: LoadConfig, judgements: Path) -> Reward:
    """The reward function that `settings.spec` names, checked; a judge's words are kept in the file `judgements`.

    Of `load` the device and the dtype are a judge's too; a revision, and leave to run code, are the policy's alone.
    Raises RecipeError where the spec has another form or cannot be imported, and what loading a model raises.
    """
    kind, _, name = settings.spec.partition(":")
    own = LoadConfig(device=load.device, dtype=load.dtype)
    if settings.spec == "testbed":
        return CheckedReward(rule_reward, "testbed")
    if kind == "judge" and name:
        return CheckedReward(PairwiseReward(_judge(settings, name, own, judgements)), "judge")
    if kind == "scorer" and name:
        from alignkeep.align.scorer import Scorer

        return CheckedReward(PairwiseReward(Scorer(name, own, settings.tie_margin)), "scorer")
    found = _object(settings.spec)
    if isinstance(found, type):
        found = make_object(_WHERE, settings.spec, found, expected=_FORMS)
    return as_reward(found, settings.spec.rpartition(":")[2])


def as_reward(found: object, name: str) -> Reward:
    """A reward function or a judge of pairs as a checked reward function. Raises RecipeError for anything else."""
    if isinstance(found, PairJudge):
        return CheckedReward(PairwiseReward(found), name)
    if not callable(found):
        raise _no_reward(name, found)
    return CheckedReward(found, name)


def check_reward(settings: RewardSettings) -> None:
    """What can be said of the spec without loading a model. Raises as `load_reward` does."""
    kind, _, name = settings.spec.partition(":")
    if kind in ("judge", "scorer") and name:
        if kind == "scorer" or _endpoint(settings, name) is None:
            resolve(name)
    elif settings.spec != "testbed":
        found = _object(settings.spec)
        if not (callable(found) or isinstance(found, PairJudge)):
            raise _no_reward(settings.spec, found)


def fingerprint_reward(settings: RewardSettings) -> str:
    """What the rewards depend on beside the settings: the judge's weights, or the file of a function."""
    kind, _, name = settings.spec.partition(":")
    if kind in ("judge", "scorer") and name:
        remote = kind == "judge" and _endpoint(settings, name) is not None
        return settings.spec if remote else fingerprint_model(name, None)
    if settings.spec == "testbed":
        file = sys.modules[rule_reward.__module__].__file__
    else:
        _object(settings.spec)  # there, or an error
        file = getattr(sys.modules[settings.spec.partition(":")[0]], "__file__", None)
    return settings.spec if file is None else f"sha256:{hashlib.sha256(Path(file).read_bytes()).hexdigest()}"


def _endpoint(settings: RewardSettings, name: str) -> Endpoint | None:
    """The endpoint that is named, asked nothing yet; None for a judge that is loaded here."""
    if not name.startswith(("http://", "https://")):
        return None
    from alignkeep.models.endpoint import Endpoint

    url, _, model = name.partition("#")
    if not model:
        raise RecipeError(
            _WHERE, seen="a URL without a model", expected="judge:https://host/v1#model",
            remedy="name the model behind a #",
        )  # fmt: skip
    return Endpoint(
        url, model, max_tokens=settings.max_tokens, timeout=settings.timeout, retries=settings.retries,
        concurrency=settings.concurrency, hopeless=_HOPELESS, body=settings.body,
    )  # fmt: skip


def _judge(settings: RewardSettings, name: str, load: LoadConfig, judgements: Path) -> PairJudge:
    from alignkeep.judging.pairs import AskingJudge
    from alignkeep.judging.replies import LocalJudge, Remembered

    ask, at_once = _endpoint(settings, name), _PARTS * settings.concurrency
    if ask is not None and judgements.exists():  # a continued run: what is left may be what cannot be answered
        ask.has_answered.set()
    if ask is None:
        at_once = None
        ask = LocalJudge(name, load, GenerationConfig(max_new_tokens=settings.max_tokens))
        name = fingerprint_model(name, None)  # a judge that was trained on is another judge
    return AskingJudge(Remembered(ask, judgements, name, at_once), settings.criterion, settings.both_orders)


def _is_number(one: object) -> bool:
    return isinstance(one, int | float | np.number) or (hasattr(one, "item") and getattr(one, "ndim", 1) == 0)


def _object(spec: str) -> object:
    return find_object(_WHERE, spec, expected=_FORMS)


def _no_reward(spec: str, found: object) -> RecipeError:
    return RecipeError(
        _WHERE, seen=f"{spec!r}, a {type(found).__name__}",
        expected="a reward function of TRL's, or an object with compare()", remedy="name another object",
    )  # fmt: skip
