"""What a merge will take, for `--dry-run`."""

from __future__ import annotations

import math
import os

from alignkeep.checkpoint.numbers import FORMATS
from alignkeep.merge.edits import edits_of
from alignkeep.merge.pieces import PIECE
from alignkeep.merge.prepare import Prepared
from alignkeep.models.folders import tensor_entries

# Chosen: measured in benchmarks/bench_merge.py on two cores. Bytes of checkpoint per second, and what the process
# itself holds.
_LINEAR, _RANKED, _PROCESS = 600e6, 150e6, 200e6
_RANKING = ("ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties")


def plan_merge(prepared: Prepared) -> dict[str, object]:
    """Counts are exact; memory, disk and seconds are rough, and leave out a sweep and the model it loads."""
    config, models = prepared.config, prepared.models
    rule = prepared.rule(config.weight)
    edits = edits_of(models, rule)
    size = sum(entry.size for entry in models.entries.values())
    if config.form == "adapter":
        size = sum(entry.size for entry in tensor_entries(models.tuned[0].folder, adapter=True).values())
    held = (os.cpu_count() or 1) * PIECE * 4 * (3 + 2 * len(models.tuned))
    speed = _RANKED if config.method in _RANKING else _LINEAR
    weights = len({0.0, 1.0, *config.sweep.weights}) if config.sweep is not None else 0
    return {
        "stage": "merge",
        "base": config.base,
        "tuned": list(config.tuned),
        "method": config.method,
        "weight": f"measured at {weights} weights" if weights else config.weight if prepared.has_weight else None,
        "form": config.form,
        "tensors": len(models.entries),
        "merged": len(edits),
        "not_calculated_with": sum(entry.dtype not in FORMATS for entry in models.entries.values()),
        "memory_bytes": int(_PROCESS + held),
        "disk_bytes": size,
        "seconds": math.ceil(size / speed),
        "notes": list(prepared.notes),
    }
