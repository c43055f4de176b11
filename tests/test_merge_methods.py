"""Merge methods as values: ours conform, a stranger's works from a file in the folder, and what is none is said so."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkeep import conformance
from alignkeep.citations import bibtex, cite
from alignkeep.errors import AlignkeepError, RecipeError
from alignkeep.lifecycle import verify
from alignkeep.merge.config import MergeConfig
from alignkeep.merge.method import Asked, MergeMethod, NoOptions, TensorMerge
from alignkeep.merge.methods import METHODS, listing, method_named
from alignkeep.merge.stage import merge
from alignkeep.stages import methods_of
from checkpoints import World, read_checkpoint, refused

CLIPPED = """
from dataclasses import dataclass
import numpy as np
from pydantic import Field
from alignkeep.merge import MergeMethod, TensorMerge
from alignkeep.settings import Checked
from alignkeep.works import Citation, Work

MINE = Work("mine2026", "misc", "Mine, Me", "Clipping", "unpublished", 2026, "https://example.org")


class Options(Checked):
    most: float = Field(default=0.01, gt=0, description="largest change of a number")


@dataclass(frozen=True)
class Clip(TensorMerge):
    weight: float
    most: float

    def merged(self, pieces):
        for piece in pieces:
            yield piece.base + np.float32(self.weight) * np.clip(piece.tuned[0] - piece.base, -self.most, self.most)

    @property
    def identity(self):
        return "base" if self.weight == 0 else None


class Clipped(MergeMethod):
    name, title, options, models = "clipped", "the tune, no number changed by more than most", Options, (1, 1)
    cites = (Citation("clipped", "A clipped tune", (MINE,), ("It is clipped.",)),)

    def tensor(self, asked):
        return Clip(asked.weight, asked.options.most)


clipped = Clipped()
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("methods"))


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module `mine_to_merge`, a file in the current folder."""
    (tmp_path / "mine_to_merge.py").write_text(CLIPPED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("mine_to_merge")
    sys.modules.pop("mine_to_merge", None)


@dataclass(frozen=True)
class Half(TensorMerge):
    """Half of the change, or whatever the parts are made to be."""

    weight: float
    part: Any = None
    same: Any = None

    def merged(self, pieces: Any) -> Iterator[Any]:
        for piece in pieces:
            update = np.float32(self.weight) * (piece.tuned[0] - piece.base)
            yield piece.base + update if self.part is None else self.part(piece)

    @property
    def identity(self) -> Any:
        return self.same if self.same is not None else "base" if self.weight == 0 else None


class Own(MergeMethod[NoOptions]):
    name, title, options = "own", "half of it", NoOptions

    def __init__(self, **more: Any) -> None:
        self.more = more

    def tensor(self, asked: Asked[NoOptions]) -> TensorMerge:
        return Half(asked.weight, **self.more)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_our_own_methods_conform(method: Any) -> None:
    conformance.merge_method(method)


def test_every_method_is_listed_with_its_options() -> None:
    told = "\n".join(listing())
    for method in METHODS:
        assert f"{method.name}: {method.title}" in told
        assert all(f"    {name} (" in told for name in method.options.model_fields)


@pytest.mark.parametrize(
    ("more", "member", "word"),
    [
        ({"part": lambda piece: piece.base.astype(np.float64)}, "merged", "float64"),
        ({"part": lambda piece: piece.base[1:]}, "merged", "numbers"),
        ({"part": lambda piece: piece.base + np.float32(piece.tuned[0].mean())}, "identity", "weight 0"),
        ({"part": lambda piece: piece.base + np.float32(np.random.rand())}, "merged", "the second time"),
        ({"part": lambda piece: piece.base}, "identity", "the base's numbers at weight 0"),
        ({"part": lambda piece: piece.base * np.float32(np.inf)}, "merged", "a number that is none"),
        ({"same": 0}, "identity", "with other numbers"),
        ({"same": "tuned"}, "identity", "'tuned'"),
    ],
)
def test_a_broken_method_fails_at_the_member_that_is_broken(more: dict[str, Any], member: str, word: str) -> None:
    if "part" in more and member == "identity":
        more = {**more, "same": None}
        kind = type("Silent", (Own,), {"tensor": lambda self, asked: _Silent()})
        method: Any = kind()
    else:
        method = Own(**more)
    conformance.merge_method(Own())
    with pytest.raises(RecipeError) as told:
        conformance.merge_method(method)
    assert f"own.{member}" in told.value.where
    assert word in str(told.value)


class _ByPiece(Half):
    def merged(self, pieces: Any) -> Iterator[Any]:
        for piece in pieces:
            yield piece.base + np.float32(self.weight) * (piece.tuned[0] - piece.base).mean()


def test_a_method_whose_numbers_depend_on_the_pieces_is_found() -> None:
    kind = type("ByPiece", (Own,), {"tensor": lambda self, asked: _ByPiece(asked.weight)})
    with pytest.raises(RecipeError, match="in other pieces"):
        conformance.merge_method(kind())


class _Silent(TensorMerge):
    def merged(self, pieces: Any) -> Iterator[Any]:
        return (piece.base for piece in pieces)


def test_an_option_without_a_word_on_it_is_no_option() -> None:
    from alignkeep.settings import Checked

    class Unsaid(Checked):
        most: float = 0.5

    with pytest.raises(RecipeError, match=r"options\.most: found no description"):
        conformance.merge_method(type("Other", (Own,), {"options": Unsaid})())


def test_a_method_in_a_file_here_merges_is_recorded_cited_and_proven(world: World, mine: Any, tmp_path: Path) -> None:
    conformance.merge_method(mine.clipped)
    done = merge(
        world.config(method="mine_to_merge:clipped", options={"most": 0.005}, weight=0.5), out=tmp_path / "out"
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    base, tuned, found = (read_checkpoint(folder)[name].float() for folder in (world.base, world.tuned, done.folder))
    change = 0.5 * (tuned - base).clamp(-0.005, 0.005)
    assert (found - (base + change)).abs().max() <= 2**-8 * base.abs().max()
    assert not found.equal(base)
    same = merge(world.config(method=mine.clipped, options=mine.Options(most=0.005), weight=0.5), out=tmp_path / "same")
    assert (same.folder / "manifest.json").read_bytes() == (done.folder / "manifest.json").read_bytes()

    record = json.loads((done.folder / "record.json").read_text())["config"]
    assert (record["method"], record["options"]) == ("mine_to_merge:clipped", {"most": 0.005})
    assert verify(done.folder)["made_again"]
    sys.modules.pop("mine_to_merge")  # the record says what to cite, and no code is run for it
    cited = cite(methods_of("merge", record))
    assert "clipped" in [one.name for one in cited]
    assert "mine2026" in bibtex(cited)
    assert "mine_to_merge" not in sys.modules

    (tmp_path / "mine_to_merge.py").write_text(CLIPPED.replace("np.float32(self.weight) *", "np.float32(0.1) *"))
    with pytest.raises(AlignkeepError, match="changed since: method"):
        verify(done.folder)


def test_at_weight_0_a_strangers_method_is_the_base_as_asked(world: World, mine: Any, tmp_path: Path) -> None:
    done = merge(world.config(method=mine.clipped, weight=0), out=tmp_path / "out")
    assert done.notes == ("weight 0: the base itself, as asked",)


def test_a_strangers_method_that_changes_nothing_is_an_error(
    world: World, mine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mine.Clip, "merged", lambda self, pieces: (piece.base for piece in pieces))
    with refused(AlignkeepError, "merge: found .* all equal to the base's", tmp_path / "not"):
        merge(world.config(method=mine.clipped, weight=1), out=tmp_path / "not" / "out")


def test_a_name_with_a_slip_an_object_that_is_none_and_anothers_option_are_one_line_each(mine: Any) -> None:
    for method, options, told in (
        ("liner", {}, "did you mean linear"),
        ("mine_to_merge:Options", {}, "method mine_to_merge:Options, name: found nothing, expected a name"),
        ("mine_to_merge:Clip", {}, "Clip"),
        ("mine_to_merge:other", {}, "no other in mine_to_merge"),
        (
            "mine_to_merge:clipped",
            {"mots": 1},
            "options.mots: found a setting that clipped does not .*did you mean",
        ),
        ("mine_to_merge:clipped", {"most": 0}, "options.most"),
        (Own(), {}, "an object that no module has by a name"),
        (object(), {}, "name: found nothing"),
    ):
        with pytest.raises(RecipeError, match=told) as error:
            MergeConfig(base="a", tuned=("b",), method=method, options=options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("member", "value", "expected"),
    [("weighs", "half", "'share' or 'scale' or None"), ("models", (2, 1), "number of tuned models"),
     ("cites", ("a2020paper",), "a tuple of alignkeep.works.Citation"), ("tensor", None, "a method tensor")],
)  # fmt: skip
def test_a_member_that_is_another_thing_is_named(mine: Any, member: str, value: object, expected: str) -> None:
    mine.broken = type("Broken", (mine.Clipped,), {member: value})()
    with pytest.raises(RecipeError, match=f"mine_to_merge:broken, {member}: found .*expected .*{expected}"):
        method_named("mine_to_merge:broken")


def test_a_manifest_whose_method_is_gone_is_not_proven(world: World, mine: Any, tmp_path: Path) -> None:
    done = merge(world.config(method=mine.clipped), out=tmp_path / "out")
    shutil.move(tmp_path / "mine_to_merge.py", tmp_path / "elsewhere.txt")
    sys.modules.pop("mine_to_merge")
    importlib.invalidate_caches()
    with pytest.raises(AlignkeepError, match="mine_to_merge"):
        verify(done.folder)
