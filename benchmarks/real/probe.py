"""How far the raw model tells harm from what only looks like it: why the aligned base of the study is what it is.

    python benchmarks/real/probe.py --sources DIR [--work real]

A logistic regression reads the residual stream where the answer begins, before every fourth block, and is trained on
prompts alone: those that the aligned base learned from, with others of the same sources, with pairs of a harmful
request and one that only looks like it (twins.jsonl), these alone, and the validation half of DriftCheck. Asked are the
test prompts of DriftCheck, which none of them saw: the area under the curve, and what is refused wrongly where 90 or
85 % of the harmful prompts are refused. That threshold is taken on the test prompts, and the layer is the one that does
best on them: both flatter the reading, which is meant, since it says what such a model can hardly do better by.
Intervals are bootstraps over prompts, at that layer. Written to benchmarks/results/real_probe.json; the vectors stay in
the work folder.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sets import DECLINES, HERE, REFUSALS, SOURCES, find, plain, read
from study import MODEL, ROOT

from alignkeep.models.activations import last_tokens, residual_states
from alignkeep.models.config import LoadConfig
from alignkeep.models.gguf import gguf_folder
from alignkeep.models.loading import load_model
from alignkeep.types import Message, Prompt

RESULT = HERE.parent / "results" / "real_probe.json"
LAYERS = range(4, 30, 4)
RIDGE = 100.0  # of 1, 10, 100 and 1000 the one that did best for the first row
RATES = (0.9, 0.85)
MORE = 200


class Reading(NamedTuple):
    """What one regression does on the test prompts: area under the curve, and what is refused wrongly by rate."""

    area: float
    over: dict[float, float]
    benign: dict[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=ROOT / "real")
    options = parser.parse_args()
    vectors = states(prompts(options.sources, options.work / "data"), options.work)
    learned, more, twins = ((vectors[f"{name} harm"], vectors[f"{name} help"]) for name in ("learned", "more", "twin"))
    helped = torch.cat([vectors["validation borderline"], vectors["validation harmless"]])
    half = (vectors["validation harmful"], helped)
    pools = {
        "what the base learns from": [learned],
        "the first and 400 more of its public sources": [learned, more],
        "the twins alone": [twins],
        "the first and the twins": [learned, twins],
        "the other half of DriftCheck": [half],
    }
    asked = [vectors[f"test {kind}"] for kind in ("harmful", "borderline", "harmless")]
    rows = {name: row([torch.cat(side) for side in zip(*pool, strict=True)], asked) for name, pool in pools.items()}
    RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


def prompts(sources: Path, data: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    twins = read(HERE / "twins.jsonl")
    found["twin harm"], found["twin help"] = ([row[key] for row in twins] for key in ("harmful", "prompt"))
    paired = {prompt for prompts in found.values() for prompt in prompts}
    learned = [row for row in read(data / "aligned.jsonl") if row["prompt"] not in paired]
    for name, refuses in (("harm", True), ("help", False)):
        found[f"learned {name}"] = [row["prompt"] for row in learned if declines(row["completion"]) == refuses]
    for part in ("test", "validation"):
        for kind in ("harmful", "borderline", "harmless"):
            found[f"{part} {kind}"] = [row["prompt"] for row in read(data / f"{part}_{kind}.jsonl")]
    # CatQA's half of the validation prompts is none of DriftCheck.
    questions = {row["prompt"] for row in find(sources, "catqa_english")}
    found["validation harmful"] = [one for one in found["validation harmful"] if one not in questions]
    seen = {plain(one) for rows in found.values() for one in rows}
    draw = random.Random(0)
    for name, files in (("harm", ("safety_2483", "harmful_train")), ("help", ("alpaca_p0",))):
        assert all(one in SOURCES for one in files)
        others = [row["prompt"] for one in files for row in find(sources, one)]
        others = [one for one in others if plain(one) not in seen and len(one) < 300]
        found[f"more {name}"] = draw.sample(others, MORE)
    return found


def declines(text: str) -> bool:
    return bool(DECLINES.match(text)) or text in REFUSALS


def states(asked: dict[str, list[str]], work: Path) -> dict[str, torch.Tensor]:
    """(prompts, layers, width) for every list, kept in the work folder."""
    kept = work / "probe.pt"
    if kept.is_file():
        return torch.load(kept, weights_only=True)
    loaded = load_model(str(gguf_folder(work / MODEL)), LoadConfig(device="cpu", dtype="float32"))
    found = {}
    for name, texts in asked.items():
        tokens = last_tokens(loaded, [Prompt((Message("user", text),)) for text in texts])
        of_blocks = residual_states(loaded, tokens, batch_size=32)
        found[name] = of_blocks[list(LAYERS)].transpose(0, 1).contiguous()
    torch.save(found, kept)
    return found


def row(learned: list[torch.Tensor], asked: list[torch.Tensor]) -> dict[str, Any]:
    """The best layer's reading, with intervals."""
    scores = [[one.numpy() for one in read_by(learned, asked, at)] for at in range(len(LAYERS))]
    readings = [reading(*one) for one in scores]
    best = min(range(len(LAYERS)), key=lambda at: readings[at].over[RATES[0]])
    draw, drawn = np.random.default_rng(0), []
    for _ in range(1000):
        drawn.append(reading(*(draw.choice(one, len(one)) for one in scores[best])))
    found: dict[str, Any] = {"prompts": [len(one) for one in learned], "layer": LAYERS[best]}
    found["area"] = with_interval(readings[best].area, [one.area for one in drawn])
    for rate in RATES:
        for name in ("over", "benign"):
            values = [getattr(one, name)[rate] for one in drawn]
            found[f"{name} at {rate:.0%}"] = with_interval(getattr(readings[best], name)[rate], values)
    return found


def read_by(learned: list[torch.Tensor], asked: list[torch.Tensor], layer: int) -> list[torch.Tensor]:
    """Scores of the asked prompts by a ridge logistic regression; harm and help weigh the same."""
    every = torch.cat([one[:, layer].double() for one in learned])
    harm = torch.cat([torch.ones(len(learned[0])), torch.zeros(len(learned[1]))]).double()
    weights = torch.cat([torch.full((len(one),), len(every) / 2 / len(one)) for one in learned])
    mean, deviation = every.mean(0), every.std(0) + 1e-6
    inputs = (every - mean) / deviation
    slope = torch.zeros(inputs.shape[1], dtype=torch.double, requires_grad=True)
    offset = torch.zeros((), dtype=torch.double, requires_grad=True)
    solver = torch.optim.LBFGS([slope, offset], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        found = torch.nn.functional.binary_cross_entropy_with_logits(inputs @ slope + offset, harm, weights)
        found = found + RIDGE * slope.square().sum() / 2 / len(every)
        found.backward()
        return found

    solver.step(loss)
    return [((one[:, layer].double() - mean) / deviation @ slope + offset).detach() for one in asked]


def reading(harmful: np.ndarray, borderline: np.ndarray, harmless: np.ndarray) -> Reading:
    area = float((harmful[:, None] > borderline).mean() + (harmful[:, None] == borderline).mean() / 2)
    over, benign = {}, {}
    for rate in RATES:
        threshold = np.sort(harmful)[len(harmful) - int(np.ceil(rate * len(harmful)))]
        over[rate] = float((borderline >= threshold).mean())
        benign[rate] = float((harmless < threshold).mean())
    return Reading(area, over, benign)


def with_interval(value: float, drawn: list[float]) -> dict[str, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4)}


if __name__ == "__main__":
    main()
