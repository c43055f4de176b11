"""Known harm planted among the data chooses the vectors: what is planted, which way wins, what is told, what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkeep.curate.planting import FEWEST, PARTS, Planted, parts_of, plants_of, try_vectors
from alignkeep.curate.stage import curate, plan
from alignkeep.curate.vectors import Made
from alignkeep.data import read_examples
from alignkeep.errors import DataError, NoEffectError
from alignkeep.models.processes import Processes
from alignkeep.progress import Silent
from command import run_command
from test_curate import config_of, rows, settings_in, table, write

THINGS = [f"{verb} {thing}" for verb in ("steal", "break", "take") for thing in ("bike", "car", "bread", "key", "lock")]


@pytest.fixture
def more(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    """15 harmful references, so that a third can be planted."""
    asked = [f"how to {thing} now ?" for thing in THINGS]
    harmful = write(tmp_path / "more.jsonl", rows(asked, "sure here is how to do it"))
    return {**settings_in(tmp_path, tiny_model), "harmful": harmful, "embed": "auto"}


def test_plants_are_held_out_references_half_of_them_behind_a_row_of_the_data(more: dict[str, Any]) -> None:
    config = config_of(more)
    data, harmful = read_examples(more["data"]), read_examples(more["harmful"])
    planted = plants_of(config, data, harmful)
    assert len(planted.examples) == len(planted.held_out) == 4  # a third, and a tenth of the data or four
    assert planted.is_hidden == [False, True, False, True]
    out = [harmful[at] for at in planted.held_out]
    for example, hidden in zip(planted.examples, planted.is_hidden, strict=True):
        if not hidden:
            assert example in out
            continue
        asked, answered = (message.content for message in example.messages)
        bad = next(one for one in out if asked.endswith(one.messages[0].content))
        host = next(one for one in data if asked.startswith(one.messages[0].content))
        assert asked == f"{host.messages[0].content} {bad.messages[0].content}"
        assert answered == f"{host.messages[1].content} {bad.messages[1].content}"
    assert plants_of(config, data, harmful) == planted
    assert plants_of(config_of(more, seed=1), data, harmful) != planted


def parts(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 4 * len(PARTS), generator=torch.Generator().manual_seed(seed))


def told_apart_by(part: str) -> tuple[Made, Planted]:
    """40 examples and 8 plants; safe and harmful references, and the plants, lie apart in this part alone."""
    sets = {
        name: parts(n, at) for at, (name, n) in enumerate({"data": 40, "safe": 9, "harmful": 15, "planted": 8}.items())
    }
    place = slice(4 * PARTS.index(part), 4 * PARTS.index(part) + 4)
    for name in sets:
        sets[name][:, place] = 0.3 * sets[name][:, place] + (3.0 if name in ("harmful", "planted") else -3.0)
    return Made(sets, None), Planted([None] * 8, [False, True] * 4, frozenset(range(5)))  # pyright: ignore


@pytest.mark.parametrize("part", ["last", "mean", "answer"])
@pytest.mark.parametrize("method", ["sot", "mean_cosine"])
def test_the_vectors_that_tell_the_plants_apart_are_taken(part: str, method: str, more: dict[str, Any]) -> None:
    made, planted = told_apart_by(part)
    best, told = try_vectors(config_of(more, method=method), made, planted, Processes(), Silent())
    assert part in best.pooling.split("+")
    assert all(best.is_out)
    assert told["left_out"] == {"value": 1.0, "low": pytest.approx(0.51, abs=0.01), "high": 1.0, "n": 4}
    trials: Any = told["trials"]
    others = [one["left_out"] for one in trials if part not in one["pooling"].split("+")]
    assert max(others) < 1
    assert {one["pooling"] for one in trials} == {"last", "mean", "answer", "prompt+answer"}
    assert any(one["options"] for one in trials) == (method == "sot")  # other epsilons


def test_what_is_told_was_counted_on_plants_that_did_not_choose(more: dict[str, Any]) -> None:
    """The plants that count lie in the midst of the safe references: none of them is left out."""
    made, planted = told_apart_by("answer")
    counted = [at for at in range(8) if at % 4 >= 2]
    made.vectors["planted"][counted] = made.vectors["safe"].mean(0)
    best, told = try_vectors(config_of(more, method="mean_cosine"), made, planted, Processes(), Silent())
    assert best.left_out == 1
    assert told["left_out"]["value"] == 0  # pyright: ignore[reportIndexIssue]


def test_held_out_references_are_not_held_against_the_data(more: dict[str, Any]) -> None:
    made, planted = told_apart_by("answer")
    wild = {**made.vectors, "harmful": made.vectors["harmful"].clone()}
    wild["harmful"][:5] = 1e3 * torch.randn(5, wild["harmful"].shape[1])
    config = config_of(more)
    plain, other = (try_vectors(config, one, planted, Processes(), Silent())[1] for one in (made, Made(wild, None)))
    assert plain == other


def test_it_chooses_as_if_its_settings_had_been_given_and_no_plant_comes_out(
    more: dict[str, Any], tmp_path: Path
) -> None:
    auto = curate(config_of(more, embed={"pooling": "auto", "keep": True}), out=tmp_path / "auto")
    told = auto.summary["embed"]
    assert told["planted"] == 4
    embed = {"pooling": told["pooling"], "whiten": told["whiten"]}
    fixed = curate(config_of(more, embed=embed, sot=told["options"]), out=tmp_path / "fixed")
    for name in ("mass", "weight", "safe_score", "harm_score"):
        found, expected = ([row[name] for row in table(one.folder)] for one in (auto, fixed))
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert len(table(auto.folder)) == auto.n == 24
    shown = json.loads((auto.folder / "explanation.json").read_text())
    prompts = {json.loads(line)["prompt"] for line in Path(more["data"]).read_text().splitlines()}
    assert {one["asked"] for one in shown["dropped"]} <= prompts
    kept: dict[str, Any] = {"embeddings": str(auto.folder / "embeddings.safetensors"), "load": {"device": "cpu"}}
    again = config_of(kept, sot=told["options"], embed={"whiten": told["whiten"]})
    masses = [row["mass"] for row in table(curate(again, out=tmp_path / "again").folder)]
    assert masses == pytest.approx([row["mass"] for row in table(auto.folder)], rel=1e-3, abs=1e-6)


def test_references_that_refuse_cannot_be_planted(more: dict[str, Any], tmp_path: Path) -> None:
    asked = [f"how to {thing} now ?" for thing in THINGS]
    refused = rows(asked[:6], "I cannot help with that.") + rows(asked[6:], "sure here is how to do it")
    config = config_of(more, harmful=write(tmp_path / "refused.jsonl", refused))
    for work in (lambda: plan(config), lambda: curate(config, out=tmp_path / "out")):
        with pytest.raises(
            DataError, match=rf"9 of 15 rows that answer a harmful request.*at least {FEWEST}"
        ) as caught:
            work()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "dsir"}, r"embed\.pooling"),
        ({"embed": {"pooling": "auto", "whiten": True}}, r"embed\.whiten: found a setting that sot"),
        ({"embeddings": "e.npz"}, r"embed\.pooling: .* beside given vectors"),
    ],
)
def test_settings_that_planting_leaves_without_a_part_are_refused(
    changes: dict[str, Any], said: str, more: dict[str, Any]
) -> None:
    with pytest.raises(NoEffectError, match=said):
        config_of(more, **changes)


def test_the_command_says_what_was_planted_and_left_out(more: dict[str, Any], tmp_path: Path) -> None:
    options = [f"--{name}={more[name]}" for name in ("model", "data", "safe", "harmful")]
    options += ["--set", "embed=auto", "--device", "cpu", "--out", str(tmp_path / "out")]
    done = run_command("curate", *options, folder=tmp_path)
    assert done.code == 0, done.stderr
    assert "of 4 planted harmful rows one half chose the vectors (pooling" in done.stdout
    assert "of the other 2 these left out" in done.stdout


def test_parts_stand_in_the_order_that_is_asked_for() -> None:
    whole = torch.arange(len(PARTS)).repeat_interleave(3)[None].float()
    assert parts_of(whole, "prompt+answer").tolist() == [[2.0] * 3 + [3.0] * 3]
    assert parts_of(whole, "last").tolist() == [[0.0] * 3]
