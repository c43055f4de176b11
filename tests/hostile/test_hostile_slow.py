"""The same contract over a thousand generated cases and more: `make test-hostile`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile_cases import cases
from hostile_contract import Case, Server, faults_of
from hostile_fixtures import assets, server

__all__ = ["assets", "server"]
pytestmark = pytest.mark.slow_hostile


@pytest.mark.parametrize("case", cases(each=100), ids=lambda case: case.name)
def test_hostile_input_ends_as_promised(case: Case, server: Server, assets: Path, tmp_path: Path) -> None:
    faults = faults_of(case, tmp_path / "case", assets, server)
    assert not faults, "\n".join(faults)
