"""The contract of every command under hostile input: the cases that have names, and a few generated ones."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hostile_cases import cases
from hostile_contract import Case, Server, faults_of
from hostile_fixtures import assets, server

__all__ = ["assets", "server"]


@pytest.mark.parametrize("case", cases(each=1), ids=lambda case: case.name)
def test_hostile_input_ends_as_promised(case: Case, server: Server, assets: Path, tmp_path: Path) -> None:
    faults = faults_of(case, tmp_path / "case", assets, server)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("family", sorted({case.family for case in cases(each=100)}))
def test_a_generated_case_can_be_built(family: str, assets: Path, tmp_path: Path) -> None:
    """Those of `make test-hostile` too, which nobody runs every day."""
    case = [case for case in cases(each=100) if case.family == family][-1]
    assert case.build(random.Random(case.name), tmp_path, assets).arguments


def test_the_page_says_how_many_cases_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "files.md").read_text(encoding="utf-8")
    few, many = (Counter(case.family for case in cases(each)) for each in (1, 100))
    for family in few:
        assert f"| {few[family]} | {many[family]} |" in page, family
    assert f"| all | {few.total()} | {many.total()} |" in page
