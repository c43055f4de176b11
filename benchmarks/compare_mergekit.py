"""Our merges against mergekit's on the same random tensors: largest difference in float32, rounding error in bfloat16.

    python benchmarks/compare_mergekit.py --mergekit /path/to/an/environment/with/mergekit==0.1.5/bin/python

mergekit runs in its own Python through its public registry. It draws what we draw: torch.bernoulli there compares its
probabilities with our uniform numbers, so that masks differ only if the probabilities do. Tensors have deviation 0.1,
updates 0.02.

float32: the largest absolute difference over all shapes, between the two (above 1e-6 the exit status is 1) and of each
to mergekit run in float64. bfloat16: the root mean square error of what is written, against mergekit run in float64 on
the same numbers, in units of half the last place of a number of 0.1; methods that sort are left out, since the many
equal magnitudes of bfloat16 are cut at another place by either.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SHAPES = [(1,), (1000,), (70001,), (1, 1), (37, 53), (300, 512), (512, 700)]
LIMIT = 1e-6
SEED = 11
DEVIATION, UPDATE = 0.1, 0.02


def cases() -> list[tuple[str, Any, str, int | None, dict[str, Any]]]:
    """Label, our method, mergekit's name for it, the index of its base, and its parameters."""
    from alignkeep.merge import arcs, linear, model_stock, sparsify, task_vectors

    def vectors(kind: Any, weights: tuple[float, ...], **settings: Any) -> task_vectors.TaskVectors:
        return task_vectors.TaskVectors(weights, (kind,) * len(weights), **settings)

    two, one = (0.7, 0.4), (0.7,)
    dare, halved = sparsify.Random(0.5, "l1", SEED), sparsify.Random(0.5, "probability", SEED)
    top, crumbs = sparsify.Magnitude(0.2), sparsify.Outliers(0.6, 0.05)
    ranked = sparsify.RankedRandom(0.5, 0.2, "l1", SEED)
    elected = {"consensus": "sum"}
    return [
        ("linear", linear.Linear((0.4, 0.6)), "linear", 0, {"weight": [0.4, 0.6]}),
        ("linear of three", linear.Linear((0.2, 0.5, 0.3)), "linear", 0, {"weight": [0.4, 1.0, 0.6]}),
        ("slerp", arcs.Slerp(0.6), "slerp", 0, {"t": 0.6}),
        ("nuslerp", arcs.NuSlerp(0.6), "nuslerp", None, {"weight": [0.4, 0.6]}),
        ("nuslerp by last axis", arcs.NuSlerp(0.6, flatten=False), "nuslerp", None,
         {"weight": [0.4, 0.6], "nuslerp_flatten": False}),
        ("nuslerp by first axis", arcs.NuSlerp(0.6, row_wise=True, flatten=False), "nuslerp", None,
         {"weight": [0.4, 0.6], "nuslerp_flatten": False, "nuslerp_row_wise": True}),
        ("nuslerp over base", arcs.NuSlerp(0.6, over_base=True), "nuslerp", 0, {"weight": [0.4, 0.6]}),
        ("model_stock", model_stock.ModelStock(), "model_stock", 0, {}),
        ("task_arithmetic", vectors(None, two), "task_arithmetic", 0, {"weight": two}),
        ("task_arithmetic, mean", vectors(None, two, normalize=True), "task_arithmetic", 0,
         {"weight": two, "normalize": True}),
        ("dare, 1/(1-p)", vectors(halved, two), "dare_linear", 0,
         {"weight": [2 * w for w in two], "density": 0.5, "rescale": False}),
        ("dare, l1", vectors(dare, two), "dare_linear", 0, {"weight": two, "density": 0.5}),
        ("dare_ties", vectors(dare, two, **elected), "dare_ties", 0, {"weight": two, "density": 0.5}),
        ("ties", vectors(top, two, **elected, normalize=True), "ties", 0, {"weight": two, "density": 0.2}),
        ("ties of one, lambda", vectors(top, one, **elected, normalize=True, scale=1.3), "ties", 0,
         {"weight": one, "density": 0.2, "lambda": 1.3}),
        ("breadcrumbs", vectors(crumbs, two), "breadcrumbs", 0, {"weight": two, "density": 0.6, "gamma": 0.05}),
        ("breadcrumbs_ties", vectors(crumbs, two, **elected), "breadcrumbs_ties", 0,
         {"weight": two, "density": 0.6, "gamma": 0.05}),
        ("della", vectors(ranked, two, **elected, normalize=True), "della", 0,
         {"weight": two, "density": 0.5, "epsilon": 0.2}),
        ("della_linear", vectors(ranked, two), "della_linear", 0, {"weight": two, "density": 0.5, "epsilon": 0.2}),
    ]  # fmt: skip


ROUNDED = ("linear", "slerp", "nuslerp", "model_stock", "task_arithmetic", "dare, 1/(1-p)", "dare, l1", "dare_ties")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit", help="the Python of an environment with mergekit 0.1.5")
    parser.add_argument("--run-theirs", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run_theirs:
        run_theirs(Path(options.run_theirs))
        return 0
    if not options.mergekit:
        parser.error("--mergekit PYTHON is needed")
    with tempfile.TemporaryDirectory() as folder:
        return compare(Path(folder), options.mergekit)


def compare(folder: Path, python: str) -> int:
    from alignkeep.merge.method import merge_tensor
    from alignkeep.merge.sparsify import RankedRandom, draws
    from alignkeep.merge.task_vectors import TaskVectors

    tensors: dict[str, torch.Tensor] = {}
    plan: list[dict[str, Any]] = []
    ours: dict[str, torch.Tensor] = {}
    for place, shape in enumerate(SHAPES):
        generator = torch.Generator().manual_seed(place)
        base = torch.randn(shape, generator=generator) * DEVIATION
        models = [base] + [base + UPDATE * torch.randn(shape, generator=generator) for _ in range(2)]
        tensors |= {f"{place}.model{k}": model for k, model in enumerate(models)}
        for k in range(2):
            uniform = torch.from_numpy(draws(SEED, k, "w", 0, base.numel()) / 2**32)
            tensors[f"{place}.uniform{k}"] = uniform.reshape(shape)
        for label, method, name, base_index, parameters in cases():
            kind = method.sparsify[0] if isinstance(method, TaskVectors) else None
            if isinstance(kind, RankedRandom) and shape[-1] == 1:
                continue  # mergekit divides 0 by 0 there
            used = _models_of(method)
            for stored in ("float32", "bfloat16") if label in ROUNDED else ("float32",):
                dtype = getattr(torch, stored)
                for computed in (stored, "float64"):
                    plan.append({"key": f"{label}|{place}|{stored}|{computed}", "method": name, "base": base_index,
                                 "place": place, "models": used, "parameters": parameters})  # fmt: skip
                given = [model.to(dtype) for model in models[:used]]
                ours[f"{label}|{place}|{stored}"] = merge_tensor(method, "w", given[0], given[1:]).to(dtype)
    save_file(tensors, folder / "inputs.safetensors")
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    subprocess.run([python, __file__, "--run-theirs", str(folder)], check=True)
    theirs = load_file(folder / "outputs.safetensors")
    return _report(ours, theirs)


def _models_of(method: Any) -> int:
    from alignkeep.merge import arcs, linear, model_stock, task_vectors

    match method:
        case linear.Linear(weights):
            return len(weights)
        case task_vectors.TaskVectors(weights):
            return 1 + len(weights)
        case model_stock.ModelStock() | arcs.NuSlerp(over_base=True):
            return 3
        case _:
            return 2


def _report(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> int:
    labels = list(dict.fromkeys(key.split("|")[0] for key in ours))
    print(f"{'float32':24} {'ours - mergekit':>16} {'ours - exact':>16} {'mergekit - exact':>16}   largest difference")
    worst = 0.0
    for label in labels:
        apart = [float(row.abs().nan_to_num(torch.inf).max()) for row in _apart(ours, theirs, label, "float32")]
        worst = max(worst, apart[0])
        print(f"{label:24} {apart[0]:16.2e} {apart[1]:16.2e} {apart[2]:16.2e}{'' if apart[0] <= LIMIT else '   !'}")
    print(f"\n{'bfloat16':24} {'ours':>8} {'mergekit':>8} {'ratio':>6}   root mean square error")
    for label in ROUNDED:
        _, *errors = (float(row.square().mean().sqrt()) for row in _apart(ours, theirs, label, "bfloat16"))
        places = [error / (DEVIATION * 2**-9) for error in errors]
        print(f"{label:24} {places[0]:8.3f} {places[1]:8.3f} {places[0] / places[1]:6.2f}")
    return int(worst > LIMIT)


def _apart(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], label: str, stored: str
) -> list[torch.Tensor]:
    """Ours less mergekit's, ours less the exact result, mergekit's less the exact result: all numbers of all shapes."""
    keys = [key for key in ours if key.startswith(f"{label}|") and key.endswith(f"|{stored}")]
    found, other, exact = (
        torch.cat([results[key + suffix].double().flatten() for key in keys])
        for results, suffix in ((ours, ""), (theirs, f"|{stored}"), (theirs, "|float64"))
    )
    return [found - other, found - exact, other - exact]


def run_theirs(folder: Path) -> None:
    """In mergekit's Python: every line of the plan by its registry, with our uniform numbers."""
    from mergekit.merge_methods import registry  # type: ignore[import-not-found]
    from mergekit.merge_methods.base import TensorGroup  # type: ignore[import-not-found]

    inputs = load_file(folder / "inputs.safetensors")
    waiting: list[torch.Tensor] = []

    def bernoulli(probabilities: torch.Tensor) -> torch.Tensor:
        uniform = waiting.pop(0).reshape(probabilities.shape)
        return (uniform < probabilities.double()).to(probabilities.dtype)

    torch.bernoulli = bernoulli
    outputs: dict[str, torch.Tensor] = {}
    for line in json.loads((folder / "plan.json").read_text(encoding="utf-8")):
        place = line["place"]
        stored, computed = (getattr(torch, name) for name in line["key"].split("|")[2:])
        tensors = [inputs[f"{place}.model{k}"].to(stored).to(computed) for k in range(line["models"])]
        waiting[:] = [inputs[f"{place}.uniform{k}"] for k in range(2)]
        group = TensorGroup.from_tensors(tensors, base_index=line["base"], name="w")
        (merged,) = registry.get(line["method"])([group], parameters=line["parameters"])
        outputs[line["key"]] = merged.contiguous()
    save_file(outputs, folder / "outputs.safetensors")


if __name__ == "__main__":
    sys.exit(main())
