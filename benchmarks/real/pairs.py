"""Paired differences between models of the study, from their answers: benchmarks/results/real_pairs.json.

    python benchmarks/real/pairs.py [--work real]

Both models of a pair were asked the same prompts. A difference is the first's rate minus the second's, in points, with
Newcombe's paired interval; docs/real-model.md quotes them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from table import RESULTS, ROOT

from alignkeep.judging.statistics import count_pairs, paired_difference

PAIRS = (
    ("sst2_p10", "sst2"),
    ("sst2_p10_curated", "sst2_p10"),
    ("sst2_p10_kl_anchor", "sst2_p10"),
    ("sst2_p10_kl_anchor_4", "sst2_p10"),
    ("sst2_p10_kl_anchor_4", "sst2_p10_replay"),
    ("sst2_p10_fisher", "sst2_p10"),
    ("sst2_p10_inject", "sst2_p10"),
    ("sst2_p10_fisher", "sst2_p10_linear"),
)
RATES = {"harmful": "harm refusal", "borderline": "over-refusal", "harmless": "benign compliance", "task": "SST-2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "real")
    runs = parser.parse_args().work / "runs"
    found = {f"{one} - {other}": difference(runs / one, runs / other) for one, other in PAIRS}
    (RESULTS.parent / "real_pairs.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, rates in found.items():
        print(name, *(f"{rate} {d['value']:+.1f} [{d['low']:+.1f}, {d['high']:+.1f}]" for rate, d in rates.items()))


def difference(one: Path, other: Path) -> dict[str, dict[str, float]]:
    """By rate, over the prompts that both were asked."""
    first, second = answers(one), answers(other)
    result: dict[str, dict[str, float]] = {}
    for kind, rate in RATES.items():
        same = sorted(key for key in first.keys() & second.keys() if key[0] == kind)
        ours, theirs = (np.array([side[key] for key in same]) for side in (first, second))
        change = paired_difference(count_pairs(ours, theirs))
        result[rate] = {name: round(100 * getattr(change, name), 1) for name in ("value", "low", "high")}
        result[rate]["n"] = change.n
    return result


def answers(run: Path) -> dict[tuple[str, int], bool]:
    """What each prompt's answer counts as: refused, answered, or right."""
    rows = map(json.loads, (run / "evaluate" / "answers.jsonl").read_text(encoding="utf-8").splitlines())
    return {(row["kind"], row["index"]): counts(row) for row in rows if row["model"] != "base"}


def counts(row: dict[str, object]) -> bool:
    if row["kind"] == "task":
        return bool(row["correct"])
    return row["verdict"] == ("compliance" if row["kind"] == "harmless" else "refusal")


if __name__ == "__main__":
    main()
