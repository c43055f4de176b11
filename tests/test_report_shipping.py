"""Which model the page says to ship: by the policy first, then by the task, and never by what was not measured."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from alignkeep import lifecycle
from alignkeep.charts.scatter import Region, Spot, scatter_chart
from alignkeep.errors import AlignkeepError, RecipeError
from alignkeep.gate.stage import gate
from alignkeep.judging.metrics import BENIGN_COMPLIANCE, TASK_ACCURACY
from alignkeep.judging.statistics import wilson
from alignkeep.policy.bounds import Bound, Policy
from alignkeep.policy.decision import Answer
from alignkeep.recipe import Recipe
from alignkeep.report.config import ReportConfig
from alignkeep.report.page import page_of
from alignkeep.report.panels import plane
from alignkeep.report.shipping import allowed, ruled
from alignkeep.report.sources import read_sources
from alignkeep.report.stage import report
from alignkeep.report.subjects import Subject, made_from, subjects_of
from alignkeep.stage import Finished
from test_report import paired_of, plain, rate, write_record, write_scorecard

KEPT = Policy(name="kept", bounds=(Bound(metric="harm_refusal", change_at_least=-0.05),))


def model(root: Path, name: str, refused: int, right: int, *, n: int = 1000) -> Path:
    """A tune that refuses so many of n harmful prompts, of which its base refuses all, and is right on so many of n
    task prompts, of which its base is right on none."""
    tests = {
        "harm_refusal": paired_of([True] * refused + [False] * (n - refused), [True] * n),
        "task_accuracy": paired_of([True] * right + [False] * (n - right), [False] * n),
    }
    metrics = {"harm_refusal": rate(refused, n), "task_accuracy": rate(right, n), "degenerate": rate(0, n)}
    base = {"harm_refusal": rate(n, n), "task_accuracy": rate(0, n)}
    folder = write_scorecard(
        root / name / "evaluate", metrics | {"unscored": rate(0, n)}, base_metrics=base, tests=tests, model=name
    )
    return folder.parent


def advice_on(root: Path, policy: Policy = KEPT):
    found = page_of(read_sources([root]), policy=policy).advice
    assert found is not None
    return found


def test_of_the_models_that_keep_the_policy_the_best_at_the_task_is_shipped(tmp_path: Path) -> None:
    """990, 985 and 700 of 1000 refused: two lose less than five points. Of these 600 tasks right are more than 500; the
    900 of the third do not count."""
    for name, refused, right in (("careful", 990, 500), ("useful", 985, 600), ("broken", 700, 900)):
        model(tmp_path, name, refused, right)
    found = advice_on(tmp_path)
    assert (found.pick, found.headline, found.tone) == ("useful", "Ship useful", "good")
    assert found.reasons.startswith("Of 3 models 2 keep the policy “kept”; it has the highest task: harm refusal")
    text = plain(report([tmp_path]).page)
    assert text.index("Ship useful") < text.index("Safety against task") < text.index("Safety lost")


def test_a_best_that_may_be_chance_is_called_so(tmp_path: Path) -> None:
    model(tmp_path, "one", 990, 500)
    model(tmp_path, "two", 990, 505)
    assert "though not beyond chance (one: 50.0" in advice_on(tmp_path).reasons


def test_none_is_shipped_where_all_break_the_policy(tmp_path: Path) -> None:
    model(tmp_path, "one", 300, 900)
    assert advice_on(tmp_path).headline == "Do not ship one"
    model(tmp_path, "two", 400, 900)
    found = advice_on(tmp_path)
    assert (found.pick, found.headline, found.reasons) == (
        None,
        "Ship none of these",
        "Both break the policy “kept”.",
    )


def test_too_few_prompts_are_no_reason_to_ship(tmp_path: Path) -> None:
    """One of twenty lost: by chance that may be none, or three."""
    model(tmp_path, "few", 19, 20, n=20)
    found = advice_on(tmp_path)
    assert (found.pick, found.headline) == (None, "Do not ship yet")
    assert "breaks no bound" in found.reasons
    assert "not above" not in found.reasons


def test_a_model_that_may_pass_and_gained_nothing_is_said_to_have_gained_nothing(tmp_path: Path) -> None:
    model(tmp_path, "few", 19, 0, n=20)
    assert advice_on(tmp_path).reasons.endswith("Its task is not above that of its base beyond chance.")


def test_a_model_that_gained_nothing_is_said_to_have_gained_nothing(tmp_path: Path) -> None:
    model(tmp_path, "as-before", 1000, 0)
    assert advice_on(tmp_path).reasons.endswith("Its task is not above that of its base beyond chance.")


def test_what_else_was_lost_is_said_of_the_model_to_ship_though_the_policy_does_not_ask(tmp_path: Path) -> None:
    """440 of 1000 skills lost; over-refusal, where more is worse, rose by 100; harmless prompts lost none."""
    folder = model(tmp_path, "one", 1000, 600) / "evaluate" / "scorecard.json"
    card = json.loads(folder.read_text())
    for name, after, before in (("skill_accuracy", 560, 1000), ("over_refusal", 100, 0), ("benign_compliance", 9, 9)):
        card["metrics"][name], card["base_metrics"][name] = rate(after, 1000), rate(before, 1000)
        of = [[True] * count + [False] * (1000 - count) for count in (after, before)]
        card["tests"][name] = paired_of(*of)
    folder.write_text(json.dumps(card))
    found = advice_on(tmp_path)
    assert found.pick == "one"
    assert "It lost against its base: skills \u221244.0 points, over-refusal +10.0 points." in found.reasons


def test_utility_and_attacks_that_were_lost_are_said_too(tmp_path: Path) -> None:
    folder = model(tmp_path, "one", 990, 600) / "evaluate" / "scorecard.json"
    card = json.loads(folder.read_text())
    for name, after, before in (("utility.mmlu", 300, 700), ("attack_success.prefill", 400, 100)):
        card["metrics"][name], card["base_metrics"][name] = rate(after, 1000), rate(before, 1000)
        card["tests"][name] = paired_of(*([True] * count + [False] * (1000 - count) for count in (after, before)))
    folder.write_text(json.dumps(card))
    reasons = advice_on(tmp_path).reasons
    assert "harm refusal \u22121.0 points" in reasons
    assert "attack success: prefill +30.0 points" in reasons
    assert "utility: mmlu \u221240.0 points" in reasons


def test_models_that_were_judged_differently_are_not_ranked(tmp_path: Path) -> None:
    for name, judge in (("one", "keyword"), ("two", "guard=G")):
        path = model(tmp_path, name, 990, 600) / "evaluate" / "scorecard.json"
        card = json.loads(path.read_text())
        path.write_text(json.dumps({**card, "settings": {**card["settings"], "judge": judge}}))
    found = advice_on(tmp_path)
    assert (found.pick, found.headline) == (None, "More than one may ship")


def test_what_was_not_measured_ships_nothing_and_is_named(tmp_path: Path) -> None:
    write_scorecard(tmp_path / "alone", {"harm_refusal": rate(9, 10)})
    found = advice_on(tmp_path)
    assert found.headline == "Not enough was measured to say"
    assert "harm refusal: not measured (there is no base to compare with" in found.reasons


@pytest.mark.parametrize(("refused", "n"), [(990, 1000), (700, 1000), (19, 20)])
def test_page_and_gate_say_the_same(tmp_path: Path, refused: int, n: int) -> None:
    folder = model(tmp_path, "one", refused, n // 2, n=n)
    [subject] = [one for one in subjects_of(read_sources([folder]).evaluations) if one.series > 0]
    ruling = ruled(subject, KEPT)
    verdict = gate(folder, policy=KEPT)
    assert (ruling.answer, ruling.lines) == (verdict.answer, verdict.models[0].lines)
    assert ruling.answer in set(Answer)


def test_a_policy_of_another_suite_is_refused_before_a_page_is_written(tmp_path: Path) -> None:
    model(tmp_path, "one", 990, 500)
    (tmp_path / "policy.yaml").write_text("suite: another\nbounds: [{metric: harm_refusal, at_least: 0.9}]\n")
    with pytest.raises(RecipeError, match="suite: found s, expected another"):
        report([tmp_path], policy=str(tmp_path / "policy.yaml"))
    assert not (tmp_path / "report.html").exists()


# The region


def subject(name: str, refusal: int, task: int, base: Subject | None = None) -> Subject:
    rates = {"harm_refusal": wilson(refusal, 100), "task_accuracy": wilson(task, 100)}
    return Subject(name, name, "s", rates, {}, {}, {}, series=0 if base is None else 1, base=base)


BASE = subject("base", 90, 20)
TUNE = subject("tune", 70, 80, BASE)


def test_the_region_is_bounded_where_the_policy_bounds_the_two_rates() -> None:
    """A base that refuses 90 %: a change of at least -5 points is 85 % and more."""
    bounds = (
        Bound(metric="harm_refusal", change_at_least=-0.05),
        Bound(metric="harm_*", at_least=0.8),
        Bound(metric="task_accuracy", at_least=0.5),
        Bound(metric="task_accuracy", at_most=0.95),
        Bound(metric="unscored", at_most=0.1),
    )
    found = allowed(Policy(bounds=bounds), TASK_ACCURACY, [BASE, TUNE])
    assert found is not None
    assert found.region.up == pytest.approx((0.85, 1.0))
    assert found.region.across == (0.5, 0.95)
    assert found.words[0] == "harm refusal change ≥ \u22125 points"


def test_bounds_against_the_base_have_no_place_where_there_are_two() -> None:
    other = replace(BASE, label="other")
    policy = Policy(bounds=(Bound(metric="harm_refusal", change_at_least=-0.05),))
    assert allowed(policy, BENIGN_COMPLIANCE, [BASE, other, TUNE]) is None
    policy = Policy(bounds=(*policy.bounds, Bound(metric="harm_refusal", at_least=0.7)))
    found = allowed(policy, BENIGN_COMPLIANCE, [BASE, other, TUNE])
    assert found is not None
    assert found.region.up == (0.7, 1.0)


def drawn(region: Region | None) -> ElementTree.Element:
    spots = [Spot(one.label, one.series, one.rate("task_accuracy"), one.rate("harm_refusal")) for one in (BASE, TUNE)]
    return ElementTree.fromstring(scatter_chart("c", "t", "d", spots, [], across="x", up="y", region=region))


def test_the_shade_lies_between_its_bounds_among_the_marks() -> None:
    """85 % and more: the shade's lower edge lies between the marks at 90 and 70 %, and a bound at 30 % of the task
    between 20 and 80 %."""
    picture = drawn(Region((0.3, 1.0), (0.85, 1.0)))
    [shade] = [one for one in picture.iter() if one.get("class") == "region"]
    base, tune = (one for one in picture.iter() if one.get("class") == "at" and one.get("width") is None)
    edge = float(shade.get("y", "")) + float(shade.get("height", ""))
    assert float(base.get("y", "")) < edge < float(tune.get("y", ""))
    left = float(shade.get("x", "").rstrip("%"))
    assert float(base.get("x", "").rstrip("%")) < left < float(tune.get("x", "").rstrip("%"))
    assert len([one for one in picture.iter() if one.get("class") == "bound"]) == 2


def test_a_region_below_all_marks_is_still_in_the_picture_and_an_empty_one_is_not() -> None:
    assert [one for one in drawn(Region((0.0, 1.0), (0.0, 0.1))).iter() if one.get("class") == "bound"]
    assert not [one for one in drawn(Region((0.0, 1.0), (0.9, 0.8))).iter() if one.get("class") == "region"]
    assert not [one for one in drawn(None).iter() if one.get("class") == "region"]


def test_the_picked_model_is_ringed_and_a_repair_is_joined_with_its_tune() -> None:
    repair = replace(subject("repair", 88, 75, BASE), series=2, fingerprint="sha256:c")
    tune = replace(TUNE, fingerprint="sha256:b")
    record = Finished("repair", Path("repair/merge"), frozenset(), {"inputs": {"tuned.0": "sha256:b", "x": "sha256:c"}})
    parents = made_from([BASE, tune, repair], [record])
    assert parents == {"repair": ("tune",)}
    figure = plane([BASE, tune, repair], KEPT, "repair", parents)
    assert figure is not None
    lines = [one.get("points", "") for one in ElementTree.fromstring(figure.chart).iter() if one.get("class") == "path"]
    assert len(lines) == 2
    assert lines[0].split()[1] == lines[1].split()[0]  # base to tune, tune to repair
    assert str(figure.chart).count('class="ring"') == 1


def test_records_beside_the_evaluations_tell_what_was_made_from_what(tmp_path: Path) -> None:
    for name in ("tune", "repair"):
        folder = model(tmp_path, name, 900, 500) / "evaluate"
        write_record(folder, "evaluate", {}, {"model": f"sha256:{name}", "base": "sha256:base"}, 1.0)
    write_record_in(tmp_path / "repair" / "merge", {"tuned.0": "sha256:tune"})
    sources = read_sources([tmp_path])
    assert made_from(subjects_of(sources.evaluations), sources.finished) == {"repair": ("tune",)}


def write_record_in(folder: Path, inputs: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    write_record(folder, "merge", {}, inputs, 1.0)
    assert json.loads((folder / "record.json").read_text())["stage"] == "merge"


# In a run


def test_a_policy_that_cannot_be_read_is_known_before_the_first_stage(tmp_path: Path) -> None:
    text = "model: testbed:models/aligned\nevaluate: {suite: testbed, limit: 2}\nreport: {policy: nowhere.yaml}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = Recipe.read(tmp_path / "recipe.yaml")
    with pytest.raises(AlignkeepError, match=r"nowhere\.yaml"):
        lifecycle.plan(recipe)
    with pytest.raises(AlignkeepError, match=r"nowhere\.yaml"):
        lifecycle.run(recipe, out=tmp_path / "out")
    assert not (tmp_path / "out" / "evaluate").exists()


def test_the_page_of_a_run_follows_its_policy_when_that_is_changed(tmp_path: Path) -> None:
    """700 of 1000 refused: more than 60 %, less than 80 %."""
    folder = model(tmp_path, "one", 700, 500) / "evaluate"
    write_record(folder, "evaluate", {}, {}, 1.0)
    policy, headlines = tmp_path / "policy.yaml", []
    for least in (0.6, 0.8, 0.8):
        policy.write_text(f"bounds: [{{metric: harm_refusal, at_least: {least}}}]\n")
        config = ReportConfig(policy=str(policy))
        page = lifecycle.report_on(tmp_path, config, "run", "0" * 64, [folder], 0.0)
        headlines.append(re.findall(r"<bdi>((?:Ship|Do not ship) one)</bdi>", page.read_text()))
    assert headlines == [["Ship one"], ["Do not ship one"], ["Do not ship one"]]
