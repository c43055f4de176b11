"""Environments at the ends of the package's ranges, and with the pins of other trainers: the tests of each, as a page.

    python benchmarks/compatibility.py --root FOLDER [--only NAME ...]
    python benchmarks/compatibility.py --page

What is in which environment stands in compatibility.yaml. Each is made anew in `FOLDER/NAME`; the package is installed
into it as a user would (a wheel, its extra, no checkout on the path). Results lie in results/compatibility.json, from
which docs/compatibility.md is written, so that one environment can be tried alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

HERE = Path(__file__).parent
TABLE, RESULTS = HERE / "compatibility.yaml", HERE / "results" / "compatibility.json"
PAGE = HERE.parent / "docs" / "compatibility.md"
SHOWN = ("transformers", "peft", "accelerate", "tokenizers", "huggingface_hub", "trl", "datasets")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, help="where the environments are made")
    parser.add_argument("--only", nargs="*", default=[], help="names of environments (default: all)")
    parser.add_argument(
        "--kept", action="store_true", help="take the environments that are there, with the package anew"
    )
    parser.add_argument("--page", action="store_true", help="write the page from the results that are there")
    given = parser.parse_args()
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    if not given.page:
        if given.root is None:
            parser.error("--root FOLDER is needed")
        for wanted in table["environments"]:
            if not given.only or wanted["name"] in given.only:
                _store(wanted["name"], tried(table, wanted, given.root.resolve() / wanted["name"], given.kept))
    PAGE.write_text(page(table, results()), encoding="utf-8")


def results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def tried(table: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path, kept: bool) -> dict[str, Any]:
    """One environment made and tested: what is in it, and how many tests passed, failed and were skipped."""
    python = folder / "bin" / "python"
    if not (kept and python.is_file()):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    extra = f"[{wanted['extra']}]" if "extra" in wanted else ""
    pins = {"torch": table["torch"], **wanted["pins"], **wanted.get("beside", {})}
    limits = folder / "pins.txt"
    limits.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()), encoding="utf-8")
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", "-c", str(limits)]
    subprocess.run([*install, "torch"], check=True)
    subprocess.run([*install, f"{HERE.parent}{extra}", *pins, *table["tools"]], check=True)
    files = [f"tests/{name}.py" for group in wanted["tests"] for name in table["tests"][group]]
    report, began = folder / "tests.xml", time.monotonic()
    report.unlink(missing_ok=True)
    names = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *files],
        cwd=HERE.parent, env=names | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}, check=False,
    )  # fmt: skip
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "seconds": round(time.monotonic() - began),
        "versions": versions(python, pins),
        **counted(report.read_text(encoding="utf-8")),
    }


def versions(python: Path, pins: Mapping[str, str]) -> dict[str, str]:
    """What the environment really holds, by package."""
    code = "import json, sys, importlib.metadata as m; print(json.dumps({one: m.version(one) for one in sys.argv[1:]}))"
    names = sorted({*pins, *SHOWN[:5]})
    found = json.loads(subprocess.run([python, "-c", code, *names], check=True, capture_output=True, text=True).stdout)
    return {"python": platform.python_version(), **found}


def counted(report: str) -> dict[str, Any]:
    """Counts of a JUnit report, and the names of what failed."""
    cases = list(ElementTree.fromstring(report).iter("testcase"))
    failed = [one for one in cases if one.find("failure") is not None or one.find("error") is not None]
    skipped = [one for one in cases if one.find("skipped") is not None]
    return {
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": [f"{one.get('classname')}::{one.get('name')}" for one in failed],
        "skipped": len(skipped),
    }


def page(table: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The page: a row for every environment that was tried, and the words around it."""
    head = ["environment", *SHOWN, "tests", "passed", "failed", "skipped", "date"]
    rows = [_row(one, found[one["name"]]) for one in table["environments"] if one["name"] in found]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    failed = [
        f"- {one['name']}: `{name}`"
        for one in table["environments"]
        for name in found.get(one["name"], {}).get("failed", ())
    ]
    text = WORDS.replace("TORCH", str(table["torch"])).replace("TABLE", "\n".join(lines))
    return text + ("\nWhat failed:\n\n" + "\n".join(failed) + "\n" if failed else "")


def _row(wanted: Mapping[str, Any], one: Mapping[str, Any]) -> Sequence[str]:
    name = f"{wanted['title']}" + (f" (`alignkeep[{wanted['extra']}]`)" if "extra" in wanted else "")
    have = [one["versions"].get(package, "") for package in SHOWN]
    return [
        name,
        *have,
        ", ".join(wanted["tests"]),
        str(one["passed"]),
        str(len(one["failed"])),
        str(one["skipped"]),
        one["date"],
    ]


def _store(name: str, one: Mapping[str, Any]) -> None:
    every = {**results(), name: one}
    RESULTS.write_text(json.dumps(every, indent=1, sort_keys=True) + "\n", encoding="utf-8")


WORDS = """# Compatibility

| install | brings | for |
| --- | --- | --- |
| `pip install alignkeep` | torch, transformers, PEFT | measuring, gating, merging, injecting, curating, reporting |
| `pip install 'alignkeep[train]'` | TRL, datasets | `train`, `align`, `demo`, recipes with these stages |
| `pip install 'alignkeep[hub]'` | datasets | data sets of the hub (`org/name` in place of a file) |
| `pip install 'alignkeep[eval]'` | lm-evaluation-harness | `evaluate --utility` |
| `pip install 'alignkeep[inspect]'` | Inspect | its tasks of ours, `inspect eval alignkeep/harm_refusal` |

A command whose extra is not there, or there in another version, says so in one line before it does any work.
`alignkeep doctor` shows the versions that are here, and whether they are within the ranges of `pyproject.toml`.

`make compatibility` makes the environments below, installs the package into each as you would, runs a part of its
tests there and writes this page. *core* are tests of loading, answering, evaluating, merging, injecting and verifying,
*train* those of the trainers that `train` and `align` stand on; `benchmarks/compatibility.yaml` names them. All of it
is on a CPU with torch TORCH. Of Axolotl and LLaMA-Factory the libraries were installed that both sides use, not the
tools themselves.

TABLE

What is skipped says so: tests of a command without its extra where the extra is there, tests of experts with PEFT 0.18.

## Why not older ones

- **transformers** before 5: how weights are renamed in loading is not there to be asked. 5.0 does not read the number
  of experts that later versions write, 5.1 lacks a setting of the trainer, and 5.2 does not say which tensors a folder
  lacks when it is looked at without loading its numbers. The cache of GIT gives other numbers up to 5.16 at least, and
  that model is refused there.
- **PEFT** 0.18 keeps adapters of fused experts (`target_parameters`) with their matrices turned round, and no version
  turns them back: such adapters are refused, made with it or to be loaded by it.
- **TRL** before 1.15 has no head that gives the probability of every answer token without all logits, which example
  weights multiply; that of 1.15 wants Triton, which a CPU or a Mac has not. Axolotl 0.19.0 pins 1.9.0 and LLaMA-Factory
  0.9.5 at most 0.24.0: beside them alignkeep does everything but train, and training wants an environment of its own.
"""

if __name__ == "__main__":
    main()
