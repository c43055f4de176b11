"""Store what users rely on as the present code gives it: python tests/golden/write.py, then look at the diff.

`--partial` also replaces the folder that an earlier version left half done: only where it can no longer be continued,
which the changelog then says.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import collect
from commands import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--partial", action="store_true")
    asked = parser.parse_args()
    collect.STORED.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        found = {"life": collect.life(folder), "small_verbs": collect.small_verbs(folder)}
        found |= {"identities": collect.identities(), "tensors": collect.tensors(folder / "merges")}
        if asked.partial:
            collect.interrupted(folder / "partial")
        found |= {"helps": collect.helps(run), "codes": collect.codes(run, folder / "shipped", folder)}
    for part, value in found.items():
        text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True)
        (collect.STORED / f"{part}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
