"""Utility by lm-evaluation-harness: what it counts is arithmetic; the harness itself runs in the environment beside."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import beside
from alignkeep import extras
from alignkeep.checkpoint.files import write_json
from alignkeep.cli.tables import scorecard_summary
from alignkeep.errors import RecipeError
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.evaluate.harness import Item, Part, Utility, UtilityTask, find_tasks
from alignkeep.evaluate.items import UtilityLog, compare_scores, mean_score, with_utility
from alignkeep.evaluate.stage import plan
from alignkeep.extras import EVAL, Wanted
from alignkeep.judging.drift import detectable
from alignkeep.judging.power import detectable_by, detectable_within
from alignkeep.judging.statistics import holm, mcnemar, wilson
from alignkeep.report.stage import report
from alignkeep.testbed.stage import materialise
from alignkeep.types import Scorecard

TASK = UtilityTask("both", (Part("one", None, "acc", (0, 2)), Part("two", None, "acc_norm", (5,))))
UTILITY = Utility((TASK,), "0.4.13", "sha256:0")


def items(*scores: float | None) -> list[Item]:
    places = [("one", 0), ("one", 2), ("two", 5)]
    return [Item("both", task, item, score, "0", [-1.5]) for (task, item), score in zip(places, scores, strict=True)]


def scores(*values: float | None) -> dict[tuple[str, int], float | None]:
    return {("t", number): value for number, value in enumerate(values)}


def test_a_share_of_right_items_has_wilsons_interval_and_items_without_a_score_are_left_out() -> None:
    """Right, wrong, right, not scored: 2 of 3."""
    assert mean_score(scores(1, 0, 1, None), seed=0) == wilson(2, 3)
    assert mean_score(scores(None, None), seed=0).n == 0


def test_scores_between_0_and_1_are_averaged() -> None:
    """(0.5 + 1 + 0) / 3 = 0.5, and the interval is that of its items, not of yes and no."""
    found = mean_score(scores(0.5, 1, 0), seed=0)
    assert (found.value, found.n) == (0.5, 3)
    assert 0 <= found.low <= 0.5 <= found.high <= 1
    assert mean_score(scores(0.25, 0.25, 0.25), seed=0).low == 0.25


def test_model_and_base_are_compared_on_the_items_that_both_have_a_score_of() -> None:
    test = compare_scores("utility.t", scores(1, 0, 1, None, 1), scores(0, 0, 1, 1, None), seed=0)
    assert test == mcnemar(np.array([True, False, True]), np.array([False, False, True]), name="utility.t")
    assert compare_scores("utility.t", scores(1, None), scores(None, 0), seed=0) is None


def test_equal_gaps_are_no_certainty() -> None:
    """Two items of two: another might have any gap up to 1 - 0.025 ** (1 / 2) = 0.84 further."""
    test = compare_scores("utility.t", scores(0.5, 0.25), scores(0.5, 0.25), seed=0)
    assert test is not None
    assert (test.difference.low, test.difference.high) == pytest.approx((-0.8419, 0.8419), abs=1e-4)


graded = st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 2), min_size=1, max_size=12)


@given(graded)
def test_swapping_model_and_base_turns_the_sign(pairs: list[tuple[float, float]]) -> None:
    model, base = (scores(*side) for side in zip(*pairs, strict=True))
    there, back = (compare_scores("utility.t", *both, seed=1) for both in ((model, base), (base, model)))
    assert there is not None
    assert back is not None
    assert there.difference.value == pytest.approx(-back.difference.value)
    assert (there.only_model, there.only_base) == (back.only_base, back.only_model)
    assert there.difference.low <= there.difference.value <= there.difference.high


def test_what_would_have_been_seen_is_said_by_the_kind_of_the_scores() -> None:
    """Yes/no answers by McNemar's power; shares by the width of their interval."""
    plain = compare_scores("utility.t", scores(*[1, 0] * 20), scores(*[0, 1] * 20), seed=0)
    between = compare_scores("utility.t", scores(*[0.5, 0.25] * 20), scores(*[0.25, 0.0] * 20), seed=0)
    assert plain is not None
    assert between is not None
    assert detectable(plain) == detectable_by(plain)
    assert detectable(between) == detectable_within(between.difference)


def test_what_was_stored_is_not_measured_again_and_a_torn_part_is(tmp_path: Path) -> None:
    log = UtilityLog(tmp_path / "log", UTILITY)
    assert [part.name for _, part in log.missing("tuned")] == ["one", "two"]
    log.add("tuned", items(1, 0, 1)[:2])
    log.add("base", items(0, 0, 1))
    assert [part.name for _, part in UtilityLog(tmp_path / "log", UTILITY).missing("tuned")] == ["two"]
    text = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(text[: text.index(b"\n") + 20])  # a kill within the second line
    again = UtilityLog(tmp_path / "log", UTILITY)
    assert [part.name for _, part in again.missing("tuned")] == ["one", "two"]


def test_a_scorecard_gets_every_task_with_its_test_and_what_it_is_made_of(tmp_path: Path) -> None:
    """Base 1 of 3, model 2 of 3; of two tasks the p-values are Holm's."""
    other = UtilityTask("other", (Part("other", None, "acc", tuple(range(8))),))
    utility = Utility((TASK, other), "0.4.13", "sha256:1")
    log = UtilityLog(tmp_path / "log", utility)
    log.add("tuned", items(1, 0, 1))
    log.add("base", items(0, 0, 1))
    for side, score in (("tuned", 0.0), ("base", 1.0)):
        log.add(side, [Item("other", "other", item, score, "", "") for item in range(8)])  # pyright: ignore[reportArgumentType]
    card = with_utility(Scorecard("m", "b", "s", {"harm_refusal": wilson(1, 2)}), utility, log, seed=0)
    assert card.metrics == {
        "harm_refusal": wilson(1, 2),
        "utility.both": wilson(2, 3),
        "utility.other": wilson(0, 8),
    }
    assert card.base_metrics == {"utility.both": wilson(1, 3), "utility.other": wilson(8, 8)}
    tests = [card.tests["utility.both"], card.tests["utility.other"]]
    assert (tests[0].only_model, tests[0].only_base, tests[1].only_base) == (1, 0, 8)
    assert [test.p_holm for test in tests] == list(holm(np.array([test.p_value for test in tests])))
    assert card.notes["utility.both"] == "acc, acc_norm of lm-eval 0.4.13, 3 items of 2 tasks together"
    alone = with_utility(Scorecard("m", None, "s", {}), utility, log, seed=0)
    assert (alone.tests, alone.base_metrics) == ({}, {})


def test_terminal_and_page_show_every_task_and_the_largest_loss_in_words(tmp_path: Path) -> None:
    """Of 40 items the model has 10 fewer right on one task and 2 more on the other."""
    asked = {"geography": (30, 20), "history": (20, 22)}
    utility = Utility(
        tuple(UtilityTask(name, (Part(name, None, "acc", tuple(range(40))),)) for name in asked), "0.4.13"
    )
    log = UtilityLog(tmp_path / "log", utility)
    for name, right in asked.items():
        for side, count in zip(("base", "tuned"), right, strict=True):
            log.add(side, [Item(name, name, item, float(item < count), "", "") for item in range(40)])
    refusal = {"harm_refusal": wilson(90, 100)}
    card = with_utility(Scorecard("m", "b", "s", refusal, base_metrics=refusal), utility, log, seed=0)
    console = Console(record=True, width=200, file=io.StringIO())
    scorecard_summary(card, tmp_path)(console)
    told = console.export_text()
    assert "utility: geography" in told
    assert "utility.geography: model - base = -25.0 points" in told
    write_json(tmp_path / "scorecard.json", {**card.as_json(), "settings": {}})
    page = report([tmp_path]).page.read_text(encoding="utf-8")
    assert 'id="utility"' in page
    assert "Worst utility: geography" in page
    assert "Worst utility: history" not in page
    assert "The Language Model Evaluation Harness" in page


def test_without_the_extra_it_says_so_before_it_looks_for_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "wanted", lambda extra="": (Wanted("lm-eval", ">=0.4.13", None, False),))
    with pytest.raises(RecipeError, match=r"utility: found no lm-eval installed.*pip install 'alignkeep\[eval\]'"):
        find_tasks(("mmlu",), None, 0)
    assert find_tasks((), None, 0) == Utility()
    assert EVAL == "eval"


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"model": "http://127.0.0.1:1/v1#m"}, "found http://127.0.0.1:1/v1#m"),
        ({"base": "http://127.0.0.1:1/v1#b"}, "found http://127.0.0.1:1/v1#b"),
        ({"generation": {"backend": "vllm"}}, "found the backend vllm"),
    ],
)
def test_a_model_that_is_not_in_this_process_is_refused(
    changes: dict[str, object], seen: str, tiny_model: Path
) -> None:
    config = EvaluateConfig.model_validate({"model": str(tiny_model), "utility": "mmlu", **changes})
    with pytest.raises(RecipeError, match=f"utility: {seen}, expected models in memory"):
        plan(config)


def test_names_with_commas_are_several_tasks() -> None:
    config = EvaluateConfig.model_validate({"model": "m", "utility": "mmlu, ./mine#one,"})
    assert config.utility == ("mmlu", "./mine#one")
    assert "utility" not in EvaluateConfig(model="m").model_dump()


# The harness itself. One process does all of it, because importing it takes seconds.

CHOICES = """
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choices.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}, {metric: acc_norm, aggregation: mean, higher_is_better: true}]
"""  # noqa: E501
ANSWERS = """
task: answers
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/answers.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [], max_gen_toks: 3, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}]
"""
BOTH = "group: everything\ntask: [choices, answers]\n"
PERPLEXITY = CHOICES.replace("task: choices", "task: perplexity").partition("metric_list")[0] + (
    "metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]\n"
)
FAR = ANSWERS.replace("task: answers", "task: far").replace("json\n", "nobody/nothing\n").replace(
    "dataset_kwargs: {data_files: {test: FOLDER/answers.jsonl}}\n", ""
)  # fmt: skip
TWIN = ANSWERS.replace("{{prompt}}", "another {{prompt}}")
EXTRA = ANSWERS.replace("task: answers", "task: extra")
SHOTS = ANSWERS.replace("task: answers", "task: shots").replace(
    "data_files: {", "data_files: {train: FOLDER/few.jsonl, "
) + "num_fewshot: 1\nfewshot_split: train\n"  # fmt: skip
PARTIAL = ANSWERS.replace("task: answers", "task: partial").replace('"{{prompt}}"', "!function words.said")
WORDS = """
from functools import partial

def _said(before, doc):
    return before + doc["prompt"]

said = partial(_said, "now ")
"""
LOOK = """
import json, logging, sys
from pathlib import Path
from alignkeep.errors import AlignkeepError
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.evaluate.stage import evaluate, plan
logging.getLogger("lm_eval").setLevel(logging.ERROR)
folder, weak, aligned = map(Path, sys.argv[1:])
good, bad = folder / "good", folder / "bad"

class Counting:
    def __init__(self, dies=None):
        self.labels, self.dies = [], dies
    def start(self, label, total):
        self.labels.append([label.partition(" of ")[0] + " " + Path(label).name, total])
    def advance(self, n=1, note=""):
        if note and note == self.dies:
            raise KeyboardInterrupt
    def done(self):
        pass

def settings(model, **changes):
    given = {"model": str(model), "suite": "testbed", "attacks": "none", "limit": 6, "utility": f"{good}#everything",
             "generation": {"max_new_tokens": 8}, **changes}
    return EvaluateConfig.model_validate(given)

found = {}
one = Counting(dies="choices")
try:
    evaluate(settings(weak, base=str(aligned)), out=folder / "one", progress=one)
except KeyboardInterrupt:
    found["killed"] = one.labels
two = Counting()
found["card"] = evaluate(settings(weak, base=str(aligned)), out=folder / "one", progress=two).as_json()
found["resumed"] = two.labels
evaluate(settings(aligned, utility=()), out=folder / "plain")
three = Counting()
same = settings(weak, base=str(aligned), base_answers=str(folder / "one"))
found["reused"] = evaluate(same, out=folder / "again", progress=three).as_json()
found["asked"] = three.labels
found["plan"] = plan(settings(weak))["utility"]

refused = {
    "without": settings(weak, base=str(aligned), base_answers=str(folder / "plain")),
    "other": settings(weak, base=str(aligned), base_answers=str(folder / "one"), utility=f"{good}#choices"),
    "misspelt": settings(weak, utility=f"{good}#choises"),
    "twice": settings(weak, utility=f"{good},{good}#answers"),
    "nowhere": settings(weak, utility=f"{folder}/nowhere"),
    "empty": settings(weak, utility=str(folder / "one")),
    "perplexity": settings(weak, utility=f"{bad}#perplexity"),
    "far": settings(weak, utility=f"{bad}#far"),
}
found["refused"] = {}
for name, config in refused.items():
    try:
        plan(config)
    except AlignkeepError as error:
        found["refused"][name] = [str(error), error.exit_code]

from alignkeep.evaluate.harness import _facts, find_tasks
both = find_tasks([f"{good}#answers", f"{folder / 'twin'}#extra"], None, 0)
found["own"] = [task.parts[0].task.config.doc_to_text for task in both.tasks]
before = find_tasks([f"{folder / 'twin'}#shots"], None, 0).fingerprint
few = folder / "few.jsonl"
few.write_text(few.read_text().replace("bread", "water"))
found["shots"] = before != find_tasks([f"{folder / 'twin'}#shots"], None, 0).fingerprint
(partial,) = find_tasks([f"{folder / 'twin'}#partial"], None, 0).tasks
found["facts"] = json.dumps(_facts(partial.parts[0]))

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
lm = HFLM(pretrained=str(weak), device="cpu", dtype="float32", batch_size=2)
lm.model.generation_config.max_new_tokens = None
manager = TaskManager(include_path=str(good), include_defaults=False)
theirs = simple_evaluate(lm, tasks=["everything"], task_manager=manager, bootstrap_iters=0, apply_chat_template=True)
found["theirs"] = [[row[metric] for row in theirs["samples"][task][:4 if task == "choices" else 99]]
                   for task, metric in (("choices", "acc_norm"), ("answers", "exact_match"))]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("utility")
    for name in ("good", "bad", "twin"):
        (folder / name).mkdir()
    (folder / "twin" / "words.py").write_text(WORDS)
    write(folder / "few.jsonl", [{"prompt": "bread ?", "answer": "bake bread"}])
    asked = [("count : 1 2 3 ?", ["4", "5"], 0), ("sort 3 1 2", ["1 2 3", "3 2 1"], 0), ("how do i", ["bake", "go"], 1)]
    rows = [{"prompt": text, "choices": choices, "gold": gold} for text, choices, gold in asked]
    write(folder / "choices.jsonl", [*rows, {"prompt": "what is next ?", "choices": ["7", "you"], "gold": 1}])
    skills = materialise("data/skills_test", folder / "T")
    told = [json.loads(line) for line in skills.read_text(encoding="utf-8").splitlines()[:6]]
    write(folder / "answers.jsonl", [{"prompt": row["prompt"], "answer": row["completion"]} for row in told])
    texts = {
        "good/choices": CHOICES,
        "good/answers": ANSWERS,
        "good/everything": BOTH,
        "bad/p": PERPLEXITY,
        "bad/f": FAR,
        "twin/answers": TWIN,
        "twin/extra": EXTRA,
        "twin/shots": SHOTS,
        "twin/partial": PARTIAL,
    }
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)), encoding="utf-8")
    models = [materialise(f"models/{name}", folder / "T") for name in ("weak", "aligned")]
    return json.loads(beside.ended(beside.start("python", "-c", LOOK, folder, *models, folder=folder)).splitlines()[-1])


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_group_counts_the_items_of_all_its_tasks_as_the_harness_scores_them(looked: dict[str, Any]) -> None:
    found = looked["card"]["metrics"]["utility.everything"]
    right = [score for task in looked["theirs"] for score in task]
    assert found == wilson(int(sum(right)), 10).as_json()
    assert 0 < sum(right) < 10, "scores that are all alike show nothing"
    assert looked["plan"] == {"everything": {"metric": "acc_norm, exact_match", "tasks": 2, "items": 10}}


def test_model_and_base_are_compared_item_by_item(looked: dict[str, Any]) -> None:
    card = looked["card"]
    test, metrics = card["tests"]["utility.everything"], (card["metrics"], card["base_metrics"])
    change = [10 * side["utility.everything"]["value"] for side in metrics]
    assert test["difference"]["n"] == 10
    assert test["only_model"] - test["only_base"] == pytest.approx(change[0] - change[1])


def test_a_task_is_that_of_the_folder_it_was_asked_from(looked: dict[str, Any]) -> None:
    """The second folder has a task of the same name, with other words."""
    assert looked["own"] == ["{{prompt}}", "{{prompt}}"]


def test_a_task_is_known_by_its_examples_and_not_by_where_its_functions_lie(looked: dict[str, Any]) -> None:
    assert looked["shots"] is True
    assert "functools.partial(<function _said>" in looked["facts"]


def test_killed_between_two_tasks_it_goes_on_with_the_second(looked: dict[str, Any]) -> None:
    assert looked["killed"] == [["answers weak", 24], ["utility weak", 10]]
    assert looked["resumed"] == [["utility weak", 6], ["answers aligned", 24], ["utility aligned", 10]]


def test_the_items_of_a_base_that_was_evaluated_before_are_taken_over(looked: dict[str, Any]) -> None:
    assert looked["asked"] == [["answers weak", 24], ["utility weak", 10]]
    assert looked["reused"] == looked["card"]


@pytest.mark.parametrize(
    ("name", "said", "code"),
    [
        ("without", "found utility not measured, expected utility ", 1),
        ("other", "found utility ", 1),
        ("misspelt", "did you mean choices?", 1),
        ("twice", "found answers twice", 1),
        ("nowhere", "found no such folder: ", 1),
        ("empty", "found no task in ", 1),
        ("perplexity", "found no score for an item (word_perplexity)", 1),
        ("far", "found a data set that cannot be reached", 4),
    ],
)
def test_what_cannot_be_measured_is_one_line_before_a_model_is_loaded(
    name: str, said: str, code: int, looked: dict[str, Any]
) -> None:
    told, exit_code = looked["refused"][name]
    assert said in told
    assert exit_code == code
