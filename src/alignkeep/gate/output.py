"""A verdict as other programs read it: Markdown for people and pull requests, JUnit XML for test reports."""

from __future__ import annotations

from xml.etree import ElementTree

from alignkeep.gate.stage import Gated, GateResult
from alignkeep.policy.decision import Answer
from alignkeep.policy.holding import Line
from alignkeep.types import Estimate

_MARKS = {Answer.PASS: "✅ pass", Answer.FAIL: "❌ fail", Answer.UNDECIDED: "❔ cannot decide", None: "– not measured"}
WORDS = {Answer.PASS: "pass", Answer.FAIL: "FAIL", Answer.UNDECIDED: "cannot decide", None: "not measured"}
_HEADLINES = {
    Answer.PASS: "Passed",
    Answer.FAIL: "Failed",
    Answer.UNDECIDED: "Not decided: these prompts are too few",
}


def verdict_lines(result: GateResult) -> list[str]:
    """A line for each model, and under it one for each bound: for the terminal."""
    found: list[str] = []
    for gated in result.models:
        found.append(f"{WORDS[gated.answer]}: {gated.model} ({gated.folder})")
        found += [f"  {bound_line(line)}" for line in gated.lines]
    return found


def bound_line(line: Line) -> str:
    """`FAIL: over_refusal +20.0 points [+12.1, +27.4], n = 100, wanted change <= +5 points`."""
    return f"{WORDS[line.answer]}: {line.metric} {measured(line)}, wanted {line.bound}{_more(line)}"


def markdown_of(result: GateResult) -> str:
    """A heading with the verdict and a table for each model."""
    parts = [f"## {_HEADLINES[result.answer]} ({_cell(result.policy)})"]
    for gated in result.models:
        against = f" against `{_code(gated.base)}`" if gated.base else ""
        parts.append(f"`{_code(gated.model)}`{against}, suite {_cell(gated.suite)}: **{_MARKS[gated.answer]}**")
        rows = ["| bound | wanted | measured (95 % interval) | |", "| --- | --- | --- | --- |"]
        for line in gated.lines:
            cells = map(_cell, (line.metric, line.bound, measured(line) + _more(line), _MARKS[line.answer]))
            rows.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def junit_of(result: GateResult) -> str:
    """JUnit XML: a suite for each model and a case for each bound. What cannot be decided is an error there, what is
    broken a failure, an optional bound without a number is skipped."""
    root = ElementTree.Element("testsuites", name=_text(f"alignkeep gate: {result.policy}"))
    for gated in result.models:
        root.append(_suite(gated))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def measured(line: Line) -> str:
    """The number a bound was held against: `88 % [82, 92], n = 200`, or `-3.0 points [-6.1, +0.2], n = 200`."""
    if line.estimate is None:
        return line.note or "not measured"
    estimate, is_change = line.estimate, line.bound.startswith("change")
    numbers = points(estimate) if is_change else percent(estimate)
    return f"{numbers}, n = {estimate.n}"


def _suite(gated: Gated) -> ElementTree.Element:
    answers = [line.answer for line in gated.lines]
    suite = ElementTree.Element(
        "testsuite",
        name=_text(gated.model),
        tests=str(len(answers)),
        failures=str(answers.count(Answer.FAIL)),
        errors=str(answers.count(Answer.UNDECIDED)),
        skipped=str(answers.count(None)),
    )
    for line in gated.lines:
        case = ElementTree.SubElement(
            suite, "testcase", classname=_text(gated.model), name=_text(f"{line.metric} {line.bound}")
        )
        if line.answer is not Answer.PASS:
            tag = {Answer.FAIL: "failure", Answer.UNDECIDED: "error", None: "skipped"}[line.answer]
            ElementTree.SubElement(case, tag, message=_text(measured(line) + _more(line)))
    return suite


def _more(line: Line) -> str:
    if line.answer is not Answer.UNDECIDED:
        return ""
    shows = "" if line.shows is None else f"these show a change of {100 * line.shows:.1f} points or more; "
    if line.needed is None:
        return f" ({shows}no number of prompts that could be asked would decide it)"
    return f" ({shows}about {line.needed} prompts would decide it)"


def percent(estimate: Estimate) -> str:
    """`88.0 % [82.1, 92.4]`."""
    return f"{100 * estimate.value:.1f} % [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def points(estimate: Estimate) -> str:
    """`-3.0 points [-6.1, +0.2]`."""
    return f"{100 * estimate.value:+.1f} points [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"


def _text(text: str) -> str:
    """Without what XML cannot hold: names of models are not ours."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _cell(text: str) -> str:
    return _text(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    return _text(text).replace("`", "'").replace("|", "\\|")
