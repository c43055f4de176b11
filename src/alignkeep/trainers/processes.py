"""One process does, all know: work that only the first of several processes may do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from alignkeep.checkpoint.folders import leads
from alignkeep.errors import AlignkeepError
from alignkeep.trainers.arguments import world_size

T = TypeVar("T")


def by_first(work: Callable[[], T]) -> T:
    """Run `work` in the first process and return its value, or raise its error, in all of them.

    Needs the process group, which `SFTConfig` opens. The value travels pickled.
    """
    if world_size() == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None, None]
    if leads():
        try:
            outcome[0] = work()
        except AlignkeepError as error:
            outcome[1] = error
    if isinstance(outcome[1], AlignkeepError):
        outcome[1] = (type(outcome[1]), vars(outcome[1]))
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        kind, parts = outcome[1]
        raise kind(parts["where"], seen=parts["seen"], expected=parts["expected"], remedy=parts["remedy"])
    return outcome[0]
