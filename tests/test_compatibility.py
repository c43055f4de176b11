"""docs/compatibility.md, the ranges of pyproject.toml and the environments that were tried say the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import compatibility  # noqa: E402

TABLE: dict[str, Any] = yaml.safe_load(compatibility.TABLE.read_text(encoding="utf-8"))
ENVIRONMENTS: dict[str, dict[str, Any]] = {one["name"]: one for one in TABLE["environments"]}


def ranges(extra: str | None) -> dict[str, Requirement]:
    """The requirements of pyproject.toml, with those of an extra, by package."""
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else ())]
    found: dict[str, Requirement] = {}
    for one in map(Requirement, lines):
        one.specifier &= found[one.name].specifier if one.name in found else one.specifier
        found[one.name] = one
    return found


def lowest(requirement: Requirement) -> Version:
    """The first version that fits."""
    return max(Version(one.version) for one in requirement.specifier if one.operator == ">=")


def test_the_page_is_what_the_results_say() -> None:
    assert compatibility.PAGE.read_text(encoding="utf-8") == compatibility.page(TABLE, compatibility.results())


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_was_tried_as_the_table_has_it_and_nothing_failed(name: str) -> None:
    wanted, found = ENVIRONMENTS[name], compatibility.results()[name]
    pins = {**wanted["pins"], **wanted.get("beside", {})}
    assert {package: found["versions"][package] for package in pins} == pins
    assert found["failed"] == []
    assert found["passed"] > 50


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_what_was_tried_is_within_the_ranges(name: str) -> None:
    wanted, allowed = ENVIRONMENTS[name], ranges(ENVIRONMENTS[name].get("extra"))
    for package, version in compatibility.results()[name]["versions"].items():
        if package in allowed and package not in wanted.get("beside", {}):
            assert allowed[package].specifier.contains(version.partition("+")[0]), f"{package} {version}"


@pytest.mark.parametrize(("name", "extra"), [("oldest", None), ("oldest-train", "train")])
def test_the_oldest_environments_hold_the_first_versions_of_the_ranges(name: str, extra: str | None) -> None:
    versions, allowed = compatibility.results()[name]["versions"], ranges(extra)
    for package in ("transformers", "peft", "accelerate", *(("trl", "datasets") if extra else ())):
        assert Version(versions[package]) == lowest(allowed[package]), package


def test_nothing_newer_than_the_newest_environment_is_allowed_of_what_is_subclassed() -> None:
    """TRL and PEFT may change what is overridden with any minor version; of transformers the major one is the limit."""
    versions, allowed = compatibility.results()["newest"]["versions"], ranges("train")
    for package in ("trl", "peft"):
        major, minor, *_ = Version(versions[package]).release
        assert not allowed[package].specifier.contains(f"{major}.{minor + 1}"), package


def test_a_report_is_counted_by_what_happened_to_each_test() -> None:
    report = (
        "<testsuites><testsuite><testcase classname='a' name='one'/>"
        "<testcase classname='a' name='two'><failure/></testcase>"
        "<testcase classname='b' name='three'><error/></testcase>"
        "<testcase classname='b' name='four'><skipped/></testcase></testsuite></testsuites>"
    )
    assert compatibility.counted(report) == {"passed": 1, "failed": ["a::two", "b::three"], "skipped": 1}
