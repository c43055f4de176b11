"""Utility in an evaluation: the items that were done, kept as they come, and what they say of the model and its base.

Model and base are given the same items, and compared item by item. A share of yes/no scores has Wilson's interval and
McNemar's test; scores between 0 and 1 have a bootstrap over items and a sign-flip test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignkeep.checkpoint.parts import append_rows, recover_rows
from alignkeep.evaluate.answers import Side
from alignkeep.evaluate.harness import Harness, Item, Part, Utility, UtilityTask
from alignkeep.judging.drift import corrected
from alignkeep.judging.metrics import UTILITY
from alignkeep.judging.statistics import RATE, mcnemar, paired_bootstrap, sign_flip_test, wilson
from alignkeep.progress import Progress
from alignkeep.types import Estimate, PairedTest, Scorecard

if TYPE_CHECKING:
    from alignkeep.models.loading import LoadedModel

ITEMS, LOG = "utility.jsonl", "utility.partial.jsonl"

Scores = Mapping[tuple[str, int], float | None]


class UtilityLog:
    """The items of both sides, on the disk as soon as a part of a task is done. A part of which a line was torn is
    done again."""

    def __init__(self, path: Path, utility: Utility) -> None:
        self._path, self._utility = path, utility
        self._items: dict[tuple[str, str, str, int], Item] = {}
        for row in recover_rows(path):
            side = row.pop("model")
            self._keep(side, Item(**row))

    def _keep(self, side: str, item: Item) -> None:
        self._items[side, item.utility, item.task, item.item] = item

    def add(self, side: Side, items: Iterable[Item]) -> None:
        items = list(items)
        append_rows(self._path, [{"model": side, **item._asdict()} for item in items])
        for item in items:
            self._keep(side, item)

    def missing(self, side: Side) -> list[tuple[UtilityTask, Part]]:
        """The parts of which not every item of this side is there."""
        return [
            (task, part)
            for task in self._utility.tasks
            for part in task.parts
            if any((side, task.name, part.name, item) not in self._items for item in part.items)
        ]

    def measure(self, side: Side, loaded: LoadedModel, batch_size: int, progress: Progress) -> None:
        """Fill in what is missing of a side."""
        missing = self.missing(side)
        if not missing:
            return
        progress.start(f"utility of {loaded.checkpoint.reference}", sum(len(part.items) for _, part in missing))
        harness = Harness(loaded, batch_size)
        for task, part in missing:
            self.add(side, harness.measure(task.name, part))
            progress.advance(len(part.items), part.name)
        progress.done()

    def rows(self, sides: Sequence[Side]) -> list[dict[str, object]]:
        """The lines of `utility.jsonl`."""
        return [
            {"model": side, **self._items[side, task.name, part.name, item]._asdict()}
            for side in sides
            for task in self._utility.tasks
            for part in task.parts
            for item in part.items
        ]

    def scores(self, side: Side, task: UtilityTask) -> Scores:
        """The score of every item of a task."""
        keys = [(part.name, item) for part in task.parts for item in part.items]
        return {key: self._items[(side, task.name, *key)].score for key in keys}


def with_utility(card: Scorecard, utility: Utility, log: UtilityLog, *, seed: int) -> Scorecard:
    """The scorecard with a metric for every task, and its paired test where there is a base."""
    found, of_base, notes = dict(card.metrics), dict(card.base_metrics), dict(card.notes)
    tests = dict(card.tests)
    for task in utility.tasks:
        name, model = UTILITY.part(task.name), log.scores("tuned", task)
        found[name] = mean_score(model, seed=seed)
        if card.base is not None:
            base = log.scores("base", task)
            of_base[name] = mean_score(base, seed=seed)
            test = compare_scores(name, model, base, seed=seed)
            tests |= {} if test is None else {name: test}
        facts = task.facts
        several = f" of {facts['tasks']} tasks together" if len(task.parts) > 1 else ""
        notes[name] = f"{facts['metric']} of lm-eval {utility.version}, {facts['items']} items{several}"
    return replace(card, metrics=found, base_metrics=of_base, tests=corrected(tests), notes=notes)


def mean_score(scores: Scores, *, seed: int) -> Estimate:
    """The mean over the items that have a score: of yes/no scores the share with Wilson's interval, else with a
    bootstrap interval. None with a score: NaN within [0, 1]."""
    known = np.array([score for score in scores.values() if score is not None], dtype=np.float64)
    if _are_yes_no(known):
        return wilson(int(known.sum()), known.size)
    return paired_bootstrap(known, np.zeros_like(known), seed=seed, bounds=RATE)


def compare_scores(name: str, model: Scores, base: Scores, *, seed: int) -> PairedTest | None:
    """Model minus base over the items that have a score of both; None where there is no such item."""
    pairs = [
        (score, other) for key, score in model.items() if score is not None and (other := base.get(key)) is not None
    ]
    if not pairs:
        return None
    m, b = (np.array(side, dtype=np.float64) for side in zip(*pairs, strict=True))
    if _are_yes_no(m) and _are_yes_no(b):
        return mcnemar(m == 1, b == 1, name=name)
    more, fewer = int((m > b).sum()), int((m < b).sum())
    found = paired_bootstrap(m, b, seed=seed)
    if found.low == found.high:  # equal gaps: resampling knows no luck, but another item may have another
        reach = 1 - 0.025 ** (1 / found.n)
        found = replace(found, low=max(-1.0, found.low - reach), high=min(1.0, found.high + reach))
    return PairedTest(name, found, sign_flip_test(m - b, seed=seed), more, fewer)


def _are_yes_no(scores: np.ndarray) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())
