"""The table of families and verbs as a page of the docs, and read back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

# The columns; what each does is in cells.py.
VERBS = ("evaluate", "train lora", "train full", "alignguard", "merge model", "merge adapter", "inject")
Found = Mapping[str, Mapping[str, Any]]  # of a family by verb: state and reason; or `unbuilt`: why

_HEAD = """\
# Models

Which of the architectures of transformers {version} the verbs work on, and what is said where they do not. Each is
built tiny, with random weights, from its own config class; every verb then runs on it, and what comes out is held
against something that is not alignkeep: the class of transformers that the saved config names (not a tensor missing or
left over, the same logits), PEFT (what an adapter means), gradients taken by hand (just what text reaches is trained,
the rest keeps the base's bytes), dense algebra (an edit is one product of two vectors in every matrix it moves).

`right`: it came out as it should. `refused`: the command ends with exit code 1 and says why, before it writes; the
number is that of the reason below. `failure`: it does not work and does not say so in one line, which is a bug.

A tiny model says that the mechanics are right. It says nothing of how well a method works on a model of that family.

The vision and audio parts of a model stay as they are: its language model is what is tuned, merged and edited, on text.

`make test-families` makes this page again.

"""


def page(found: Found) -> str:
    """The page; families whose tiny model cannot be built stand at its end."""
    built = {kind: cells for kind, cells in sorted(found.items()) if "unbuilt" not in cells}
    reasons: dict[str, int] = {}
    rows = [
        f"| {kind} | {' | '.join(_shown(*cells[verb], kind, reasons) for verb in VERBS)} |"
        for kind, cells in built.items()
    ]
    answering = {kind: cells for kind, cells in built.items() if cells["evaluate"][0] == "right"}
    counts = []
    for verb in VERBS:
        share = _counts(answering, verb)[0] / max(len(answering), 1)
        counts.append(f"| {verb} | {' | '.join(map(str, _counts(built, verb)))} | {share:.0%} |")
    unbuilt = [
        f"| {kind} | {_plain(cells['unbuilt'], kind)} |" for kind, cells in sorted(found.items()) if "unbuilt" in cells
    ]
    parts = [
        _HEAD.format(version=version("transformers")) + f"## {len(built)} families by verb\n",
        f"{len(answering)} of them answer a prompt of text; the others are encoders, want a picture, or do not run.\n",
        "\n".join(
            ["| verb | right | refused | failure | right, of those that answer |", "| --- |" + " ---: |" * 4, *counts]
        ),
        "\n## Every family\n",
        "\n".join([f"| family | {' | '.join(VERBS)} |", f"| --- |{' --- |' * len(VERBS)}", *rows]),
        "\n## Reasons\n",
        "\n".join(f"{number}. {reason}" for reason, number in reasons.items()),
        "\n## Not tried\n\nTheir tiny models could not be made or run here.\n",
        "\n".join(["| family | why |", "| --- | --- |", *unbuilt]),
    ]
    return "\n".join(parts) + "\n"


def read(text: str) -> dict[str, dict[str, str]]:
    """The states by family and verb that a page tells."""
    table = text.partition("## Every family")[2].partition("## Reasons")[0]
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("| ")
    ]
    verbs = rows[0][1:]
    return {
        kind: dict(zip(verbs, (cell.split()[0] for cell in cells), strict=True))
        for kind, *cells in rows[1:]
        if kind != "---"
    }


def _counts(built: Found, verb: str) -> list[int]:
    states = [cells[verb][0] for cells in built.values()]
    return [states.count(state) for state in ("right", "refused", "failure")]


def _shown(state: str, reason: str, kind: str, reasons: dict[str, int]) -> str:
    if state == "right":
        return state
    return f"{state} {reasons.setdefault(_plain(reason, kind), len(reasons) + 1)}"


def _plain(reason: str, kind: str) -> str:
    """Without what differs from family to family: folders, names, numbers, long lists."""
    text = re.sub(r"(?<!\w)(/[\w.+-]+)+/", "", reason)
    text = re.sub(r"(base_model\.model\.)?(\w+\.)+\d+\.[\w.]+", "LAYER", text)
    text = re.sub(r"one of (\w+, ){5}.*?;", "one of those known;", text)
    text = re.sub(rf"\b{re.escape(kind)}(_text)?\b", "FAMILY", text).replace("|", "/")
    text = re.sub(r"\b[A-Z]\w*(ForCausalLM|ForConditionalGeneration|LMHeadModel)\b", "MODEL", text)
    text = re.sub(r"\(\d+(, \d+)*\)|\[\d+(, \d+)*\]", "SHAPE", text)
    return text if len(text) <= 300 else f"{text[:297]}..."
