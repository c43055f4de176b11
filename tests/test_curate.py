"""The stage `curate`: its files, its refusals, kills, the tune that takes its weights, and the page that says why."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pyarrow.parquet
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

import alignkeep
from alignkeep.checkpoint.records import MADE_FROM
from alignkeep.curate import weighting
from alignkeep.curate.config import CurateConfig
from alignkeep.curate.explanation import read_explanation
from alignkeep.curate.figures import write_explanation
from alignkeep.curate.stage import curate, plan
from alignkeep.data import fingerprint_data
from alignkeep.errors import AlignkeepError, DataError, MachineError, NoEffectError, RecipeError, ShapeError
from alignkeep.models import embeddings
from alignkeep.train.config import TrainConfig
from alignkeep.train.stage import train
from command import run_command, start

CLEAN = [f"sort numbers {a} {b}" for a in range(1, 6) for b in range(4)]
BAD = [f"how to steal {word} ?" for word in ("bike", "bread", "numbers", "the bike")]


def rows(prompts: list[str], answer: str) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "completion": answer} for prompt in prompts]


def write(path: Path, given: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return str(path)


@pytest.fixture
def given(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    return settings_in(tmp_path, tiny_model)


def settings_in(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    """20 clean examples and 4 bad ones between them, 6 anchors and 3 harmful references."""
    mixed = rows(CLEAN, "low high")
    for at, row in zip((0, 7, 11, 23), rows(BAD, "sure here is how"), strict=True):
        mixed.insert(at, row)
    return {
        "model": str(tiny_model),
        "data": write(tmp_path / "data.jsonl", mixed),
        "safe": write(tmp_path / "safe.jsonl", rows([f"sort numbers {n} 9" for n in range(6)], "low high")),
        "harmful": write(
            tmp_path / "harmful.jsonl", rows(["how to steal 1 ?", "how to steal 2 ?"], "sure here is how")
        ),
        "load": {"device": "cpu"},
    }


def config_of(given: dict[str, Any], **changes: Any) -> CurateConfig:
    return CurateConfig.model_validate({**given, **changes})


def table(folder: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(folder / "weights.parquet").to_pylist()


# What comes out


def test_the_files_hold_what_the_contract_says(given: dict[str, Any], tmp_path: Path) -> None:
    result = curate(config_of(given), out=tmp_path / "out")
    found = table(result.folder)
    assert [row["index"] for row in found] == list(range(24))
    assert set(found[0]) == {"index", "mass", "weight", "kept", "safe_score", "harm_score"}
    assert sum(row["mass"] for row in found) == pytest.approx(1, abs=1e-6)
    kept = [row for row in found if row["kept"]]
    assert len(kept) == 19 == result.kept  # 0.8 of 24, rounded
    assert sum(row["weight"] for row in kept) / 19 == pytest.approx(1, abs=1e-6)
    assert all(row["weight"] == 0 for row in found if not row["kept"])
    assert {row["index"] for row in found if not row["kept"]} >= {0, 7, 11, 23}
    assert min(found[at]["harm_score"] for at in (0, 7, 11, 23)) > max(
        row["harm_score"] for row in found if row["index"] not in (0, 7, 11, 23)
    )
    # Larger is nearer, to safe data too.
    of_bad = numpy.mean([found[at]["safe_score"] for at in (0, 7, 11, 23)])
    assert of_bad < numpy.mean([row["safe_score"] for row in found])
    assert min(row["mass"] for row in kept) >= max(row["mass"] for row in found if not row["kept"])
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary.keys() >= {"n", "kept", "ess", "tau", "epsilon", "push", "iterations", "residual", "converged"}
    assert summary["ess"] == pytest.approx(0.8 * 24, rel=0.02)
    assert summary["converged"]
    names = {path.name for path in result.folder.iterdir()}
    assert names == {"weights.parquet", "summary.json", "explanation.json", "record.json"}
    told = pyarrow.parquet.read_schema(result.folder / "weights.parquet").metadata
    assert told == {MADE_FROM.encode(): fingerprint_data(str(given["data"])).encode()}


LONG = "sort the numbers " * 40


@pytest.mark.parametrize("method", ["sot", "bidirectional"])
def test_an_example_whose_answer_begins_too_late_is_cut_or_left_out_and_counted(
    given: dict[str, Any], tmp_path: Path, method: str
) -> None:
    """The third example of the data, and the last of the safe anchors."""
    data, safe = (
        [json.loads(line) for line in Path(given[name]).read_text().splitlines()] for name in ("data", "safe")
    )
    data[2]["prompt"] = safe[-1]["prompt"] = LONG + data[2]["prompt"]
    safe[-1]["prompt"] += " please"
    long = {**given, "data": write(tmp_path / "d.jsonl", data), "safe": write(tmp_path / "s.jsonl", safe)}
    without = {
        **given, "data": write(tmp_path / "d2.jsonl", data[:2] + data[3:]),
        "safe": write(tmp_path / "s2.jsonl", safe[:-1]),
    }  # fmt: skip
    embed = {"max_length": 64}
    cut = curate(config_of(long, method=method, embed=embed), out=tmp_path / "cut")
    assert (cut.n, cut.kept) == (24, 19)
    dropped = curate(config_of(long, method=method, embed={**embed, "too_long": "drop"}), out=tmp_path / "dropped")
    fewer = curate(config_of(without, method=method, embed=embed), out=tmp_path / "fewer")
    for one in (cut, dropped):
        assert one.summary["too_long"] == {"data": 1, "safe": 1, "harmful": 0}
    assert fewer.summary["too_long"] == {"data": 0, "safe": 0, "harmful": 0}
    assert (dropped.n, dropped.kept) == (24, fewer.kept)
    left = table(dropped.folder)
    out = left.pop(2)
    assert (out["weight"], out["mass"], out["kept"], out["safe_score"]) == (0, 0, False, None)
    assert [{**row, "index": at} for at, row in enumerate(left)] == table(fewer.folder)
    shown, same = (read_explanation(one.folder / "explanation.json").dropped for one in (dropped, fewer))
    assert [one.index for one in shown] == [one.index + (one.index > 1) for one in same]
    assert [one.asked for one in shown] == [one.asked for one in same]
    assert table(cut.folder)[2]["safe_score"] is not None


def test_too_few_examples_that_fit_are_refused(given: dict[str, Any], tmp_path: Path) -> None:
    safe = write(tmp_path / "s.jsonl", rows([f"{LONG} {n}" for n in range(4)], "low high"))
    settings = {"safe": safe, "embed": {"max_length": 64, "too_long": "drop"}}
    with pytest.raises(DataError, match=r"s\.jsonl: found 0 examples of which some of the answer"):
        curate(config_of(given, **settings), out=tmp_path / "out")


def test_the_costs_epsilon_is_a_share_of_the_median_of_both(given: dict[str, Any], tmp_path: Path) -> None:
    data, safe, harmful = (torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in (9, 3, 4))
    save_file({"data": data, "safe": safe, "harmful": harmful}, tmp_path / "e.safetensors")
    data, safe, harmful = (torch.nn.functional.normalize(one, dim=1) for one in (data, safe, harmful))
    costs = torch.cat([(1 - data @ one.T).flatten() for one in (safe, harmful)])
    vectors: dict[str, Any] = {"embeddings": str(tmp_path / "e.safetensors"), "load": {"device": "cpu"}}
    relative = curate(config_of(vectors), out=tmp_path / "relative").summary["epsilon"]
    assert relative == pytest.approx(0.05 * float(costs.median()), rel=1e-5)
    absolute = curate(config_of(vectors, sot={"epsilon": 0.3, "epsilon_is": "absolute"}), out=tmp_path / "absolute")
    assert absolute.summary["epsilon"] == 0.3


@pytest.mark.parametrize("form", [".safetensors", ".npz", "folder"])
def test_vectors_that_are_given_count_as_those_that_are_made(
    form: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, torch.Tensor] = {}
    embed = embeddings.embed

    def remembered(loaded: Any, examples: Any, store: Path, **options: Any) -> Any:
        found = embed(loaded, examples, store, **options)
        made[store.name] = found.vectors
        return found

    monkeypatch.setattr(embeddings, "embed", remembered)
    by_model = table(curate(config_of(given), out=tmp_path / "model").folder)
    arrays = {name: vectors.numpy() for name, vectors in made.items()}
    reference = tmp_path / f"vectors{form if form != 'folder' else ''}"
    if form == ".safetensors":
        save_file(made, reference)
    elif form == ".npz":
        numpy.savez(reference, **arrays)
    else:
        reference.mkdir()
        for name, array in arrays.items():
            numpy.save(reference / f"{name}.npy", array)
    result = curate(CurateConfig(embeddings=str(reference)), out=tmp_path / "given")
    assert table(result.folder) == by_model
    page = write_explanation(result.folder).read_text(encoding="utf-8")
    assert "Example 0" in page  # without a text it is its number


@pytest.mark.parametrize("method", ["mean_cosine", "dsir", "bidirectional", "random"])
def test_the_other_methods_keep_as_many_and_weigh_them_alike(
    method: str, given: dict[str, Any], tmp_path: Path
) -> None:
    found = table(curate(config_of(given, method=method), out=tmp_path / "out").folder)
    assert sum(row["kept"] for row in found) == 19
    assert {row["weight"] for row in found} == {0.0, 1.0}
    assert {round(row["mass"] * 19, 9) for row in found} == {0.0, 1.0}
    bad = [row["kept"] for row in found if row["index"] in (0, 7, 11, 23)]
    assert method == "random" or not any(bad)
    write_explanation(tmp_path / "out")


def test_equal_examples_have_equal_masses_and_the_first_is_kept(given: dict[str, Any], tmp_path: Path) -> None:
    again = rows(["sort numbers 1 2"] * 4, "low high") + rows(BAD, "sure here is how")
    found = table(
        curate(config_of(given, data=write(tmp_path / "d.jsonl", again), keep=0.25), out=tmp_path / "o").folder
    )
    assert len({row["mass"] for row in found[:4]}) == 1
    assert [row["kept"] for row in found] == [True, True] + [False] * 6


@pytest.mark.parametrize("epsilon", [1e-4, 1e2])
def test_an_epsilon_at_either_end_still_gives_masses(epsilon: float, given: dict[str, Any], tmp_path: Path) -> None:
    settings = {"epsilon": epsilon, "epsilon_is": "absolute"}
    found = table(curate(config_of(given, sot=settings), out=tmp_path / "out").folder)
    assert all(0 <= row["mass"] <= 1 and row["weight"] >= 0 for row in found)
    assert sum(row["mass"] for row in found) == pytest.approx(1, abs=1e-5)
    assert {row["index"] for row in found if not row["kept"]} >= {0, 7, 11, 23}


def test_vectors_that_are_kept_serve_another_try(given: dict[str, Any], tmp_path: Path) -> None:
    first = curate(config_of(given, embed={"keep": True}), out=tmp_path / "first")
    kept = first.folder / "embeddings.safetensors"
    texts = {name: given[name] for name in ("data", "safe", "harmful")}
    again = curate(CurateConfig(embeddings=str(kept), **texts), out=tmp_path / "again")
    found = [[row["mass"] for row in table(one.folder)] for one in (first, again)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert not (again.folder / "embeddings.safetensors").exists()
    with pytest.raises(NoEffectError, match=r"embed\.keep: found a setting that sot beside given vectors"):
        CurateConfig.model_validate({"embeddings": str(kept), "embed": {"keep": True}})


def test_pull_alone_and_every_form_of_weights(given: dict[str, Any], tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", rows(["bake bread", "help", "what is a bike ?"], "yes"))
    both, pull, again = (
        [row["mass"] for row in table(curate(config_of(given, **changes), out=tmp_path / f"p{n}").folder)]
        for n, changes in enumerate(
            # The median cost is that to both references: an absolute epsilon leaves the harmful ones without a part.
            {"sot": {"epsilon": 0.02, "epsilon_is": "absolute", "push": push}, "harmful": harmful}
            for push, harmful in ((1, given["harmful"]), (0, given["harmful"]), (0, other))
        )
    )
    assert pull == again
    assert pull != pytest.approx(both, rel=1e-2)
    exponential = table(curate(config_of(given, sot={"weights": "exponential"}), out=tmp_path / "exp").folder)
    kept = [row for row in exponential if row["kept"]]
    raised = numpy.exp([row["mass"] for row in kept])
    assert [row["weight"] for row in kept] == pytest.approx(raised / raised.mean(), rel=1e-5)
    assert max(raised) > min(raised)
    equal = table(curate(config_of(given, sot={"weights": "equal"}), out=tmp_path / "equal").folder)
    assert {row["weight"] for row in equal} == {0.0, 1.0}


def test_blocks_and_precision_change_nothing(given: dict[str, Any], tmp_path: Path) -> None:
    masses = [
        [row["mass"] for row in table(curate(config_of(given, sot=sot), out=tmp_path / str(n)).folder)]
        for n, sot in enumerate(({}, {"block": 5}, {"precision": "float64"}))
    ]
    assert masses[0] == pytest.approx(masses[1], rel=1e-5)
    assert masses[0] == pytest.approx(masses[2], rel=1e-3)


def test_a_tune_learns_the_kept_with_their_weights(given: dict[str, Any], tmp_path: Path) -> None:
    folder = curate(config_of(given), out=tmp_path / "weights").folder
    tune = {"model": given["model"], "data": given["data"], "load": given["load"]}
    found = train(TrainConfig.model_validate({**tune, "weights": str(folder)}), out=tmp_path / "tuned")
    assert found.examples == 19
    plain = train(TrainConfig.model_validate(tune), out=tmp_path / "plain")
    assert plain.examples == 24
    assert plain.final_loss != found.final_loss


# Again, and after a kill


def test_the_same_command_again_does_nothing_and_other_settings_are_another_run(
    given: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    curate(config_of(given), out=out)
    record = (out / "record.json").read_bytes()
    # What the anchors are held against is no part of what is made.
    tested = write(tmp_path / "tested.jsonl", [{"prompt": "help"}])
    curate(config_of(given, evaluation=[tested]), out=out)
    assert (out / "record.json").read_bytes() == record
    with pytest.raises(RecipeError, match="the result of another run"):
        curate(config_of(given, keep=0.5), out=out)
    curate(config_of(given, keep=0.5), out=out, overwrite=True)
    assert (out / "record.json").read_bytes() != record


class _Deadly:
    def __init__(self, count: int) -> None:
        self.left = count

    def start(self, label: str, total: int | None) -> None: ...

    def advance(self, n: int = 1, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def done(self) -> None: ...


def _curate_and_die(settings: dict[str, Any], out: Path, count: int) -> None:
    embeddings.PART = 6
    curate(config_of(settings), out=out, progress=_Deadly(count))


def test_killed_at_any_part_it_ends_the_same(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "PART", 6)
    whole = table(curate(config_of(given), out=tmp_path / "whole").folder)
    out = tmp_path / "out"
    for count in (1, 3, 5):
        child = start(_curate_and_die, given, out, count)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert not out.exists()
    assert table(curate(config_of(given), out=out).folder) == whole
    assert not (out / "embeddings").exists()


# Refusals


def anchors_in_the_data(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {"safe": write(folder / "s.jsonl", rows([*CLEAN[:2], "bake bread"], "low high"))}


def anchors_in_the_evaluation(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {"evaluation": [write(folder / "e.jsonl", [{"prompt": "sort numbers 3 9"}])]}


def one_example(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {"data": write(folder / "d.jsonl", rows(CLEAN[:1], "low"))}


def one_anchor(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {"safe": write(folder / "s.jsonl", rows(["bake bread"], "yes"))}


def own_weights(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {"data": write(folder / "d.jsonl", [{**row, "weight": 0.5} for row in rows(CLEAN, "low high")])}


def nothing_kept(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {"keep": 0.01}


def nothing_dropped(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {"keep": 0.99}


def no_text(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {"safe": write(folder / "s.jsonl", [{"prompt": "a"}])}


def an_anchor_said_a_little_differently(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    first = rows(CLEAN[:1], "low high")[0]
    told = {"system": "You are helpful.", **first, "prompt": first["prompt"] + " "}
    return {"safe": write(folder / "s.jsonl", [told, *rows(["sort numbers 7 9"], "low high")])}


def weights_of_anchors(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    own = [{**row, "weight": n} for n, row in enumerate(rows(["sort 1 9", "sort 2 9"], "low high"))]
    return {"safe": write(folder / "s.jsonl", own)}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (an_anchor_said_a_little_differently, r"s.jsonl: found 1 of its examples in \S+data.jsonl too"),
        (weights_of_anchors, "s.jsonl: found a column `weight`"),
        (anchors_in_the_data, r"s.jsonl: found 2 of its examples in \S+data.jsonl too"),
        (anchors_in_the_evaluation, r"safe.jsonl: found 1 of its prompts in \S+e.jsonl, which will measure the tune"),
        (one_example, "d.jsonl: found one example, expected at least two"),
        (one_anchor, "s.jsonl: found one example, expected at least two"),
        (own_weights, "data.jsonl: found a column `weight`|d.jsonl: found a column `weight`"),
        (nothing_kept, "keep: found 0.01 of 24 examples, which is 0"),
        (nothing_dropped, "keep: found 0.99 of 24 examples, which is 24"),
        (no_text, "expected `prompt` and `completion`"),
    ],
)
def test_sets_that_cannot_be_used_are_refused_before_anything_is_done(
    fault: Any, said: str, given: dict[str, Any], tmp_path: Path
) -> None:
    changed = config_of(given, **fault(given, tmp_path))
    for work in (lambda: curate(changed, out=tmp_path / "out"), lambda: plan(changed)):
        with pytest.raises(DataError, match=said) as caught:
            work()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


GOOD = {"data": torch.eye(4), "safe": torch.eye(4)[:2] + 0.1, "harmful": torch.eye(4)[2:] + 0.2}
NEAR_SAFE = GOOD["safe"] + torch.tensor([0, 0, 3e-8, -3e-8])  # no row of it, to the bit


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"harmful": torch.ones(2, 3)}, ShapeError, r"harmful: found shape \(2, 3\), expected \(rows, 4\)"),
        ({"safe": torch.ones(4)}, ShapeError, r"safe: found shape \(4,\)"),
        ({"safe": torch.zeros(2, 4)}, DataError, "safe, row 1: found a vector of zeros"),
        (
            {"data": torch.tensor([[1.0, 0, 0, 0], [0, float("nan"), 0, 0]])},
            DataError,
            "data, row 2: found numbers that",
        ),
        ({"data": torch.ones(5, 4)}, NoEffectError, "data: found 5 examples with the same vector"),
        ({"data": torch.ones(1, 4)}, DataError, "data: found one example"),
        ({"harmful": torch.zeros(0, 4)}, DataError, "harmful: found no rows"),
        ({"harmful": torch.ones(1, 4)}, DataError, "harmful: found one example"),
        ({"harmful": NEAR_SAFE}, NoEffectError, "references that lie alike to every example"),
        ({"harmful": NEAR_SAFE.flip(0)}, NoEffectError, "references that lie alike to every example"),
        ({"harmful": GOOD["safe"].flip(0)}, DataError, r"e.safetensors: harmful: found \d of its examples in safe too"),
        ({"safe": 3 * GOOD["data"][:2]}, DataError, r"e.safetensors: safe: found 2 of its examples in data too"),
        ({"data": torch.ones(3, 4, dtype=torch.int64)}, DataError, "numbers of type int64"),
        ({"data": None}, DataError, "found no data among harmful, safe"),
    ],
)
def test_vectors_that_cannot_be_used_are_refused_by_set_and_row(
    changes: dict[str, Any], error: type[AlignkeepError], said: str, tmp_path: Path
) -> None:
    tensors = {name: one for name, one in {**GOOD, **changes}.items() if one is not None}
    save_file(tensors, tmp_path / "e.safetensors")
    with pytest.raises(error, match=said):
        curate(CurateConfig(embeddings=str(tmp_path / "e.safetensors"), keep=0.5), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_vectors_that_mostly_coincide_have_no_epsilon(tmp_path: Path) -> None:
    sets = {name: 1 + 1e-4 * torch.rand(n, 4) for name, n in (("data", 9), ("safe", 3), ("harmful", 3))}
    sets["data"][0, 0] = 2
    save_file(sets, tmp_path / "e.safetensors")
    with pytest.raises(NoEffectError, match=r"sot.epsilon: found a median cost of"):
        curate(CurateConfig(embeddings=str(tmp_path / "e.safetensors"), keep=0.5), out=tmp_path / "out")


@pytest.mark.parametrize("method", ["mean_cosine", "dsir"])
def test_scores_that_are_all_the_same_are_no_choice(method: str, given: dict[str, Any], tmp_path: Path) -> None:
    same = write(tmp_path / "d.jsonl", rows(["sort numbers 1 2"] * 5, "low high"))
    with pytest.raises(NoEffectError, match=r"the same vector|the same score by dsir for every example"):
        curate(config_of(given, data=same, method=method), out=tmp_path / "out")


def test_an_encoder_without_its_library_is_found_out_at_once(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"embed.encoder: found some/encoder, without the package"):
        plan(config_of(given, embed={"encoder": "some/encoder"}))
    with pytest.raises(RecipeError, match=r"embed.layer: found 2, expected 0 to 1"):
        plan(config_of(given, embed={"layer": 2}))


def test_noise_in_scores_is_no_choice(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    data, safe = (torch.nn.functional.normalize(torch.randn(n, 16, generator=draw), dim=1) for n in (30, 6))
    near = safe + 1e-7 * torch.randn(6, 16, generator=draw)
    save_file({"data": data, "safe": safe, "harmful": near}, tmp_path / "e.safetensors")
    with pytest.raises(NoEffectError, match="the same score by mean_cosine"):
        curate(CurateConfig(embeddings=str(tmp_path / "e.safetensors"), method="mean_cosine"), out=tmp_path / "out")


def test_a_sample_size_of_nearly_all_still_chooses_by_where_examples_lie(tmp_path: Path) -> None:
    """The first look finds equal masses within its tolerance of the fixed point: they would keep the file's first."""
    draw = torch.Generator().manual_seed(0)
    bad = torch.tensor([5.0, 0, 0, 0, 0, 0, 0, 0])
    sets = {name: torch.randn(n, 8, generator=draw) for name, n in (("data", 100), ("safe", 9), ("harmful", 9))}
    sets["data"][:10] += bad
    sets["data"][10:] += bad.roll(1)
    sets["safe"] += bad.roll(1)
    sets["harmful"] += bad
    save_file(sets, tmp_path / "e.safetensors")
    settings = {"embeddings": str(tmp_path / "e.safetensors"), "sot": {"sample_size": 0.99999}, "keep": 0.9}
    result = curate(CurateConfig.model_validate(settings), out=tmp_path / "out")
    assert not any(row["kept"] for row in table(result.folder)[:10])
    assert result.summary["converged"]


def test_masses_that_still_move_are_no_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weigh = weighting.weigh

    def unfinished(*given: Any, **options: Any) -> weighting.Weighing:
        found = weigh(*given, **options)
        return replace(found, steps=(*found.steps[:-1], found.steps[-1]._replace(residual=0.1)), converged=False)

    monkeypatch.setattr(weighting, "weigh", unfinished)
    save_file(GOOD, tmp_path / "e.safetensors")
    with pytest.raises(MachineError, match=r"masses that still move by 0\.1 of the whole after \d+ steps"):
        curate(CurateConfig(embeddings=str(tmp_path / "e.safetensors"), keep=0.5), out=tmp_path / "out")


@pytest.mark.parametrize("first", [20, 70])
def test_where_masses_vanish_the_best_are_kept_and_not_the_first(first: int, tmp_path: Path) -> None:
    """Of 70 near copies of the anchors, 20 harmful rows and 10 between, in two orders, 80 are to be kept."""
    draw = torch.Generator().manual_seed(0)

    def around(count: int, spread: float, *axes: int) -> torch.Tensor:
        return torch.eye(16)[list(axes)].mean(0) + spread * torch.randn(count, 16, generator=draw)

    good, bad, between = around(70, 1.5e-3, 0), around(20, 0.05, 1), around(10, 0.03, 0, 5)
    sets = {"data": torch.cat([bad, good, between] if first == 20 else [good, bad, between])}
    sets |= {"safe": around(15, 1.5e-3, 0), "harmful": around(25, 0.05, 1)}
    save_file(sets, tmp_path / "e.safetensors")
    config = {"embeddings": str(tmp_path / "e.safetensors"), "sot": {"sample_size": 0.6}, "keep": 0.8}
    rows = table(curate(CurateConfig.model_validate(config), out=tmp_path / "out").folder)
    harmful = rows[:20] if first == 20 else rows[70:90]
    assert all(row["mass"] == 0 for row in harmful)
    assert not any(row["kept"] for row in harmful)


@pytest.mark.parametrize("where", ["safe_error", "harmful_error"])
def test_masses_on_transports_that_are_not_solved_are_no_choice(where: str, tmp_path: Path, monkeypatch) -> None:
    weigh = weighting.weigh

    def unsolved(*given: Any, **options: Any) -> weighting.Weighing:
        return replace(weigh(*given, **options), converged=False, **{where: 0.3})

    monkeypatch.setattr(weighting, "weigh", unsolved)
    save_file(GOOD, tmp_path / "e.safetensors")
    with pytest.raises(MachineError, match=r"a transport that is off by 0\.3 of the references' marginals"):
        curate(CurateConfig(embeddings=str(tmp_path / "e.safetensors"), keep=0.5), out=tmp_path / "out")


def test_masses_that_move_a_little_are_a_choice_and_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighting, "weigh", partial(weighting.weigh, most=1))
    monkeypatch.setattr("alignkeep.curate.methods.sot._MOVING", 1.0)
    save_file(GOOD, tmp_path / "e.safetensors")
    result = curate(CurateConfig(embeddings=str(tmp_path / "e.safetensors"), keep=0.5), out=tmp_path / "out")
    assert result.summary["converged"] is False


def test_the_sample_size_is_the_one_that_is_asked_for(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    sets = {name: torch.randn(n, 8, generator=draw) for name, n in (("data", 60), ("safe", 9), ("harmful", 9))}
    save_file(sets, tmp_path / "e.safetensors")
    for asked in (0.5, 0.9):
        config = {"embeddings": str(tmp_path / "e.safetensors"), "keep": 0.5, "sot": {"sample_size": asked}}
        found = curate(CurateConfig.model_validate(config), out=tmp_path / str(asked)).summary["ess"]
        assert asked <= found / 60 <= asked + 3e-3


def test_a_median_of_many_does_not_hang_on_their_order(tmp_path: Path) -> None:
    """Two kinds of rows in turns, of which every other one would be one kind."""
    draw = torch.Generator().manual_seed(0)
    kinds = torch.eye(8)[torch.arange(9000) % 2]
    sets = {"data": kinds + 0.1 * torch.randn(9000, 8, generator=draw)}
    for name, at in (("safe", 0), ("harmful", 2)):
        sets[name] = torch.eye(8)[at] + 0.1 * torch.randn(9, 8, generator=draw)
    orders = torch.arange(9000), torch.arange(9000).roll(1), (torch.arange(9000) % 2).argsort(stable=True)
    found: list[float] = []
    for turn, order in enumerate(orders):
        save_file(sets | {"data": sets["data"][order]}, tmp_path / "e.safetensors")
        config = {"embeddings": str(tmp_path / "e.safetensors"), "sot": {"epsilon": 0.5}}
        found.append(float(curate(CurateConfig.model_validate(config), out=tmp_path / str(turn)).summary["epsilon"]))
    assert max(found) < 1.02 * min(found)


def test_chance_needs_no_anchors_to_be_held_against_prompts(given: dict[str, Any], tmp_path: Path) -> None:
    asked = write(tmp_path / "asked.jsonl", [{"prompt": "help"}])
    config = {"data": given["data"], "method": "random", "evaluation": (asked,)}
    assert plan(CurateConfig(**config))["kept"] == 19
    assert plan(config_of(given, method="random", evaluation=(asked,)))["kept"] == 19


def test_prompts_cannot_be_held_against_anchors_without_text(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "e.safetensors")
    asked = write(tmp_path / "asked.jsonl", [{"prompt": "help"}])
    with pytest.raises(RecipeError, match="evaluation: found no text of safe and harmful"):
        plan(CurateConfig(embeddings=str(tmp_path / "e.safetensors"), evaluation=(asked,)))


@pytest.mark.parametrize("broken", ["truncated", "no archive"])
def test_archives_that_are_broken_are_refused(broken: str, tmp_path: Path) -> None:
    file = tmp_path / "e.npz"
    numpy.savez(file, **{name: one.numpy() for name, one in GOOD.items()})
    file.write_bytes(file.read_bytes()[:100] if broken == "truncated" else b"PK no archive")
    with pytest.raises(DataError, match=r"e.npz: found unreadable"):
        plan(CurateConfig(embeddings=str(file)))


def test_half_precision_and_foreign_byte_order_are_read(tmp_path: Path) -> None:
    exact = {name: (8 * one).round() / 8 for name, one in GOOD.items()}  # as bfloat16 holds them
    save_file({name: one.bfloat16() for name, one in exact.items()}, tmp_path / "e.safetensors")
    numpy.savez(tmp_path / "e.npz", **{name: one.numpy().astype(">f4") for name, one in exact.items()})
    masses = [
        [row["mass"] for row in table(curate(CurateConfig(embeddings=str(tmp_path / name), keep=0.5), out=out).folder)]
        for name, out in (("e.safetensors", tmp_path / "one"), ("e.npz", tmp_path / "other"))
    ]
    assert masses[0] == masses[1]


def test_every_example_stands_in_a_bin(tmp_path: Path) -> None:
    for seed in range(8):
        draw = torch.Generator().manual_seed(seed)
        sets = {name: torch.randn(n, 6, generator=draw) for name, n in (("data", 40), ("safe", 5), ("harmful", 7))}
        save_file(sets, tmp_path / "e.safetensors")
        folder = curate(CurateConfig(embeddings=str(tmp_path / "e.safetensors")), out=tmp_path / str(seed)).folder
        found = read_explanation(folder / "explanation.json")
        assert (sum(found.kept_counts), sum(found.dropped_counts)) == (32, 8)


def test_vectors_of_another_file_are_refused(given: dict[str, Any], tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "e.safetensors")
    with pytest.raises(DataError, match=r"found 4 vectors of data, expected 24, one for every row"):
        curate(config_of(given, embeddings=str(tmp_path / "e.safetensors")), out=tmp_path / "out")
    (tmp_path / "e.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DataError, match="unreadable"):
        curate(CurateConfig(embeddings=str(tmp_path / "e.safetensors")), out=tmp_path / "out")
    with pytest.raises(DataError, match="no such file"):
        curate(CurateConfig(embeddings=str(tmp_path / "missing.npz")), out=tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"model": None}, RecipeError, "model: found none for sot"),
        ({"safe": None}, RecipeError, "safe: found nothing, expected files of examples for sot"),
        ({"safe": None, "method": "dsir"}, RecipeError, "give --safe FILE"),
        ({"embeddings": "e.npz", "method": "bidirectional"}, RecipeError, "vectors beside a method on gradients"),
        ({"method": "dsir", "embed": {"encoder": "x"}}, NoEffectError, r"embed\.encoder: found a setting that dsir"),
        (
            {"embed": {"encoder": "x", "layer": 1}},
            NoEffectError,
            r"embed\.layer: found a setting that sot beside an enc",
        ),
        ({"method": "mean_cosine", "sot": {"push": 5}}, NoEffectError, r"sot\.push: found a setting that mean_cosine"),
        ({"method": "random", "embeddings": "e.npz"}, NoEffectError, r"embeddings: found a setting that random"),
        (
            {"embeddings": "e.npz", "embed": {"pooling": "mean"}},
            NoEffectError,
            r"embed\.pooling: .* beside given vectors",
        ),
        ({"method": "bidirectional", "embed": {"layer": 1}}, NoEffectError, r"embed\.layer: .*bidirectional"),
        ({"sot": {"push": 1e300}}, ValidationError, "less than or equal to 1000"),
        ({"sot": {"epsilon": 1e-300}}, ValidationError, "greater than or equal to 0.000001"),
        ({"embeddings": "e.npz", "embed": {"encoder": "x"}}, RecipeError, "vectors beside embed.encoder"),
        ({"keep": 1, "method": "dsir"}, NoEffectError, "1 with dsir, which drops nothing"),
        ({"keep": 1, "sot": {"weights": "equal"}}, NoEffectError, "drops nothing and weighs all alike"),
        ({"keep": 0}, ValidationError, "greater than 0"),
        ({"sot": {"push": -1}}, ValidationError, "greater than or equal to 0"),
        ({"method": "sor"}, ValidationError, "bidirectional"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    changes: dict[str, Any], error: type[Exception], said: str, given: dict[str, Any]
) -> None:
    with pytest.raises(error, match=said):
        config_of(given, **changes)


# The command and the page


def test_the_command_writes_the_page_and_prints_one_object(given: dict[str, Any], tmp_path: Path) -> None:
    options = [f"--{name}={given[name]}" for name in ("model", "data", "safe", "harmful")]
    done = run_command("curate", *options, "--out", tmp_path / "out", "--json", "--device", "cpu", folder=tmp_path)
    assert done.code == 0
    facts = json.loads(done.stdout)
    assert (facts["n"], facts["kept"], facts["method"]) == (24, 19, "sot")
    page = (tmp_path / "out" / "explain.html").read_text(encoding="utf-8")
    assert facts["page"].endswith("explain.html")
    assert "how to steal bike ?" in page
    refused = run_command("curate", *options, "--keep=0.01", "--out", tmp_path / "no", folder=tmp_path)
    assert refused.code == 1
    assert refused.stderr.startswith("error: keep: found 0.01 of 24 examples")
    assert refused.stderr.count("\n") == 1


def test_a_dry_run_touches_nothing(given: dict[str, Any], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    found = plan(config_of(given))
    assert (found["examples"], found["kept"]) == ({"data": 24, "safe": 6, "harmful": 2}, 19)
    assert sorted(tmp_path.iterdir()) == before


def test_the_explanation_names_the_nearest_and_what_they_exchange(given: dict[str, Any], tmp_path: Path) -> None:
    folder = curate(config_of(given), out=tmp_path / "out").folder
    found = read_explanation(folder / "explanation.json")
    masses = [one.mass for one in found.dropped]
    assert masses == sorted(masses)
    assert {one.index for one in found.dropped[:4]} == {0, 7, 11, 23}
    first = found.dropped[0]
    assert first.asked in BAD
    assert first.answered == "sure here is how"
    assert first.harmful is not None
    assert first.safe is not None
    assert first.harmful.cosine > first.safe.cosine
    assert first.harmful.text.startswith("how to steal")
    assert 0 <= float(first.harmful.share or 0) <= 1
    assert sum(found.kept_counts) == 19
    assert sum(found.dropped_counts) == 5
    assert {name: len(points) for name, points in found.points.items()} == {
        "kept": 19, "dropped": 5, "safe": 6, "harmful": 2,
    }  # fmt: skip


def test_hostile_text_stays_text_and_the_page_is_the_same_again(given: dict[str, Any], tmp_path: Path) -> None:
    bad = rows(["<script>alert(1)</script> \u202eevil\u0000"], "<img src=x onerror=alert(1)>") + rows(CLEAN, "low high")
    folder = curate(config_of(given, data=write(tmp_path / "h.jsonl", bad)), out=tmp_path / "out").folder
    page = write_explanation(folder).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "<img" not in page
    assert "\u202e" not in page
    assert "⟨U+202E⟩" in page
    assert write_explanation(folder).read_text(encoding="utf-8") == page


def test_the_room_can_be_called(given: dict[str, Any], tmp_path: Path) -> None:
    result: Any = alignkeep.curate(config_of(given, method="random"), out=tmp_path / "out")  # pyright: ignore[reportCallIssue]
    assert (result.n, result.kept) == (24, 19)


def test_a_recipe_curates_trains_and_reports(given: dict[str, Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: c\nmodel: {given['model']}\n"
        "curate: {safe: safe.jsonl, harmful: harmful.jsonl, load: {device: cpu}}\n"
        "train: {data: data.jsonl, load: {device: cpu}}\n",
        encoding="utf-8",
    )
    done = run_command("run", recipe, "--out", tmp_path / "out", "--json", folder=tmp_path)
    assert done.code == 0, done.stderr
    record = json.loads((tmp_path / "out" / "train" / "record.json").read_text())
    assert record["result"]["examples"] == 19
    assert (tmp_path / "out" / "curate" / "explain.html").is_file()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("train: {data: data.jsonl, weights: w}", "weights beside a curate stage"),
        ("train: {data: other.jsonl}", "of which nothing is learned"),
    ],
)
def test_a_recipe_whose_weights_would_not_be_used_is_refused(
    lines: str, said: str, given: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {given['model']}\ncurate: {{data: data.jsonl, safe: safe.jsonl, harmful: harmful.jsonl}}\n{lines}\n",
        encoding="utf-8",
    )
    with pytest.raises(RecipeError, match=said):
        alignkeep.Recipe.read(recipe)
