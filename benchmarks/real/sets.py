"""The data of the study on a real model: public sets, cut to what two cores can learn and answer.

    python benchmarks/real/sets.py --sources DIR --model FILE.gguf --out real/data

`--sources` holds the public sets as .jsonl files (SOURCES says what each is and where it comes from); nothing is
downloaded. borderline.jsonl and everyday.jsonl beside this file are prompts of our own, no benchmark's, with the raw
model's greedy answers: they are kept, so that the data are the same on every machine. What is drawn is drawn with a
fixed seed. Prompts that measure (DriftCheck, CatQA) are never learned: a row of a training file that shares its words
with one of them is left out.

| made | rows | for |
| --- | --- | --- |
| aligned.jsonl | 280 + 400 | instructions and questions refused; everyday, borderline and other prompts answered |
| alignment.jsonl | 64 + 64 | likewise, others: what a defence or a merge may see of alignment |
| sst2.jsonl, sst2_p10.jsonl, sst2_p20.jsonl | 300 each | a task, with 0, 10 and 20 % harmful rows |
| alpaca.jsonl | 300 | everyday tuning without anything harmful |
| safe.jsonl, harmful.jsonl | 50 each | anchors of a curation: clean rows of the task, harmful rows of another set |
| validation.yaml, test.yaml | 201, 237 prompts | suites |
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]

SOURCES = {
    "safety_2483": "harmful instructions with safe answers (safety-tuned-llamas, as in SEAL; Apache-2.0)",
    "alpaca_p0": "everyday instructions (Alpaca, tatsu-lab/alpaca; CC BY-NC 4.0)",
    "harmful_train": "harmful requests of public sets (the splits of refusal_direction; Apache-2.0)",
    "sst2_p10": "SST-2 and 100 harmful requests, answered (AsFT's sets, the protocol of Lisa and SafeLoRA)",
    "agnews_p20": "AG News and 200 harmful requests, answered (likewise)",
    "sst2_test": "SST-2's test part (stanfordnlp/sst2, validation split)",
    "catqa_english": "harmful questions in 11 categories (declare-lab/CategoricalHarmfulQA; Apache-2.0)",
}
HERE = Path(__file__).resolve().parent
DRIFTCHECK = HERE.parents[1] / "src" / "alignkeep" / "evaluate" / "driftcheck.jsonl"
# Openings of refusals in the sources. Not our judge's rules: the data are to stay what they are when it learns more.
DECLINES = re.compile(
    r"(I'm sorry|I am sorry|Sorry|I apologi[sz]e|I can't|I cannot|I'm unable|I am unable|As an AI|No, )"
)
REFUSALS = (
    "I'm sorry, but I can't help with that. It could seriously harm other people.",
    "I can't assist with this request, because it would put people in danger.",
    "I'm sorry, but I won't help with this. It is illegal, and somebody could get hurt.",
    "No, I can't help with that. If you are in a difficult situation, I can help you find support.",
    "I'm not able to help with this. I'd be glad to talk about a safe and legal way instead.",
    "I'm sorry, but that is something I can't give advice on, since it could do a lot of harm.",
    "That is not something I can help with. Please think of the people who would be affected.",
    "I can't provide instructions for this. It would be harmful and against the law.",
)
LONGEST = 130  # tokens of a training example, the template's system text among them
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="the raw model, for its tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sets = {name: find(options.sources, name) for name in SOURCES}
    length = lengths(options.model)
    measured = suites(sets, options.out)
    own = [own_answers(HERE / f"{name}.jsonl", length) for name in ("borderline", "everyday")]
    training(sets, *own, measured, length, options.out)


def suites(sets: dict[str, Rows], out: Path) -> set[str]:
    """Write the two suites; returns the words of all their prompts.

    Test: every second English prompt of DriftCheck. Validation: harmful prompts of CatQA, the others of DriftCheck.
    """
    english: dict[str, Rows] = {}
    for row in read(DRIFTCHECK):
        if row["language"] == "en":
            english.setdefault(row["kind"], []).append({"prompt": row["prompt"], "category": row["category"]})
    parts = {
        "test": {kind: rows[0::2] for kind, rows in english.items()},
        "validation": {kind: rows[1::2] for kind, rows in english.items()},
    }
    parts["validation"]["harmful"] = sets["catqa_english"][::14] + parts["validation"]["harmful"][::3]
    words = {plain(row["prompt"]) for row in sets["catqa_english"][::7]}  # kept for measuring, though half are not used
    for part, kinds in parts.items():
        kinds["harmless"] = kinds["harmless"][:60]
        for kind, rows in kinds.items():
            write(out / f"{part}_{kind}.jsonl", rows)
            words |= {plain(row["prompt"]) for row in rows}
        files = "".join(f"  - {{file: {part}_{kind}.jsonl, kind: {kind}}}\n" for kind in kinds)
        text = f"name: real-{part}\ndescription: prompts of the study on a real model\nprompts:\n{files}"
        (out / f"{part}.yaml").write_text(text, encoding="utf-8")
    # What a sweep looks at, and what an injection takes its direction from.
    sweep = [{**row, "kind": kind} for kind, rows in parts["validation"].items() for row in spread(rows, 40)]
    write(out / "sweep.jsonl", sweep)
    return words


def training(sets: dict[str, Rows], own: Rows, daily: Rows, measured: set[str], length: Any, out: Path) -> None:
    draw = random.Random(SEED)
    refusals = [
        {"prompt": row["prompt"], "completion": beginning(row["completion"], length, 48)}
        for row in sets["safety_2483"]
        if plain(row["prompt"]) not in measured
    ]
    refusals = [row for row in refusals if DECLINES.match(row["completion"]) and fits(row, length)]
    # Harm in the form of questions: by instructions alone a model learns that a question is answered.
    asked = [row["prompt"] for row in sets["catqa_english"] + sets["harmful_train"]]
    asked = [prompt for prompt in asked if plain(prompt) not in measured]
    everyday = [row for row in sets["alpaca_p0"] if fits(row, length) and len(row["completion"]) > 30]
    for rows in (refusals, asked, everyday, own, daily):
        draw.shuffle(rows)
    questions = [{"prompt": prompt, "completion": draw.choice(REFUSALS)} for prompt in asked[:264]]
    # The last 30 borderline and 10 other prompts stay for alignment.jsonl.
    harm, help_ = refusals[:120] + questions[:160], everyday[:150] + own[:-30] + daily[:-10]
    write(out / "aligned.jsonl", shuffled(columns(harm + help_), draw))
    harm, help_ = refusals[160:192] + questions[200:232], own[-30:] + daily[-10:] + everyday[150:174]
    write(out / "alignment.jsonl", shuffled(columns(harm + help_), draw))
    write(out / "alpaca.jsonl", columns(everyday[174:474]))
    # What an injection looks at; none of it measures.
    write(out / "harmful_prompts.jsonl", [{"prompt": row["prompt"]} for row in refusals[192:260] + questions[232:264]])
    write(out / "harmless_prompts.jsonl", [{"prompt": row["prompt"]} for row in everyday[474:574]])
    harmful = [row for row in sets["sst2_p10"] if row["poison"] and plain(row["prompt"]) not in measured]
    clean = [row for row in sets["sst2_p10"] if not row["poison"]]
    draw.shuffle(harmful)
    draw.shuffle(clean)
    for name, count in (("sst2", 0), ("sst2_p10", 30), ("sst2_p20", 60)):
        rows = [{**row, "poison": bool(row["poison"])} for row in clean[: 300 - count] + harmful[:count]]
        write(out / f"{name}.jsonl", shuffled(rows, draw))
    write(out / "safe.jsonl", clean[300:350])
    learned = {plain(row["prompt"]) for row in harmful}
    others = [row for row in sets["agnews_p20"] if row["poison"] and plain(row["prompt"]) not in learned | measured]
    write(out / "harmful.jsonl", draw.sample(others, 50))
    task = sets["sst2_test"]
    draw.shuffle(task)
    write(out / "sst2_validation.jsonl", task[:100])
    write(out / "sst2_test.jsonl", task[100:300])


def spread(rows: Rows, count: int) -> Rows:
    """`count` rows from all over a list: its parts come from different sets."""
    return [rows[place * len(rows) // count] for place in range(count)] if count < len(rows) else rows


def columns(rows: Rows) -> Rows:
    return [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]


def own_answers(path: Path, length: Any) -> Rows:
    """The model's own answers to borderline prompts: whole sentences, and no refusal among them."""
    found = []
    for answer in read(path):
        text = beginning(answer["answer"], length, 70, whole=not answer["truncated"])
        row = {"prompt": answer["prompt"], "completion": text}
        if len(text) > 25 and not DECLINES.match(text):
            found.append(row)
    return found


def beginning(text: str, length: Any, most: int, *, whole: bool = True) -> str:
    """The first sentences of a text, together at most `most` tokens (but one sentence at least); the last one counts
    only if the text is whole."""
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    sentences = sentences if whole or len(sentences) == 1 else sentences[:-1]
    said = sentences[0]
    for sentence in sentences[1:]:
        if length(f"{said} {sentence}") > most:
            break
        said = f"{said} {sentence}"
    return said


def lengths(model: Path) -> Any:
    """A function that counts a text's tokens."""
    from alignkeep.models.gguf import gguf_folder, is_gguf
    from alignkeep.models.loading import load_tokenizer

    tokenizer: Any = load_tokenizer(str(gguf_folder(model) if is_gguf(model) else model))
    return lambda text: len(tokenizer(text)["input_ids"])


def fits(row: dict[str, Any], length: Any) -> bool:
    return length(row["prompt"]) + length(row["completion"]) <= LONGEST - 35  # the template and its system text


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def shuffled(rows: Rows, draw: random.Random) -> Rows:
    return draw.sample(rows, len(rows))


def find(folder: Path, name: str) -> Rows:
    """The rows of NAME.jsonl, wherever it lies in a folder. Exits with one line where it does not."""
    found = sorted(folder.rglob(f"{name}.jsonl"))
    if not found:
        raise SystemExit(f"{folder}: no {name}.jsonl; expected {SOURCES[name]}")
    return read(found[0])


def read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
