"""A sweep over methods as well as weights: each method that the given data allow is swept, and the best pick is taken.

What was measured of the methods that were not taken stands in `sweep.json` under `tried`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from alignkeep.checkpoint.parts import is_whole, seal
from alignkeep.errors import NoEffectError
from alignkeep.judging.measure import Measure
from alignkeep.merge.method import Space
from alignkeep.merge.prepare import Prepared
from alignkeep.merge.select import REFUSAL, TASK
from alignkeep.merge.sweep import sweep
from alignkeep.merge.swept import SWEEP_NAME, SweepResult, read_sweep
from alignkeep.progress import Progress
from alignkeep.types import Measurement

_TRIED = "tried"


class Swept(NamedTuple):
    """The merge by the method that was taken, what was measured for it, and its sweep."""

    prepared: Prepared
    spaces: Mapping[str, Space]
    found: SweepResult


def sweep_methods(prepared: Prepared, work: Path, measure: Measure | None, progress: Progress) -> Swept:
    """Sweep the one method that was named, or every one that `auto` tries, and leave `sweep.json` in `work`.

    Of several picks one within the margin of the base's harm refusal comes before one outside of it; then the best task
    score is taken, outside the most harm refusal; then the order of the methods. Goes on after a kill. Raises as
    `sweep` does, where no method has a pick.
    """
    tries = prepared.tries
    if len(tries) == 1:
        return _swept(tries[0], work, measure, progress, None)
    if is_whole(work / SWEEP_NAME):
        found = read_sweep(work / SWEEP_NAME)
        chosen = next(one for one in tries if one.config.method == found.settings["method"])
        return Swept(chosen, _spaces(chosen, work, progress), found)
    known: dict[str, Measurement] = {}
    good: list[Swept] = []
    faults: list[NoEffectError] = []
    for one in tries:
        place = work / _TRIED / one.config.method
        place.mkdir(parents=True, exist_ok=True)
        try:
            good.append(_swept(one, place, measure, progress, known))
        except NoEffectError as error:
            faults.append(error)
    names = [one.config.method for one in tries]
    measured = [path.parent / SWEEP_NAME for path in sorted((work / _TRIED).glob(f"*/{SWEEP_NAME}"))]
    results = {str(found.settings["method"]): found for found in map(read_sweep, measured)}
    if not good:
        _leave_nearest(results, names, work)
        raise faults[0]
    best = max(good, key=lambda one: _merit(one.found))
    found = _with_tried(best.found, names, results)
    if best.spaces:
        from alignkeep.merge.spaces import SUBSPACE, write_spaces

        write_spaces(best.spaces, work / SUBSPACE)
        seal(work / SUBSPACE)
    seal(found.write(work))
    shutil.rmtree(work / _TRIED)
    return best._replace(found=found)


def _swept(
    prepared: Prepared, work: Path, measure: Measure | None, progress: Progress, known: dict[str, Measurement] | None
) -> Swept:
    spaces = _spaces(prepared, work, progress)
    at = partial(prepared.rule, spaces=spaces)
    found = sweep(prepared.config, work=work, method_at=at, measure=measure, progress=progress, known=known)
    return Swept(prepared, spaces, found)


def _spaces(prepared: Prepared, work: Path, progress: Progress) -> Mapping[str, Space]:
    if prepared.spectrum is None:
        return {}
    from alignkeep.merge.spaces import measured_spaces

    return measured_spaces(prepared.config, prepared.spectrum, list(prepared.models.entries), work, progress)


def _merit(found: SweepResult) -> tuple[bool, float, float]:
    """Within the margin the task counts first, outside of it refusal does."""
    metrics = found.at(found.picked).metrics
    task, refusal = metrics[TASK].value, metrics[REFUSAL].value
    is_safe = refusal >= found.base[REFUSAL].value - found.margin - 1e-9
    return (True, task, refusal) if is_safe or found.rule == "task" else (False, refusal, task)


def _with_tried(best: SweepResult, names: Sequence[str], results: Mapping[str, SweepResult]) -> SweepResult:
    """The sweep that was taken, with what those of the other methods measured that had a pick."""
    told = [
        {"method": one.settings["method"], "picked": one.picked, "why": one.why, "front": list(one.front),
         "weights": [trade.as_json() for trade in one.trades]}
        for one in map(results.get, names) if one is not None and one.settings["method"] != best.settings["method"]
    ]  # fmt: skip
    why = f"of {', '.join(names)} the pick of {best.settings['method']} is the best: {best.why}"
    return replace(best, why=why, settings={**best.settings, _TRIED: told})


def _leave_nearest(results: Mapping[str, SweepResult], names: Sequence[str], work: Path) -> None:
    """Where no method has a pick that may be taken, the record of the one that came nearest."""
    if results:
        nearest = max(results.values(), key=_merit)
        _with_tried(nearest, names, results).write(work)
    shutil.rmtree(work / _TRIED)
