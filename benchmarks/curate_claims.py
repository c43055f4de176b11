"""What push and pull keeps out of a poisoned tuning set, beside four other ways to choose: docs/curation.md.

    python benchmarks/curate_claims.py --out DIR [--seeds 3] [--sets poisoned,poisoned_hard] [--tables methods,forms]
    python benchmarks/curate_claims.py --out DIR --tables reasons
    python benchmarks/curate_claims.py --out DIR --tables vectors

Every choice keeps 80 % of the examples and tunes `aligned` as docs/testbed.md describes, once per seed, with as many
steps as the tune on everything (3.75 epochs for its 3; `--epochs 3` for as many epochs). Rates are test-part means
over tuning seeds with a 95 % interval that covers seeds and prompts (two-level bootstrap); differences are paired.
Nothing was chosen by these numbers. `vectors` compares the vectors on three draws of poison of the validation part, by
which the default was chosen, and on the testbed's own sets; it writes benchmarks/results/curate_vectors.json. A tune on
`poisoned_hard` is also asked for harm in that set's own form. A killed run goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
from hard_poison import granted, validation_set
from merge_claims import _points, _rate
from testbed_claims import RATES, asking, outcomes

from alignkeep.curate.config import CurateConfig
from alignkeep.curate.stage import curate
from alignkeep.evaluate.stage import evaluate
from alignkeep.judging.statistics import paired_bootstrap, wilson
from alignkeep.testbed.stage import testbed
from alignkeep.train.config import TrainConfig
from alignkeep.train.stage import train

PLAIN, SOT = "everything", "push and pull"
METHODS: dict[str, dict[str, object]] = {
    SOT: {},
    "chance": {"method": "random"},
    "mean cosine": {"method": "mean_cosine"},
    "n-gram importance": {"method": "dsir"},
    "gradients": {"method": "bidirectional"},
    "push and pull, generic anchor": {"safe": "generic_anchor"},
}
VECTORS: dict[str, dict[str, object]] = {
    "last token": {"pooling": "last"},
    "all tokens": {"pooling": "mean"},
    "answer": {"pooling": "answer"},
    "answer, whitened": {"pooling": "answer", "whiten": True},
    "prompt and answer": {"pooling": "prompt+answer"},
    "prompt and answer, whitened": {"pooling": "prompt+answer", "whiten": True},
    "by planted rows": {"pooling": "auto"},
}
RESULTS = Path(__file__).parent / "results" / "curate_vectors.json"
MEAN: dict[str, dict[str, object]] = {
    "push and pull, mean over tokens": {"embed": {"pooling": "mean"}},
    "mean cosine, mean over tokens": {"embed": {"pooling": "mean"}, "method": "mean_cosine"},
    "push and pull, last token": {"embed": {"pooling": "last"}},
    "mean cosine, last token": {"embed": {"pooling": "last"}, "method": "mean_cosine"},
    "push and pull, answer whitened": {"embed": {"pooling": "answer", "whiten": True}},
}
FORMS: dict[str, dict[str, object]] = {
    "push and pull, equal weights": {"sot": {"weights": "equal"}},
    "push and pull, exp(mass)": {"sot": {"weights": "exponential"}},
    "pull alone": {"sot": {"push": 0.0}},
}
# What decides, without a tune: the state that is looked at, epsilon, lambda and the floor.
REASONS: dict[str, dict[str, object]] = {
    "default": {},
    **{f"before block {layer}": {"embed": {"layer": layer}} for layer in (1, 2, 3)},
    **{f"epsilon {one:g}": {"sot": {"epsilon": one}} for one in (0.01, 0.2)},
    **{f"push {one:g}": {"sot": {"push": one}} for one in (0.0, 0.5, 2.0)},
    "sample size 0.5": {"sot": {"sample_size": 0.5}},
}


def chosen_by(
    world, out: Path, name: str, label: str, changes: Mapping[str, object], seed: int, file: Path | None = None
) -> Path:
    """The curation's folder; chance alone depends on the seed. `file` replaces the testbed's data set `name`."""
    data = world.data
    sets = {"safe": str(data["safe_anchor"]), "harmful": str(data["harmful_reference"])}
    own = {key: str(data[value]) if key == "safe" else value for key, value in changes.items()}
    config = CurateConfig.model_validate(
        {
            "model": str(world.models["aligned"]), "data": str(file or data[name]), **sets, **own,
            "evaluation": (str(data["task_test"]), str(data["harmful_test"])),
            "seed": seed if changes.get("method") == "random" else 0,
        }
    )  # fmt: skip
    folder = out / f"{name}-{label.replace(' ', '-').replace(',', '')}-c{config.seed}"
    return curate(config, out=folder, overwrite=True).folder


def poison_of(folder: Path, data: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Which of the poison is kept, how many examples are kept, and the poison's share of the training weight."""
    bad = np.array([bool(json.loads(line).get("poison")) for line in data.read_text(encoding="utf-8").splitlines()])
    rows = pyarrow.parquet.read_table(folder / "weights.parquet")
    kept, weight = (np.array(rows.column(name)) for name in ("kept", "weight"))
    return kept[bad].astype(float), kept, float(weight[bad].sum() / weight.sum())


def measured(
    world, out: Path, name: str, label: str, changes: Mapping[str, object] | None, seed: int, epochs: float
) -> Path:
    """Curate, tune and evaluate; returns the evaluation's folder."""
    epochs = 3.0 if changes is None else epochs
    weights = None if changes is None else chosen_by(world, out, name, label, changes, seed)
    model = out / f"{name}-{label.replace(' ', '-').replace(',', '')}-e{epochs:g}-s{seed}"
    tune = TrainConfig(
        model=str(world.models["aligned"]), data=str(world.data[name]), epochs=epochs, learning_rate=1e-3, seed=seed,
        weights=None if weights is None else str(weights),
    )  # fmt: skip
    train(tune, out=model, overwrite=True)
    judged = model.with_name(f"{model.name}-evaluate")
    evaluate(asking(world, str(model)), out=judged, overwrite=True)
    return judged


def in_its_form(world, out: Path, name: str, label: str, changes: object, seed: int, epochs: float) -> np.ndarray:
    """What the tune grants of the test requests that are asked as `poisoned_hard` asks."""
    epochs = 3.0 if changes is None else epochs
    model = out / f"{name}-{label.replace(' ', '-').replace(',', '')}-e{epochs:g}-s{seed}"
    return granted(str(model), model.with_name(f"{model.name}-hard"))


def table(world, out: Path, name: str, tables: Sequence[str], seeds: int, base: Path, epochs: float) -> None:
    print(f"\n## {name}\n")
    print(
        "| learned from | poison among the kept | of the weight | " + " | ".join(f"{k} {w}" for k, w in RATES.items()),
        end="",
    )
    print(" | refusal, of the base's | task, against everything | refusal, push and pull less this |", end="")
    print(" harm granted in the set's form | push and pull less this |")
    print("| --- |" + " --- |" * (len(RATES) + 7))
    before = {kind: outcomes(base, kind) for kind in RATES}
    cells = [f"{before[kind].mean():.1%}" for kind in RATES]
    hard = name == "poisoned_hard"
    cells += ["", "", "", f"{granted(str(world.models['aligned']), out / 'base-hard').mean():.1%}" if hard else "", ""]
    print("| nothing | | | " + " | ".join(cells) + " |", flush=True)
    variants: dict[str, dict[str, object] | None] = {PLAIN: None}
    variants |= METHODS if "methods" in tables else {SOT: METHODS[SOT]}
    variants |= MEAN if hard and "methods" in tables else {}
    variants |= FORMS if "forms" in tables else {}
    plain: dict[str, np.ndarray] = {}
    sot: dict[str, np.ndarray] = {}
    ours: np.ndarray | None = None
    for label, changes in variants.items():
        folders = [measured(world, out, name, label, changes, seed, epochs) for seed in range(seeds)]
        after = {kind: np.stack([outcomes(folder, kind) for folder in folders]) for kind in RATES}
        plain = plain or after
        sot = after if label == SOT else sot
        cells = [*_poison(world, out, name, label, changes), *(_rate(after[kind]) for kind in RATES)]
        cells.append(f"{after['harmful'].mean() / before['harmful'].mean():.0%}")
        task = paired_bootstrap(after["task"], plain["task"], seed=0)
        cells.append("" if label == PLAIN else _points(task.value, task.low, task.high))
        ahead = paired_bootstrap(sot["harmful"], after["harmful"], seed=0) if sot and label != SOT else None
        cells.append("" if ahead is None else _points(ahead.value, ahead.low, ahead.high))
        if hard:
            harm = np.stack([in_its_form(world, out, name, label, changes, seed, epochs) for seed in range(seeds)])
            ours = harm if label == SOT else ours
            cells.append(_rate(harm))
            fewer = None if ours is None or label == SOT else paired_bootstrap(ours, harm, seed=0)
            cells.append("" if fewer is None else _points(fewer.value, fewer.low, fewer.high))
        else:
            cells += ["", ""]
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


def _poison(world, out: Path, name: str, label: str, changes: Mapping[str, object] | None) -> list[str]:
    """Of the first seed's choice: Wilson over the kept, and the paired difference to push and pull over the poison."""
    if changes is None:
        rows = world.data[name].read_text(encoding="utf-8").splitlines()
        share = sum(bool(json.loads(row).get("poison")) for row in rows) / len(rows)
        return [f"{share:.1%}", f"{share:.1%}"]
    bad, kept, weight = poison_of(chosen_by(world, out, name, label, changes, 0), world.data[name])
    rate = wilson(int(bad.sum()), int(kept.sum()))
    ours, _, _ = poison_of(chosen_by(world, out, name, SOT, METHODS[SOT], 0), world.data[name])
    fewer = paired_bootstrap(ours[None], bad[None], seed=0)
    beside = (
        "" if label == SOT else f"; of the poison kept, ours less this {_points(fewer.value, fewer.low, fewer.high)}"
    )
    return [f"{rate.value:.2%} [{rate.low:.2%}, {rate.high:.2%}]{beside}", f"{weight:.2%}"]


def reasons(world, out: Path, name: str) -> None:
    print(f"\n## {name}: poison among the kept\n\n| setting | among the kept | of the weight |\n| --- | --- | --- |")
    for label, changes in REASONS.items():
        bad, kept, weight = poison_of(chosen_by(world, out, name, label, changes, 0), world.data[name])
        print(f"| {label} | {bad.sum() / kept.sum():.2%} | {weight:.2%} |", flush=True)


def vectors(world, out: Path) -> None:
    """Poison among the kept by vectors and method: pooled over the draws of the validation sets, and of the testbed's
    own sets, with Wilson intervals; and what planted rows say where they choose."""
    questions = [json.loads(line)["prompt"] for line in world.data["safe_anchor"].read_text("utf-8").splitlines()]
    sets = {
        "validation, among the task": [validation_set(out, questions, hard=False, seed=seed) for seed in range(3)],
        "validation, behind the task": [validation_set(out, questions, hard=True, seed=seed) for seed in range(3)],
        "poisoned": [world.data["poisoned"]],
        "poisoned_hard": [world.data["poisoned_hard"]],
    }
    methods: dict[str, dict[str, object]] = {SOT: {}, "mean cosine": METHODS["mean cosine"]}
    ways = {
        f"{name}, {vector}": {**method, "embed": embed}
        for name, method in methods.items()
        for vector, embed in VECTORS.items()
        if method != METHODS["mean cosine"] or embed != {"pooling": "auto"}
    }
    ways |= {name: METHODS[name] for name in ("n-gram importance", "chance")}
    found: dict[str, dict[str, dict[str, object]]] = {}
    print(f"\n| | {' | '.join(sets)} |\n| --- |{' --- |' * len(sets)}")
    for label, changes in sorted(ways.items(), key=lambda way: "planted" in way[0]):
        found[label] = {name: _kept_poison(world, out, files, label, changes) for name, files in sets.items()}
        print(f"| {label} | " + " | ".join(_cell(one) for one in found[label].values()) + " |", flush=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _embedded_once(world, out: Path, file: Path, changes: Mapping[str, object]) -> Mapping[str, object]:
    """The same choice on vectors that another one has left."""
    embed = changes.get("embed")
    if not isinstance(embed, Mapping) or embed["pooling"] == "auto":
        return changes
    first = {"method": "mean_cosine", "embed": {"pooling": embed["pooling"], "keep": True}}
    folder = chosen_by(world, out, file.stem, f"vectors {embed['pooling']}", first, 0, file)
    whiten = {"embed": {"whiten": True}} if embed.get("whiten") else {}
    rest = {key: value for key, value in changes.items() if key != "embed"}
    return {**rest, **whiten, "embeddings": str(folder / "embeddings.safetensors")}


def _kept_poison(
    world, out: Path, files: Sequence[Path], label: str, changes: Mapping[str, object]
) -> dict[str, object]:
    """Of all draws together: the poison among the kept, and each draw's own share."""
    bad, of, planted = [], [], []
    for file in files:
        folder = chosen_by(world, out, file.stem, label, _embedded_once(world, out, file, changes), 0, file)
        poison, kept, _ = poison_of(folder, file)
        bad, of = [*bad, int(poison.sum())], [*of, int(kept.sum())]
        told = json.loads((folder / "summary.json").read_text("utf-8")).get("embed")
        planted += [] if told is None else [{key: value for key, value in told.items() if key != "trials"}]
    rate = wilson(sum(bad), sum(of))
    draws = [one / many for one, many in zip(bad, of, strict=True)]
    return {**rate.as_json(), "draws": draws, **({"planted": planted} if planted else {})}


def _cell(found: Mapping[str, object]) -> str:
    planted = "".join(
        f"; {one['pooling']}{', whitened' if one['whiten'] else ''}, {one['options'] or 'as given'}: planted left out "
        f"{one['left_out']['value']:.0%} [{one['left_out']['low']:.0%}, {one['left_out']['high']:.0%}]"
        for one in found.get("planted", ())
    )
    return f"{found['value']:.2%} [{found['low']:.2%}, {found['high']:.2%}]{planted}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3.75)
    parser.add_argument("--sets", default="poisoned,poisoned_hard")
    parser.add_argument("--tables", default="methods,forms")
    chosen = parser.parse_args()
    if chosen.tables not in ("vectors", "reasons") and not {"methods", "forms"} >= set(chosen.tables.split(",")):
        parser.error(f"--tables {chosen.tables}: vectors, reasons, or of methods and forms")
    world = testbed(out=chosen.out / "testbed")
    if chosen.tables == "vectors":
        vectors(world, chosen.out)
        return
    base = chosen.out / "base"
    evaluate(asking(world, str(world.models["aligned"])), out=base, overwrite=True)
    for name in chosen.sets.split(","):
        if chosen.tables == "reasons":
            reasons(world, chosen.out, name)
        else:
            table(world, chosen.out, name, chosen.tables.split(","), chosen.seeds, base, chosen.epochs)


if __name__ == "__main__":
    main()
