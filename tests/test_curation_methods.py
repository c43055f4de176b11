"""Methods as values: ours pass what a stranger's must, his work from the command line, a recipe and Python, and what
breaks the Protocol is said in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel, Field, ValidationError

from alignkeep import conformance
from alignkeep.citations import cite
from alignkeep.curate.config import CurateConfig
from alignkeep.curate.method import CurationMethod, Given, Scores, Sets, Weighing
from alignkeep.curate.methods import METHODS, load_method
from alignkeep.curate.stage import curate, plan
from alignkeep.errors import NoEffectError, RecipeError
from alignkeep.settings import Checked, Settings
from alignkeep.stages import methods_of
from alignkeep.works import Work
from command import run_command
from test_curate import settings_in, table


@pytest.fixture
def sets(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    return settings_in(tmp_path, tiny_model)


class NearOptions(Checked):
    """`power` of the distances."""

    power: float = Field(default=1.0, gt=0)


class Near(CurationMethod):
    """The nearest safe reference less the nearest harmful one."""

    name = "near"
    title = "Nearest neighbours"
    needs = "vectors"
    options = NearOptions
    works = (Work("me2026near", "misc", "Me, My", "Near", "nowhere", 2026, "https://example.org"),)
    departures = ("Cosines in place of distances.",)

    def score(self, given: Given, options: NearOptions) -> Scores:
        assert given.vectors is not None
        safe, harmful = ((given.vectors.data @ one.mT).amax(1) for one in (given.vectors.safe, given.vectors.harmful))
        signed = safe - harmful
        return Scores(signed.sign() * signed.abs() ** options.power, safe, harmful)


NEAR = "test_curation_methods:Near"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_ours_are_what_the_protocol_says(method: CurationMethod) -> None:
    conformance.curation_method(method)
    assert load_method(method.name) is method


def test_a_strangers_is_too() -> None:
    conformance.curation_method(Near())


class Undocumented(BaseModel):
    """Nothing."""

    depth: int = 3


class Needy(BaseModel):
    """`depth` of it."""

    depth: int


def scored(change: Callable[[Near, Given, Scores], Scores]) -> Any:
    """Near, of which the scores are changed."""

    class Changed(Near):
        def score(self, given: Given, options: NearOptions) -> Scores:
            return change(self, given, super().score(given, options))

    return Changed()


def mass_of(found: Scores, mass: torch.Tensor) -> Scores:
    return found._replace(weighing=Weighing(mass, lambda kept: kept.double()))


CALLS = iter(range(10**6))
BROKEN: dict[str, tuple[Any, str]] = {
    "no name": (type("Other", (Near,), {"name": ""})(), "name: found ''"),
    "no score": (
        type("Other", (), {name: getattr(Near, name) for name in ("name", "title")})(),
        "needs: found no such",
    ),
    "needs": (type("Other", (Near,), {"needs": "pictures"})(), "needs: found 'pictures'"),
    "options without a default": (type("Other", (Near,), {"options": Needy})(), "options"),
    "options without a word": (type("Other", (Near,), {"options": Undocumented})(), "options: found no word on depth"),
    "an unknown work": (type("Other", (Near,), {"works": ("nobody2026",)})(), "works"),
    "too few": (scored(lambda self, given, found: Scores(found.value[1:])), "score: found value of shape (22,)"),
    "no number": (scored(lambda self, given, found: Scores(found.value * float("nan"))), "not a number"),
    "no scores": (scored(lambda self, given, found: found.value), "score: found"),  # pyright: ignore
    "chance": (scored(lambda self, given, found: Scores(found.value + next(CALLS))), "the same every time"),
    "order": (
        scored(lambda self, given, found: Scores(found.value + torch.arange(given.count))),
        "whatever their order",
    ),
    "writes": (
        scored(lambda self, given, found: (given.vectors.data.zero_(), found)[1]),  # pyright: ignore
        "left as it was",
    ),
    "reads more": (type("Other", (Near,), {"reads": ("safe",)})(), "reads: found"),
    "reads less": (
        scored(lambda self, given, found: Scores(given.vectors.data.sum(1))),  # pyright: ignore
        "reads: found",
    ),
    "masses of two": (scored(lambda self, given, found: mass_of(found, torch.ones(given.count))), "sum of 1"),
    "masses in another order": (
        scored(lambda self, given, found: mass_of(found, (-found.value).softmax(0))),
        "larger masses for larger scores",
    ),
    "falls": (scored(lambda self, given, found: found.value[10**6]), "IndexError"),  # pyright: ignore
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_method_is_told_its_member_in_one_line(fault: str) -> None:
    method, said = BROKEN[fault]
    with pytest.raises(RecipeError) as caught:
        conformance.curation_method(method)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_chooses_by_its_name_with_its_options_and_is_cited(sets: dict[str, Any], tmp_path: Path) -> None:
    config = CurateConfig.model_validate({**sets, "method": NEAR})
    result = curate(config, out=tmp_path / "out")
    assert not any(row["kept"] for row in table(result.folder) if row["index"] in (0, 7, 11, 23))
    entries = cite(methods_of("curate", {"method": NEAR}))
    assert [(one.title, one.departures) for one in entries] == [(Near.title, Near.departures)]
    powered = CurateConfig.model_validate({**sets, "method": NEAR, "options": {"power": 2}})
    assert curate(powered, out=tmp_path / "powered").folder != result.folder
    with pytest.raises(RecipeError, match="the result of another run"):
        curate(powered, out=tmp_path / "out")
    assert plan(config)["method"] == NEAR


def test_options_that_it_has_not_are_refused(sets: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"options\.powr: .*its options: power"):
        CurateConfig.model_validate({**sets, "method": NEAR, "options": {"powr": 2}})
    with pytest.raises(RecipeError, match=r"options\.power: .*greater than 0"):
        CurateConfig.model_validate({**sets, "method": NEAR, "options": {"power": 0}})
    with pytest.raises(NoEffectError, match=r"sot\.push: found a setting that"):
        CurateConfig.model_validate({**sets, "method": NEAR, "sot": {"push": 2}})
    for method in ("sot", "dsir"):
        with pytest.raises((NoEffectError, RecipeError), match=r"options\.power"):
            CurateConfig.model_validate({**sets, "method": method, "options": {"power": 2}})


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("test_curation_methods:Nothing", "method: found no Nothing in test_curation_methods"),
        ("no_such_module:It", "method: found 'no_such_module:It'"),
        ("test_curation_methods:CLASSLESS", "method test_curation_methods:CLASSLESS: name: found no such member"),
    ],
)
def test_an_object_that_is_no_method_is_refused_before_any_work(spec: str, said: str, sets: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        CurateConfig.model_validate({**sets, "method": spec})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


CLASSLESS = 3


def test_the_nearest_name_is_offered(sets: dict[str, Any]) -> None:
    settings = Settings({**sets, "method": "mean_cosin"})
    with pytest.raises(RecipeError, match=r"method .*expected sot, mean_cosine.*did you mean mean_cosine"):
        settings.build(CurateConfig)
    with pytest.raises(ValidationError):
        CurateConfig.model_validate({**sets, "method": "sor"})


def test_a_file_in_the_current_folder_is_enough(
    sets: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line and in a recipe, to the page and the citation."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from alignkeep.curate import CurationMethod, Scores\n"
        "from alignkeep.works import Work\n\n\n"
        "class Longest(CurationMethod):\n"
        "    name, title, needs, reads = 'longest', 'Longest answers', 'texts', ()\n"
        "    works = (Work('me2026', 'misc', 'Me', 'Long', 'here', 2026, 'https://example.org'),)\n\n"
        "    def score(self, given, options):\n"
        "        import torch\n\n"
        "        return Scores(torch.tensor([float(len(text)) for text in given.texts.data]))\n"
    )
    (tmp_path / "r.yaml").write_text(
        f"name: c\nmodel: {sets['model']}\ncurate: {{data: data.jsonl, method: 'mine:Longest'}}\n"
        "train: {data: data.jsonl, load: {device: cpu}, trainer: {max_steps: 1}}\n"
    )
    options = ("--data", sets["data"], "--method", "mine:Longest", "--json")
    done = run_command("curate", *options, "--out", tmp_path / "out", folder=tmp_path)
    assert done.code == 0, done.stderr
    assert "Longest answers" in (tmp_path / "out" / "explain.html").read_text(encoding="utf-8")
    assert "me2026" in (tmp_path / "out" / "explain.html").read_text(encoding="utf-8")
    assert json.loads(done.stdout)["method"] == "mine:Longest"
    done = run_command("cite", "r.yaml", folder=tmp_path)
    assert "me2026" in done.stdout, done.stderr
    done = run_command("run", "r.yaml", "--out", tmp_path / "run", "--json", folder=tmp_path)
    assert done.code == 0, done.stderr


def test_a_weight_that_a_method_gives_is_the_weight_that_is_written() -> None:
    """Push and pull is no special case: masses, weights and shares come from the method's own weighing."""
    found = load_method("sot")
    draw = torch.Generator().manual_seed(0)
    vectors = [torch.nn.functional.normalize(torch.randn(n, 6, generator=draw), dim=1) for n in (20, 4, 5)]
    some = Given(20, vectors=Sets(*vectors))
    scores = found.score(some, found.options())
    assert scores.weighing is not None
    kept = torch.arange(20) < 16
    weights = scores.weighing.weights(kept)
    assert float(weights[kept].mean()) == pytest.approx(1)
    assert not bool(weights[~kept].any())
    assert scores.weighing.share is not None
    shares = scores.weighing.share(1 - vectors[0] @ vectors[2].mT, "harmful")
    assert shares.sum(1).tolist() == pytest.approx([1.0] * 20)
