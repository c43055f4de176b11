"""Whether a built wheel is small and whole: python tests/wheel_contents.py WHEEL (make test-wheel builds it first)."""

from __future__ import annotations

import sys
from pathlib import Path
from zipfile import ZipFile

PACKAGE = Path(__file__).parents[1] / "src" / "alignkeep"
MOST = 10 * 2**20  # bytes


def faults(wheel: Path) -> list[str]:
    """What is wrong with it: its size, and files of the package that it lacks or that the package does not have."""
    found = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    wanted = {name for name in found if "__pycache__" not in name}
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    size = wheel.stat().st_size
    told = [f"{size / 2**20:.1f} MiB, at most {MOST / 2**20:.0f} wanted"] if size > MOST else []
    told += [f"not in the wheel: {name}" for name in sorted(wanted - held)]
    return told + [f"not in the package: {name}" for name in sorted(held - wanted)]


if __name__ == "__main__":
    [given] = sys.argv[1:]
    if told := faults(Path(given)):
        sys.exit("\n".join(told))
