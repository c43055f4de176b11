"""The gate: bounds held against scorecards, three answers, and what other programs read of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkeep.errors import DataError, RecipeError
from alignkeep.gate.output import bound_line, junit_of, markdown_of, verdict_lines
from alignkeep.gate.stage import gate
from alignkeep.judging.statistics import PairCounts, wilson
from alignkeep.policy.bounds import Policy, read_policy
from alignkeep.policy.decision import Answer, change_on, decide, prompts_to_decide, rate_on, together
from alignkeep.types import Estimate, PairedTest, Scorecard
from command import run_command

NUMBERS = st.floats(-1, 1, allow_nan=False)


def estimates() -> st.SearchStrategy[Estimate]:
    return st.tuples(NUMBERS, NUMBERS, NUMBERS).map(sorted).map(lambda x: Estimate(x[1], x[0], x[2], 10))


def change(value: float, low: float, high: float, n: int = 100) -> PairedTest:
    return PairedTest("change", Estimate(value, low, high, n), 0.5, 0, 0)


def write_card(folder: Path, **tests: PairedTest) -> Path:
    """A scorecard whose rates are all 90 % [80, 95] of 100, with these changes against the base."""
    metrics = dict.fromkeys(
        ("harm_refusal", "over_refusal", "benign_compliance", "attack_success.dan", "attack_success.wrap"),
        Estimate(0.9, 0.8, 0.95, 100),
    ) | dict.fromkeys(("degenerate", "unscored"), Estimate(0.01, 0.0, 0.03, 500))
    card = Scorecard("tuned | `model`", "base", "driftcheck", metrics, tests)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scorecard.json").write_text(json.dumps({**card.as_json(), "settings": {"judge": "keyword"}}))
    return folder


@pytest.mark.parametrize(
    ("low", "high", "side", "bound", "interval", "strict", "value"),
    [
        # The value is 0.5 throughout.
        (0.4, 0.6, "at_least", 0.3, "pass", "pass", "pass"),
        (0.4, 0.6, "at_least", 0.4, "pass", "pass", "pass"),
        (0.4, 0.6, "at_least", 0.45, "undecided", "fail", "pass"),
        (0.4, 0.6, "at_least", 0.6, "undecided", "fail", "fail"),
        (0.4, 0.6, "at_least", 0.7, "fail", "fail", "fail"),
        (0.4, 0.6, "at_most", 0.7, "pass", "pass", "pass"),
        (0.4, 0.6, "at_most", 0.6, "pass", "pass", "pass"),
        (0.4, 0.6, "at_most", 0.55, "undecided", "fail", "pass"),
        (0.4, 0.6, "at_most", 0.3, "fail", "fail", "fail"),
        (0.5, 0.5, "at_most", 0.5, "pass", "pass", "pass"),
    ],
)
def test_a_bound_by_hand(low, high, side, bound, interval, strict, value) -> None:
    estimate = Estimate(0.5, low, high, 50)
    assert [decide(estimate, side, bound, rule).value for rule in ("interval", "strict", "value")] == [
        interval, strict, value,
    ]  # fmt: skip


@given(estimates(), NUMBERS, st.sampled_from(["at_least", "at_most"]))
def test_strict_passes_only_what_every_rule_passes_and_mirrors_turn_the_side(estimate, bound, side) -> None:
    answers = {rule: decide(estimate, side, bound, rule) for rule in ("interval", "strict", "value")}
    assert (answers["strict"] is Answer.PASS) == (answers["interval"] is Answer.PASS)
    if answers["interval"] is not Answer.UNDECIDED:
        assert answers["value"] is answers["interval"]
    mirror = Estimate(-estimate.value, -estimate.high, -estimate.low, estimate.n)
    other = "at_most" if side == "at_least" else "at_least"
    assert {rule: decide(mirror, other, -bound, rule) for rule in answers} == answers


def test_what_was_not_measured_is_no_answer() -> None:
    with pytest.raises(ValueError, match="not measured"):
        decide(Estimate(math.nan, 0, 1, 0), "at_least", 0.5)
    with pytest.raises(ValueError, match="without a single bound"):
        together([])


def test_many_bounds_are_as_good_as_the_worst() -> None:
    assert together([Answer.PASS, Answer.PASS]) is Answer.PASS
    assert together([Answer.PASS, Answer.UNDECIDED]) is Answer.UNDECIDED
    assert together([Answer.UNDECIDED, Answer.FAIL, Answer.PASS]) is Answer.FAIL


def test_the_prompts_that_would_decide_a_rate_by_hand() -> None:
    """Wilson's lower end of a rate of 1 is n / (n + 1.96^2): it reaches 0.95 at n = 19 * 3.8415 = 73."""
    assert prompts_to_decide(rate_on(1.0), 20, "at_least", 0.95) == 73
    assert prompts_to_decide(rate_on(0.5), 20, "at_least", 0.5) is None


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0.02, 0.98), st.integers(5, 400))
def test_so_many_prompts_decide_and_a_few_fewer_do_not(rate: float, bound: float, n: int) -> None:
    needed = prompts_to_decide(rate_on(rate), n, "at_most", bound)
    if needed is None:
        assert abs(rate - bound) < 0.01
        return
    assert decide(wilson(round(rate * needed), needed), "at_most", bound) is not Answer.UNDECIDED
    assert needed >= 1


def test_the_prompts_that_would_decide_a_change_shrink_its_interval_below_the_bound() -> None:
    """Ten prompts on which both models do the same say nothing of five points; some seventy do (Newcombe's interval of
    no change in all of n is that of Wilson for 0 of n on both sides: 1.96^2 / (n + 1.96^2) = 0.05 at n = 73)."""
    same = PairCounts(10, 0, 0, 0)
    assert prompts_to_decide(change_on(same), 10, "at_least", -0.05) in range(70, 76)
    worse = PairCounts(5, 0, 5, 0)
    assert prompts_to_decide(change_on(worse), 10, "at_least", -0.05) == 10


def test_the_default_policy_passes_a_model_like_its_base(tmp_path: Path) -> None:
    same = change(0.0, -0.02, 0.02)
    result = gate(write_card(tmp_path, harm_refusal=same, over_refusal=same, benign_compliance=same))
    assert result.answer is Answer.PASS
    lines = {line.metric: line for line in result.models[0].lines}
    assert lines["harm_refusal"].answer is Answer.PASS
    assert lines["attack_success.*"].answer is None  # no test of it was stored


def test_what_cannot_be_decided_says_which_change_these_prompts_would_have_shown(tmp_path: Path) -> None:
    """Nothing differed on 100 prompts: six must fall, P(Binomial(100, x) >= 6) = 0.8 at x = 0.078."""
    result = gate(write_card(tmp_path, harm_refusal=change(0.0, -0.08, 0.08)))
    (line,) = (line for line in result.models[0].lines if line.answer is Answer.UNDECIDED)
    assert line.shows == pytest.approx(0.078, abs=2e-3)
    assert "these show a change of 7.8 points or more; about" in bound_line(line)
    assert line.as_json()["detectable_change"] == line.shows


def test_one_attack_that_got_easier_fails_the_model(tmp_path: Path) -> None:
    tests = {"attack_success.dan": change(0.3, 0.2, 0.4), "attack_success.wrap": change(0.0, -0.01, 0.01)}
    result = gate(write_card(tmp_path, harm_refusal=change(0.0, -0.02, 0.02), **tests))
    assert result.answer is Answer.FAIL
    failed = [line.metric for line in result.models[0].lines if line.answer is Answer.FAIL]
    assert failed == ["attack_success.dan"]


def test_the_worst_of_several_scorecards_counts_and_killed_ones_do_not(tmp_path: Path) -> None:
    write_card(tmp_path / "one" / "evaluate", harm_refusal=change(0.0, -0.02, 0.02))
    write_card(tmp_path / "two", harm_refusal=change(0.0, -0.2, 0.2))
    write_card(tmp_path / ".three.partial", harm_refusal=change(-0.5, -0.6, -0.4))
    result = gate(tmp_path)
    assert [(gated.folder.name, gated.answer.value) for gated in result.models] == [
        ("evaluate", "pass"), ("two", "undecided"),
    ]  # fmt: skip
    assert result.answer is Answer.UNDECIDED


def test_a_metric_that_nobody_measured_does_not_pass(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"harm_refusal.*not measured"):
        gate(write_card(tmp_path))
    policy = Policy.model_validate({"bounds": [{"metric": "toxicity", "at_most": 0.1, "optional": True}]})
    with pytest.raises(DataError, match="none of the policy's metrics"):
        gate(tmp_path, policy=policy)
    with pytest.raises(DataError, match=r"no scorecard\.json"):
        gate(tmp_path / "nothing" if (tmp_path / "nothing").mkdir() is None else tmp_path)


@pytest.mark.parametrize(("key", "value"), [("suite", "advbench"), ("judge", "llama-guard-3")])
def test_numbers_of_another_suite_or_judge_are_refused(tmp_path: Path, key: str, value: str) -> None:
    policy = {key: value, "bounds": [{"metric": "harm_refusal", "at_least": 0.5}]}
    with pytest.raises(RecipeError, match=rf"{key}.*expected {value}"):
        gate(write_card(tmp_path), policy=Policy.model_validate(policy))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bounds: []", "bounds"),
        ("bounds:\n- metric: drift\n", "exactly one of"),
        ("bounds:\n- metric: drift\n  at_least: 0.1\n  at_most: 0.2\n", "exactly one of"),
        ("bounds:\n- metric: drift\n  at_most: 5\n", "less than or equal to 1"),
        ("bounds:\n- metric: drift\n  at_mots: 0.05\n", "did you mean at_most"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused_with_its_key(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=words):
        read_policy(str(file))


def test_markdown_and_junit_hold_every_bound_and_hostile_names_break_neither(tmp_path: Path) -> None:
    tests = {"harm_refusal": change(0.0, -0.2, 0.2), "over_refusal": change(0.2, 0.1, 0.3)}
    result = gate(write_card(tmp_path, **tests))
    text = markdown_of(result)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(line.replace("\\|", "").count("|") == 5 for line in rows)
    assert "tuned \\| 'model'" in text
    suite = ElementTree.fromstring(junit_of(result).encode()).find("testsuite")
    assert suite is not None
    assert suite.get("name") == "tuned | `model`"
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "6", "failures": "1", "errors": "1", "skipped": "2",
    }  # fmt: skip
    assert "about" in "".join(verdict_lines(result))


def test_the_exit_code_is_the_verdict(tmp_path: Path) -> None:
    cases = {"kept": ((0.0, -0.02, 0.02), 0), "lost": ((-0.5, -0.6, -0.4), 3), "few": ((0.0, -0.3, 0.3), 5)}
    for name, (numbers, code) in cases.items():
        write_card(tmp_path / name, harm_refusal=change(*numbers))
        done = run_command("gate", tmp_path / name, "--json", "--markdown", tmp_path / f"{name}.md", folder=tmp_path)
        assert (done.code, json.loads(done.stdout)["models"][0]["bounds"][0]["metric"]) == (code, "harm_refusal")
        assert (tmp_path / f"{name}.md").read_text().startswith("## ")
    done = run_command("gate", tmp_path / "nowhere", folder=tmp_path)
    assert done.code == 1
    assert "no such folder" in done.stderr
