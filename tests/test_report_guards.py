"""Guarded and probed tunes on the page: the numbers are those of log and record; nothing where there is none."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkeep.errors import DataError
from alignkeep.report.sources import read_sources
from alignkeep.report.stage import report
from alignkeep.train.figures import Training, forgetting_of, guards_of, probes_of, read_training
from alignkeep.train.forgetting import Observation, fit_forgetting
from alignkeep.train.law import FORGETTING_NAME, ForgettingLaw, read_forgetting
from alignkeep.trainers.log import LOG_NAME
from test_report import NASTY, write_demo
from test_report_injections import write as write_injection

ENERGIES = {"model.layers.0.q": [0.04, 1.0], "model.layers.0.v": [0.05, 1.0], "model.layers.11.q": [0.16, 2.0]}


def write(folder: Path, energies: Any = ENERGIES) -> None:
    """A tune by hand: a look at step 0, two logged steps of which the second is half inside, a look at its end."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"step": 0, "safety/refusal_log_odds": 6.0, "safety/divergence": 0.0},
        {"step": 10, "loss": 1.0, "alignguard/inside": 0.0, "alignguard/beside": 0.0},
        {"step": 20, "loss": 0.5, "alignguard/inside": 0.25, "alignguard/beside": 0.25},
        {"step": 20, "safety/refusal_log_odds": -1.5, "safety/divergence": 0.125},
    ]
    (folder / "training_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "record.json").write_text(json.dumps({"stage": "train", "result": {"energies": energies}}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_demo(tmp_path)
    return tmp_path


def found(folder: Path, label: str = "kept") -> Training:
    return next(one for one in trainings(folder) if one.label == label)


def trainings(folder: Path) -> list[Training]:
    return [read_training(one) for one in read_sources([folder]).finished if LOG_NAME in one.names]


def colours(labels: Iterable[str]) -> dict[str, int]:
    return {label: number for number, label in enumerate(labels, start=1)}


def test_the_tables_have_the_numbers_of_log_and_record(folder: Path) -> None:
    """Of layer 0 the norm inside is sqrt(.04 + .05) = .3, of layer 11 .4. Before the update begins it has no share."""
    write(folder / "kept" / "train")
    training = found(folder)
    assert training.losses == ((10.0, 1.0), (20.0, 0.5))
    shares, layers = guards_of([training], colours)
    assert shares.table.rows == (("kept", "0.25", "0.25", "50.0 %"),)
    assert layers.table.rows == (("kept", "0", "0.3"), ("kept", "11", "0.4"))
    (probe,) = probes_of([training], colours)
    assert probe.table.rows == (("kept", "0", "6.00", "0.000"), ("kept", "20", "-1.50", "0.125"))


def test_a_tune_without_guard_and_probe_has_no_such_figure(folder: Path) -> None:
    found = trainings(folder)
    assert found
    assert guards_of(found, colours) == probes_of(found, colours) == ()


@pytest.mark.parametrize(
    "broken", [None, 3, [1, 2], {"model.layers.0.q": "x"}, {"model.layers.0.q": [1]}, {"q": [1, 2]}]
)
def test_a_record_without_usable_energies_has_no_layers(broken: Any, folder: Path) -> None:
    write(folder / "kept" / "train", broken)
    assert [figure.name for figure in guards_of([found(folder)], colours)] == ["guard"]


TUNES = ("plain", 500, 1.25), ("plain", 500, 1.75), ("plain", 1000, 4.5), ("kept", 1000, 0.6)
LAW = {
    "base_loss": 0.5, "unit": 1000, "exponent": [2.0, 1.5, 2.5],
    "tunes": [{"method": name, "amount": amount, "loss": loss} for name, amount, loss in TUNES],
    "methods": {name: {"amplitude": [size, size / 2, 2 * size], "offset": [0.25, 0.0, 0.5]}
                for name, size in (("plain", 4.0), ("kept", 0.5))},
}  # fmt: skip


def test_a_law_of_forgetting_has_measured_and_fitted_numbers(tmp_path: Path) -> None:
    """Of plain at 500: measured (.75 + 1.25) / 2 above the base's .5, fitted 4 x .5^2 + .25."""
    file = tmp_path / FORGETTING_NAME
    file.write_text(json.dumps(LAW))
    law = read_forgetting(file)
    (figure,) = forgetting_of([law])
    assert figure.table.rows == (
        ("plain", "500", "1.000 (2)", "1.250"),
        ("plain", "1000", "4.000 (1)", "4.250"),
        ("kept", "1000", "0.100 (1)", "0.750"),
    )
    assert figure.notes[0] == "plain: amplitude 4 [2, 8], offset 0.25 [0, 0.5]"
    assert json.loads(law.write(tmp_path).read_text()) == LAW


def test_what_was_fitted_is_what_is_drawn(tmp_path: Path) -> None:
    tunes = [
        Observation(name, amount, 0.5 + size * amount / 1000)
        for name, size in (("plain", 2.0), ("kept", 0.2))
        for amount in (100, 200, 400, 800, 1600)
    ]
    fit = fit_forgetting(tunes, 0.5, unit=1000, draws=20)
    law = ForgettingLaw.of(fit, 0.5, tunes)
    (figure,) = forgetting_of([read_forgetting(law.write(tmp_path))])
    for method, amount, measured, fitted in figure.table.rows:
        assert float(fitted) == pytest.approx(fit.predicted(method, np.array([float(amount)]))[0], abs=1e-3)
        assert float(measured.split()[0]) == pytest.approx(float(fitted), abs=0.02)


@pytest.mark.parametrize("key", ["base_loss", "exponent", "methods", "tunes"])
def test_a_law_that_is_none_is_refused(key: str, folder: Path) -> None:
    (folder / FORGETTING_NAME).write_text(json.dumps({**LAW, key: [1, 2]}))
    with pytest.raises(DataError, match=f"{FORGETTING_NAME}: found"):
        report([folder])


def test_no_two_figures_of_a_page_have_one_name(folder: Path, tmp_path: Path) -> None:
    """The injections have layers too."""
    write(folder / "kept" / "train")
    write_injection(folder / "kept" / "inject")
    page = report([folder], out=tmp_path / "page").page.read_text(encoding="utf-8")
    names = re.findall(r'<section id="([^"]+)"', page)
    assert len(names) == len(set(names))
    assert {"layers", "guard-layers"} <= set(names)


def test_all_are_on_the_page_and_a_hostile_name_is_a_word(folder: Path, tmp_path: Path) -> None:
    name = NASTY[0].replace("/", "")
    write(folder / name / "train")
    (folder / name / FORGETTING_NAME).write_text(json.dumps(LAW).replace("kept", name))
    page = report([folder], out=tmp_path / "page").page.read_text(encoding="utf-8")
    for title in (
        "Safety while tuning",
        "The update inside the alignment subspace",
        "Drift by layer",
        "What is forgotten",
    ):
        assert title in page
    assert name not in page


def test_an_energy_of_nothing_draws_no_curve() -> None:
    assert guards_of([Training("kept", (), ((10.0, 0.0, 0.0),), {"model.layers.0.q": (math.nan, 1.0)})], colours) == ()
