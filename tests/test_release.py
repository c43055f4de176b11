"""A release: its tag is what the files say, and the workflows that build and publish it are sound."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import alignkeep
from release_faults import faults

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
INIT, CITATION = '__version__ = "1.2.0"\n', "version: 1.2.0\n"
CHANGELOG = "# Changes\n\n## 1.2.0 (2026-12-24)\n\n- New.\n\n## 1.1.0 (2026-10-01)\n\n- Old.\n"


def test_a_tag_that_all_files_agree_with_has_no_fault() -> None:
    assert faults("v1.2.0", INIT, CHANGELOG, CITATION) == []


@pytest.mark.parametrize("tag", ["1.2.0", "v1.2", "v1.2.0-final", "latest", ""])
def test_a_tag_of_another_form_is_a_fault(tag: str) -> None:
    assert any(fault.startswith("tag:") for fault in faults(tag, INIT, CHANGELOG, CITATION))


def test_each_file_that_says_another_version_is_named() -> None:
    told = faults("v1.1.0", INIT, CHANGELOG, CITATION)
    assert [fault.partition(":")[0] for fault in told] == ["src/alignkeep/__init__.py", "CITATION.cff"]
    assert "found version 1.2.0, expected 1.1.0" in told[0]


@pytest.mark.parametrize("changelog", ["", CHANGELOG.replace("1.2.0", "1.20"), CHANGELOG.replace("- New.", "")])
def test_a_version_without_changes_is_a_fault(changelog: str) -> None:
    [told] = faults("v1.2.0", INIT, changelog, CITATION)
    assert told.startswith("CHANGELOG.md: found no changes")


def test_an_unreleased_section_is_enough_for_a_dry_run_only() -> None:
    changelog = CHANGELOG.replace("2026-12-24", "unreleased")
    assert faults("v1.2.0", INIT, changelog, CITATION, dry_run=True) == []
    [told] = faults("v1.2.0", INIT, changelog, CITATION)
    assert "found 'unreleased', expected the date" in told


def test_this_version_could_be_released_but_for_the_date() -> None:
    command = [sys.executable, ROOT / "tests" / "release_faults.py", f"v{alignkeep.__version__}", "--dry-run"]
    assert subprocess.run(command, check=False, capture_output=True, text=True).stderr == ""


def test_the_audit_of_the_workflows_finds_nothing() -> None:
    tool = shutil.which("zizmor", path=str(Path(sys.executable).parent)) or shutil.which("zizmor")
    if tool is None:
        pytest.skip("zizmor is not installed")
    told = subprocess.run(
        [tool, "--offline", "--no-progress", "--color", "never", "--min-severity", "medium", ROOT / ".github"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    assert all(f"{path.parent.name}/{path.name}" in told.stderr for path in WORKFLOWS), told.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_waits_for_jobs_and_runs_commands_that_exist(path: Path) -> None:
    jobs: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for job in jobs.values():
        assert job.get("needs") is None or job["needs"] in jobs
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file()
        for step in job.get("steps", ()):
            words = step.get("run", "make test").split()
            assert words[1] in targets if words[0] == "make" else (ROOT / words[0]).stat().st_mode & 0o100, words


def test_only_the_jobs_that_publish_can_prove_who_they_are() -> None:
    asked = {
        f"{path.stem}.{name}"
        for path in WORKFLOWS
        for name, job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].items()
        if job["permissions"] != {"contents": "read"}
    }
    assert asked == {"release.publish", "site.deploy"}
