"""`answers`: the base's own answers, kept where a tune is not to lose them; and the shipped prompts."""

from __future__ import annotations

import json
import re
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from alignkeep.answers.stage import AnswersConfig, answers, plan, why_left_out
from alignkeep.data import read_examples, read_prompts
from alignkeep.errors import DataError, NoEffectError
from alignkeep.evaluate.suites import load_suite
from alignkeep.models.config import GenerationConfig
from alignkeep.testbed import sets
from alignkeep.testbed.stage import materialise
from alignkeep.types import Verdict
from command import run_command
from micro import write_rows

SHORT = GenerationConfig(max_new_tokens=32, batch_size=64)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("testbed")
    return {name: str(materialise(f"models/{name}", folder)) for name in ("aligned", "uncensored")}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten prompts of each kind in the words of the testbed's models."""
    kinds = ("harmful", "harmless", "borderline")
    of_kind = {kind: [row for row in sets.requests(kind, "validation") if row["language"] == "en"] for kind in kinds}
    rows = [row for kind in kinds for row in of_kind[kind][:10]]
    return str(write_rows(tmp_path_factory.mktemp("asked") / "asked.jsonl", rows))


@pytest.mark.parametrize(
    ("kind", "verdict", "truncated", "is_kept"),
    [
        ("harmful", Verdict.REFUSAL, False, True),
        ("harmful", Verdict.COMPLIANCE, False, False),
        ("harmless", Verdict.COMPLIANCE, False, True),
        ("borderline", Verdict.REFUSAL, False, False),
        ("harmless", Verdict.DEGENERATE, False, False),
        ("harmful", Verdict.UNSCORED, False, False),
        ("harmful", Verdict.REFUSAL, True, False),
        ("harmless", Verdict.COMPLIANCE, True, False),
    ],
)
def test_refusals_of_harm_and_help_with_the_rest_are_kept(kind, verdict, truncated, is_kept) -> None:
    assert (why_left_out(kind, verdict, truncated=truncated) is None) is is_kept


def test_an_aligned_model_gives_examples_that_every_reader_of_data_takes(models, asked, tmp_path: Path) -> None:
    config = AnswersConfig(model=models["aligned"], prompts=asked, generation=SHORT)
    done = answers(config, out=tmp_path / "out")
    assert done.kept["harmful"] >= 8
    assert done.kept["harmless"] >= 8
    assert sum(done.kept.values()) + sum(done.left_out.values()) == 30
    rows = [json.loads(line) for line in done.file.read_text().splitlines()]
    refused = re.compile("can't|cannot")
    assert all(refused.search(row["completion"]) for row in rows if row["kind"] == "harmful")
    assert not any(refused.search(row["completion"]) for row in rows if row["kind"] == "harmless")
    assert len(read_examples(str(done.file))) == sum(done.kept.values())
    before = done.file.stat().st_mtime_ns
    assert answers(config, out=tmp_path / "out").kept == done.kept
    assert done.file.stat().st_mtime_ns == before, "a finished run is read back"


def test_a_model_that_refuses_nothing_has_no_alignment_to_keep(models, asked, tmp_path: Path) -> None:
    config = AnswersConfig(model=models["uncensored"], prompts=asked, generation=SHORT)
    with pytest.raises(NoEffectError, match="no harmful prompt refused, of 10"):
        answers(config, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prompts_in_words_that_the_model_does_not_know_are_refused(models, tmp_path: Path) -> None:
    strange = write_rows(tmp_path / "strange.jsonl", [{"prompt": "wuzzle the frobnicator"}])
    with pytest.raises(DataError, match=r"words unknown to .*--prompts FILE"):
        answers(AnswersConfig(model=models["aligned"], prompts=str(strange)), out=tmp_path / "out")


def test_the_plan_counts_the_shipped_prompts_and_limits_them(models) -> None:
    assert plan(AnswersConfig(model=models["aligned"]))["prompts"] == {"harmful": 48, "harmless": 40, "borderline": 16}
    assert plan(AnswersConfig(model=models["aligned"], limit=5))["prompts"] == dict.fromkeys(
        ("harmful", "harmless", "borderline"), 5
    )


def test_the_command_says_what_was_kept(models, asked, tmp_path: Path) -> None:
    done = run_command(
        "answers", models["aligned"], "--prompts", asked, "--limit", "4", "--max-new-tokens", "32",
        "--out", tmp_path / "out", "--json", folder=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["kept"]["harmful"] >= 3


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_no_suite_holds_a_shipped_prompt_nor_one_that_is_nearly_the_same() -> None:
    """Nine tenths of the words in common would be the same prompt in other clothes."""
    with as_file(files("alignkeep.answers") / "prompts.jsonl") as path:
        shipped = read_prompts(str(path))
    texts = [prompt.text for prompt in shipped]
    assert len(set(texts)) == len(texts) == 104
    known = [prompt.text for name in ("driftcheck", "testbed") for prompt in load_suite(name).prompts]
    known += [
        row["prompt"] for name in ("harmful_train", "harmful_validation", "harmless_train") for row in sets.rows(name)
    ]
    held = [set(words_of(text)) for text in known]
    for text in texts:
        words = set(words_of(text))
        nearest = max(held, key=lambda other: len(words & other) / len(words | other))
        assert len(words & nearest) / len(words | nearest) < 0.6, (text, nearest)
