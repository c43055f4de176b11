"""Hostile input, generated: families of what a user, or somebody who sends him files, can hand to a command.

Each family has the cases that once went wrong, by name, and a generator of more: its seed is the case's name.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import shutil
import signal
import socket
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile_settings
from hostile_contract import Case, Order

Build = Callable[[random.Random, Path, Path], Order]
ANY = (0, 1, 2)
LONG = {
    *("template-loops", "template-loops-later", "template-power", "template-doubles", "template-recursion"),
    *("template-syntax", "yaml-long", "config-generation-temperature", "config-tokenizer-class"),
    *("path-out-is-a-loop", "path-out-is-a-device", "path-out-below-a-device", "adapter-alora"),
    *("adapter-targets-none-there", "adapter-targets-slow-pattern"),
}
GENERATION = "generation_config.json"
STRANGE = [
    "", "\0", "\x1b[31mred\x1b[0m", "\u202egnp", "\ud800", "x" * 100_000, "a\nb", "𝔘" * 50, "%s%n{0}{x}", "../../etc",
    "~nobody/x", "/dev/zero", "-1", "nan", "null", "<script>",
]  # fmt: skip
NUMBERS = [
    0, -1, 1e308, -1e308, float("nan"), float("inf"), 10**30, -(10**30), 1e-320, 0.5, True, None, "3", [], {},
    2**31, 2**63, 2**64, 127, 3, 1_000_000,
]  # fmt: skip


def families() -> dict[str, tuple[dict[str, Build], Build]]:
    """By name: the cases that have names, and the generator of the others."""
    return {
        "yaml": (YAML, any_yaml),
        "json": (ROWS, any_rows),
        "csv": (CSV, any_csv),
        "parquet": (PARQUET, any_parquet),
        "safetensors": (HEADERS, any_header),
        "config": (CONFIGS, any_config),
        "adapter": (ADAPTERS, any_adapter),
        "template": (TEMPLATES, any_template),
        "settings": (hostile_settings.NAMED, hostile_settings.any_setting),
        "path": (PATHS, any_path),
        "surroundings": (SURROUNDINGS, any_surroundings),
        "kill": ({}, any_kill),
    }


def cases(each: int) -> Iterator[Case]:
    """The named cases of every family, and generated ones up to `each`; few without those that take seconds."""
    for family, (named, generated) in families().items():
        for name, build in named.items():
            if each < 100 and f"{family}-{name}" in LONG:
                continue
            yield Case(f"{family}-{name}", family, build)
        for number in range(each - len(named)):
            yield Case(f"{family}-{number}", family, generated)


# YAML: a recipe, a --config, a suite, a mergekit file, a value of --set


def _yaml(text: str | bytes, said: str = "", codes: tuple[int, ...] = (1,)) -> Build:
    def build(draw: random.Random, folder: Path, assets: Path) -> Order:
        file = folder / "file.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        return Order([*_reader(draw, file, folder, assets), "--quiet"], codes, said=said)

    return build


def _reader(draw: random.Random, file: Path, folder: Path, assets: Path) -> list[str]:
    model, out = str(assets / "model"), ["--out", str(folder / "out")]
    return draw.choice(
        [
            ["cite", str(file)],
            ["run", str(file), *out, "--dry-run"],
            ["cite", str(assets / "recipe.yaml"), "--config", str(file)],
            ["testbed", "--config", str(file), *out],
            ["train", "--model", model, "--data", str(assets / "data.jsonl"), "--config", str(file), *out],
            ["judge", str(assets / "answers.jsonl"), "--config", str(file), *out],
            ["merge", "--mergekit", str(file), *out],
            ["evaluate", model, "--suite", str(file), "--attacks", "none", *out],
        ]
    )


def _bomb(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


YAML: dict[str, Build] = {
    "bomb": _yaml(_bomb(12, 9), "aliases written out"),
    "bomb-of-mappings": _yaml("a: &a {x: 1}\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} {{" + ", ".join(f"k{j}: *{chr(97 + i)}" for j in range(9)) + "}\n"
        for i in range(9)), "aliases written out"),
    "bomb-under-trainer": _yaml("trainer:\n" + "\n".join(f"  {line}" for line in _bomb(9, 12).split("\n"))),
    "within-itself": _yaml("a: &a [*a]\n", "an alias of what it stands in"),
    "mapping-within-itself": _yaml("a: &a {b: *a}\n"),
    "deep": _yaml("a: " + "[" * 100_000, "more than 40 levels"),
    "long": _yaml("a: [" + "1," * 400_000 + "]"),
    "megabytes": _yaml("a: " + "x" * 3_000_000),
    "digits": _yaml("seed: " + "9" * 5000, "a number of 5000 characters"),
    "hexadecimal": _yaml("seed: 0x" + "f" * 5000, "a number of 5002 characters"),
    "sexagesimal": _yaml("seed: " + ":".join(["1"] * 3000)),
    "tag": _yaml("a: !!python/object/apply:os.system [id]\n"),
    "binary": _yaml("a: !!binary aGFsbG8=\n"),
    "a-date-that-is-none": _yaml("name: 2024-13-45\n"),
    "not-utf-8": _yaml(b"a: \xff\xfe\n"),
    "utf-16": _yaml("a: b\n".encode("utf-16")),
    "nul": _yaml('name: "a\\0b"\n'),
    "half-a-character": _yaml('name: "\\ud800"\n'),
    "escape-in-a-key": _yaml('"\\e[31mred": 1\n'),
    "key-of-a-megabyte": _yaml("? " + "k" * 900_000 + "\n: 1\n"),
    "two-documents": _yaml("a: 1\n---\nb: 2\n"),
    "empty": _yaml(""),
    "list": _yaml("- 1\n"),
    "numbers-as-keys": _yaml("prompts: [{1: 2}]\nname: x\n"),
}  # fmt: skip


def any_yaml(draw: random.Random, folder: Path, assets: Path) -> Order:
    """A good file with a few lines broken, or nonsense."""
    text = (assets / draw.choice(["recipe.yaml", "suite.yaml", "merge.yaml"])).read_text()
    lines = text.split("\n")
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(lines))
        signs = ["*a", "&a", "[", "{", "!!set {a}", "<<: 1", "\t", ": :", "- -"]
        value = draw.choice([*STRANGE, *map(str, NUMBERS), *signs])
        lines[at] = draw.choice([lines[at].split(":")[0] + ": " + value, value, lines[at] + value, "  " + lines[at]])
    return _yaml("\n".join(lines), codes=ANY)(draw, folder, assets)


# Rows: JSON lines, JSON


def _rows(data: str | bytes, ending: str = ".jsonl", said: str = "", codes: tuple[int, ...] = (1,)) -> Build:
    def build(draw: random.Random, folder: Path, assets: Path) -> Order:
        file = folder / f"rows{ending}"
        file.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
        return Order([*_data_reader(draw, file, folder, assets), "--quiet"], codes, said=said)

    return build


def _data_reader(draw: random.Random, file: Path, folder: Path, assets: Path) -> list[str]:
    model, data, out = str(assets / "model"), str(assets / "data.jsonl"), ["--out", str(folder / "out")]
    small = ["--attacks", "none", "--max-new-tokens", "2"]
    return draw.choice(
        [
            ["judge", str(file), *out],
            ["judge", str(file), *out, "--dry-run"],
            ["train", "--model", model, "--data", str(file), *out, "--dry-run"],
            ["train", "--model", model, "--data", data, "--weights", str(file), *out, "--dry-run"],
            ["evaluate", model, "--suite", str(assets / "suite.yaml"), "--task", str(file), *small, *out],
            ["inject", model, "--harmful", str(file), "--harmless", str(assets / "harmless.jsonl"), *out, "--dry-run"],
            ["curate", "--model", model, "--data", str(file), "--safe", data, "--harmful", data, *out, "--dry-run"],
        ]
    )


ROWS: dict[str, Build] = {
    "digits": _rows('{"prompt": "a", "completion": "b", "weight": ' + "9" * 5000 + "}\n", said="rows.jsonl:1"),
    "deep": _rows('{"prompt": ' + "[" * 100_000, said="deep"),
    "not-utf-8": _rows(b'{"prompt": "\xff"}\n', said="not UTF-8"),
    "half-a-character": _rows('{"prompt": "\\ud800", "completion": "b", "answer": "\\udfff", "expected": "x"}\n'),
    "half-a-character-in-a-key": _rows('{"\\ud800": 1}\n'),
    "a-key-twice": _rows('{"prompt": "a", "prompt": "b"}\n', said="twice"),
    "escape-in-a-key": _rows('{"\\u001b[31mred": 1}\n'),
    "key-of-a-megabyte": _rows('{"' + "k" * 1_000_000 + '": 1}\n'),
    "many-keys": _rows("{" + ", ".join(f'"{i}": 1' for i in range(100_000)) + "}\n"),
    "list": _rows("[1, 2]\n"),
    "nan": _rows('{"prompt": NaN, "completion": Infinity}\n'),
    "empty": _rows(""),
    "nuls": _rows("\0" * 10_000),
    "json-deep": _rows("[" * 200_000, ".json"),
    "json-number": _rows("9" * 5000, ".json"),
    "json-object": _rows("{}", ".json"),
    "gzip-torn": _rows(gzip.compress(b'{"prompt": "a"}\n' * 1000)[:-20], ".jsonl.gz"),
    "gzip-none": _rows(b"hello", ".jsonl.gz"),
}


def any_rows(draw: random.Random, folder: Path, assets: Path) -> Order:
    """Rows of the right columns with values of every kind, and some bytes overwritten."""
    columns = [
        "prompt",
        "completion",
        "answer",
        "messages",
        "system",
        "kind",
        "expected",
        "weight",
        "index",
        "language",
    ]
    values = [*STRANGE, *NUMBERS, "a question", [{"role": "user", "content": "a"}], [{"role": "x"}], {"a": {"b": [1]}}]
    lines = []
    for _ in range(draw.randint(1, 6)):
        row = {name: draw.choice(values) for name in draw.sample(columns, draw.randint(1, 5))}
        lines.append(json.dumps(row))
    data = bytearray("\n".join(lines).encode("utf-8", "surrogatepass"))
    for _ in range(draw.choice([0, 0, 1, 3])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return _rows(bytes(data), draw.choice([".jsonl", ".jsonl", ".json"]), codes=ANY)(draw, folder, assets)


# CSV


CSV: dict[str, Build] = {
    "a-column-twice": _rows("prompt,prompt,completion\na,b,c\n", ".csv", "twice"),
    "cells-too-many": _rows("prompt,completion\na,b,c\n", ".csv"),
    "quote-left-open": _rows('prompt,completion\n"a,b\n', ".csv"),
    "nuls": _rows("prompt,completion\n\0,\0\n", ".csv"),
    "cell-of-megabytes": _rows("prompt,x\n" + "y" * 3_000_000 + ",z\n", ".csv", codes=ANY),
    "column-of-control": _rows("\x1b[2J,b\n1,2\n", ".csv"),
    "header-alone": _rows("prompt,completion\n", ".csv"),
    "not-utf-8": _rows(b"prompt,completion\n\xe9,b\n", ".csv"),
}


def any_csv(draw: random.Random, folder: Path, assets: Path) -> Order:
    """A table of strange cells, some lines torn."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=draw.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]))
    writer.writerow(draw.choices(["prompt", "completion", "answer", "expected", "weight", "index", "\x07"], k=3))
    for _ in range(draw.randint(0, 5)):
        writer.writerow([draw.choice([*STRANGE, *NUMBERS]) for _ in range(draw.choice([3, 3, 3, 2, 4]))])
    torn = text.getvalue()[: draw.choice([None, None, draw.randint(1, 200)])]
    return _rows(torn, ".csv", codes=ANY)(draw, folder, assets)


# Parquet


def _parquet(table: Callable[[], Any], said: str = "", codes: tuple[int, ...] = (1,)) -> Build:
    def build(draw: random.Random, folder: Path, assets: Path) -> Order:
        import pyarrow.parquet

        buffer = io.BytesIO()
        pyarrow.parquet.write_table(table(), buffer)
        return _rows(buffer.getvalue(), ".parquet", said, codes)(draw, folder, assets)

    return build


def _bad_text() -> Any:
    import pyarrow as pa

    offsets = pa.py_buffer((0).to_bytes(4, "little") + (2).to_bytes(4, "little"))
    broken = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])
    return pa.table({"prompt": broken, "completion": broken, "answer": broken, "index": broken, "weight": broken})


def _impossible_date(kind: str) -> Any:
    import pyarrow as pa

    days = pa.array([2**31 - 1], pa.int32()).cast(pa.date32()) if kind == "date" else None
    far = days if days is not None else pa.array([2**62], pa.int64()).cast(pa.timestamp("us"))
    return pa.table({"prompt": ["a"], "completion": ["b"], "answer": ["c"], "index": far, "weight": [1.0]})


PARQUET: dict[str, Build] = {
    "bad-utf-8": _parquet(_bad_text, "unreadable parquet"),
    "impossible-date": _parquet(lambda: _impossible_date("date"), "unreadable parquet"),
    "impossible-time": _parquet(lambda: _impossible_date("time"), "unreadable parquet"),
    "none": _rows(b"PAR1hello", ".parquet"),
    "empty": _rows(b"", ".parquet"),
}


def any_parquet(draw: random.Random, folder: Path, assets: Path) -> Order:
    """A good table with bytes overwritten, or cut off."""
    data = bytearray((assets / "rows.parquet").read_bytes())
    for _ in range(draw.randint(1, 8)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return _rows(bytes(data[: draw.choice([len(data), draw.randrange(len(data))])]), ".parquet", codes=ANY)(
        draw, folder, assets
    )


# Model folders: headers, configs, adapters, templates


def _model(change: Callable[[random.Random, Path], None], said: str = "", codes: tuple[int, ...] = (1,)) -> Build:
    def build(draw: random.Random, folder: Path, assets: Path) -> Order:
        shutil.copytree(assets / "model", folder / "model")
        change(draw, folder / "model")
        return Order([*_model_reader(draw, folder / "model", folder, assets), "--quiet"], codes, said=said)

    return build


def _model_reader(draw: random.Random, model: Path, folder: Path, assets: Path) -> list[str]:
    out = ["--out", str(folder / "out")]
    small = ["--suite", str(assets / "suite.yaml"), "--attacks", "none", "--max-new-tokens", "2"]
    sets = ["--harmful", str(assets / "harmful.jsonl"), "--harmless", str(assets / "harmless.jsonl")]
    return draw.choice(
        [
            ["evaluate", str(model), *small, *out],
            ["evaluate", str(assets / "model"), "--base", str(model), *small, *out],
            ["merge", str(assets / "model"), str(model), *out],
            ["inject", str(model), *sets, *out, "--layer", "1", "--strength", "raw:0.1"],
            [
                "train",
                "--model",
                str(model),
                "--data",
                str(assets / "data.jsonl"),
                *out,
                "--set",
                "trainer.max_steps=1",
            ],
        ]
    )


def _header(header: object, data: bytes = b"", length: int | None = None) -> Callable[[random.Random, Path], None]:
    def change(draw: random.Random, model: Path) -> None:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        size = len(text) if length is None else length
        (model / "model.safetensors").write_bytes(size.to_bytes(8, "little") + text + data)

    return change


def _entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}


HEADERS: dict[str, Build] = {
    "a-list": _model(_header([1, 2])),
    "a-number": _model(_header(3)),
    "deep": _model(_header(b"[" * 100_000)),
    "digits": _model(_header(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}')),
    "a-million-tensors": _model(_header(
        b'{"a":1' + b"".join(b',"%d":{"dtype":"F32","shape":[],"data_offsets":[0,0]}' % i for i in range(1_000_000))
        + b"}"), said="a header of 1000000 tensors"),
    "a-name-many-times": _model(_header(b'{"b":1' + b',"a":1,"c":1' * 100_000 + b"}")),
    "longer-than-the-file": _model(_header({}, length=2**63)),
    "negative": _model(_header({"a": _entry(shape=[-1])}, b"1234")),
    "true-as-a-length": _model(_header({"a": _entry(shape=[True])}, b"1234")),
    "overlap": _model(_header({"a": _entry(), "b": _entry()}, b"1234")),
    "escape-in-a-name": _model(_header({"\x1b[31m": _entry(dtype="F64")}, b"1234")),
    "metadata-no-object": _model(_header({"__metadata__": 3, "a": _entry()}, b"1234")),
    "metadata-not-text": _model(_header({"__metadata__": {"format": 3}, "a": _entry()}, b"1234")),
    "dtype-unknown": _model(_header({"a": _entry(dtype="X9")}, b"1234")),
}  # fmt: skip


def any_header(draw: random.Random, folder: Path, assets: Path) -> Order:
    """The good file with its header's values exchanged, or bytes overwritten in the first part."""

    def change(_: random.Random, model: Path) -> None:
        file = model / "model.safetensors"
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        if draw.random() < 0.6:
            name = draw.choice([one for one in header if one != "__metadata__"])
            spec = header[name]
            key = draw.choice(["dtype", "shape", "data_offsets", "name"])
            values = {
                "dtype": ["F16", "I64", 3, None, "F4"], "shape": [[], [0], [2**62, 4], ["3"], 3, [1.5], [10**30]],
                "data_offsets": [[0, 0], [4], [0, 2**70], "x", [4, 0], [0.0, 4.0]], "name": [],
            }[key]  # fmt: skip
            if key == "name":
                header[draw.choice(STRANGE)] = header.pop(name)
            else:
                header[name] = {**spec, key: draw.choice(values)}
            text = json.dumps(header).encode()
            file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        else:
            torn = bytearray(data)
            for _ in range(draw.randint(1, 5)):
                torn[draw.randrange(length + 8)] = draw.randrange(256)
            file.write_bytes(torn[: draw.choice([len(torn), draw.randrange(len(torn))])])

    return _model(change, codes=ANY)(draw, folder, assets)


def _json_file(name: str, changes: dict[str, object], *, alone: bool = False) -> Callable[[random.Random, Path], None]:
    def change(draw: random.Random, model: Path) -> None:
        path = model / name
        held = {} if alone or not path.exists() else json.loads(path.read_text())
        path.write_text(json.dumps({**held, **changes}))

    return change


def _text_file(name: str, text: str) -> Callable[[random.Random, Path], None]:
    def change(draw: random.Random, model: Path) -> None:
        (model / name).write_text(text)

    return change


def _config(alone: bool = False, codes: tuple[int, ...] = (1,), **changes: object) -> Build:
    return _model(_json_file("config.json", changes, alone=alone), codes=codes)


CONFIGS: dict[str, Build] = {
    "a-type-alone": _config(alone=True, model_type="llama"),
    "a-large-type-alone": _config(alone=True, model_type="deepseek_v3"),
    "width-127": _config(hidden_size=127),
    "width-huge": _config(hidden_size=2**40),
    "width-negative": _config(hidden_size=-32),
    "width-text": _config(hidden_size="32"),
    "layers-huge": _config(num_hidden_layers=10**9),
    "heads-0": _config(num_attention_heads=0, codes=ANY),
    "padding-beyond": _config(pad_token_id=1_000_000, codes=ANY),
    "activation-3": _config(hidden_act=3, codes=ANY),
    "activation-unknown": _config(hidden_act="\x1b[31mred", codes=ANY),
    "rope-3": _config(rope_parameters=3, codes=ANY),
    "rope-list": _config(rope_parameters=[1], codes=ANY),
    "type-unknown": _config(model_type="nonsense", architectures=["Nonsense"], codes=ANY),
    "type-3": _config(model_type=3, codes=ANY),
    "vocabulary-huge": _config(vocab_size=10**12),
    "dtype-unknown": _config(dtype="float3", codes=ANY),
    "code-of-its-own": _config(auto_map={"AutoConfig": "evil.Config"}, model_type="evil", codes=ANY),
    "a-list": _model(_text_file("config.json", "[]"), codes=ANY),
    "a-pipe": _model(lambda draw, model: os.mkfifo(model / "tokenizer.model"), "a named pipe", codes=(1,)),
    "generation-types": _model(_json_file(GENERATION, {"max_length": "x", "eos_token_id": {"a": 1}}), codes=ANY),
    "generation-temperature": _model(_json_file(GENERATION, {"temperature": -3, "top_k": "x"}), codes=ANY),
    "generation-list": _model(_text_file(GENERATION, "[3]"), codes=ANY),
    "tokenizer-deep": _model(_text_file("tokenizer.json", "[" * 100_000), codes=ANY),
    "tokenizer-class": _model(_json_file("tokenizer_config.json", {"tokenizer_class": "os.system"}), codes=ANY),
}  # fmt: skip


def any_config(draw: random.Random, folder: Path, assets: Path) -> Order:
    """One or two values of a model's JSON files exchanged."""
    name = draw.choice(["config.json", "config.json", "config.json", "generation_config.json", "tokenizer_config.json"])
    held = json.loads((assets / "model" / name).read_text())
    keys = draw.sample(sorted(held), min(len(held), draw.randint(1, 2)))
    if "model_type" in keys and draw.random() < 0.7:
        keys.remove("model_type")
    changes = {key: draw.choice([*NUMBERS, *STRANGE]) for key in keys}
    return _model(_json_file(name, changes), codes=ANY)(draw, folder, assets)


def _adapter(change: Callable[[random.Random, Path], None], said: str = "", codes: tuple[int, ...] = (1,)) -> Build:
    def build(draw: random.Random, folder: Path, assets: Path) -> Order:
        shutil.copytree(assets / "adapter", folder / "adapter")
        change(draw, folder / "adapter")
        out = ["--out", str(folder / "out")]
        small = ["--suite", str(assets / "suite.yaml"), "--attacks", "none", "--max-new-tokens", "2"]
        arguments = draw.choice(
            [
                ["evaluate", str(folder / "adapter"), *small, *out],
                ["merge", str(assets / "model"), str(folder / "adapter"), *out],
                ["merge", str(assets / "model"), str(folder / "adapter"), "--as", "adapter", *out],
            ]
        )
        return Order([*arguments, "--quiet"], codes, said=said)

    return build


def _lora(codes: tuple[int, ...] = (1,), **changes: object) -> Build:
    return _adapter(_json_file("adapter_config.json", changes), codes=codes)


ADAPTERS: dict[str, Build] = {
    "alpha-huge": _lora(lora_alpha=1e308),
    "alpha-nan": _lora(lora_alpha=float("nan")),
    "alpha-text": _lora(lora_alpha="x"),
    "rank-0": _lora(r=0),
    "rank-huge": _lora(r=10**9),
    "rank-other": _lora(r=3),
    "type-unknown": _lora(peft_type="NONSENSE"),
    "alora": _lora(alora_invocation_tokens=[1, 2], codes=ANY),
    "targets-3": _lora(target_modules=3),
    "targets-none-there": _lora(target_modules=["nonsense"]),
    "targets-slow-pattern": _lora(target_modules="(" * 5000),
    "base-empty": _lora(base_model_name_or_path="", codes=ANY),
    "base-nowhere": _lora(base_model_name_or_path="~nobody/model", codes=ANY),
    "base-nul": _lora(base_model_name_or_path="a\0b", codes=ANY),
    "base-itself": _lora(base_model_name_or_path=".", codes=ANY),
    "a-list": _adapter(_text_file("adapter_config.json", "[]")),
    "unknown-key": _lora(nonsense={"a": 1}, codes=ANY),
}


def any_adapter(draw: random.Random, folder: Path, assets: Path) -> Order:
    """One or two values of an adapter's config exchanged."""
    held = json.loads((assets / "adapter" / "adapter_config.json").read_text())
    keys = draw.sample(sorted(held), draw.randint(1, 2))
    changes = {key: draw.choice([*NUMBERS, *STRANGE, ["q_proj"], {"q_proj": 3}]) for key in keys}
    return _adapter(_json_file("adapter_config.json", changes), codes=ANY)(draw, folder, assets)


def _template(text: str, said: str = "chat", codes: tuple[int, ...] = (1,)) -> Build:
    def build(draw: random.Random, folder: Path, assets: Path) -> Order:
        shutil.copytree(assets / "model", folder / "model")
        (folder / "model" / "chat_template.jinja").write_text(text)
        out = ["--out", str(folder / "out"), "--quiet"]
        small = ["--suite", str(assets / "suite.yaml"), "--attacks", "none", "--max-new-tokens", "2"]
        verb = draw.choice(
            [
                ["evaluate", str(folder / "model"), *small],
                ["train", "--model", str(folder / "model"), "--data", str(assets / "data.jsonl"), "--dry-run"],
            ]
        )
        return Order([*verb, *out], codes, said=said)

    return build


_LOOP = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
TEMPLATES: dict[str, Build] = {
    "loops": _template(_LOOP, "seconds"),
    "loops-later": _template("{% if messages|length > 2 %}" + _LOOP + "{% endif %}x", "seconds"),
    "gigabytes": _template("{{ 'x' * 10**10 }}", "memory"),
    "much": _template("{{ 'x' * 3000000 }}", "characters"),
    "doubles": _template(
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        "memory"),
    "power": _template("{{ 9 ** (9 ** 9) }}", "seconds"),
    "divides-by-zero": _template("{{ 1 // 0 }}", "division"),
    "range-too-long": _template("{% for a in range(10**9) %}{% endfor %}", "ange"),
    "recursion": _template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    "syntax": _template("{% for %}"),
    "attribute": _template("{{ messages.__class__.__mro__[1].__subclasses__() }}"),
    "raises": _template("{{ raise_exception('\x1b[31mred' * 10000) }}", "x1b"),
    "says-nothing": _template("{# #}", codes=ANY, said=""),
}  # fmt: skip


def any_template(draw: random.Random, folder: Path, assets: Path) -> Order:
    """Pieces of templates at random."""
    pieces = [
        "{% for m in messages %}", "{% endfor %}", "{{ m['content'] }}", "{{ messages[0]['role'] }}", "{% if x %}",
        "{% endif %}", "{{ 'a' * n }}", "{{ messages[9] }}", "{{ range(99) | list }}", "{{ 1 / 0 }}", "{{ bos_token }}",
        "{{ messages | tojson }}", "{{ strftime_now('%Y') }}", "{% generation %}", "{{ ''.join(messages) }}", "\x1b",
        "{{ [] | first }}", "{{ messages | sum }}", "{{ none.x }}", "{% set x = 10 ** 5000 %}{{ x }}", "{{ x | int }}",
        "{% break %}", "{{ cycler() }}", "{{ lipsum(n=100) }}", "{{ '%d' | format('x') }}", "text",
    ]  # fmt: skip
    return _template("".join(draw.choices(pieces, k=draw.randint(1, 7))), "", ANY)(draw, folder, assets)


# Paths


def _path(make: Callable[[Path], str | None], said: str = "", codes: tuple[int, ...] = (1,)) -> Build:
    def build(draw: random.Random, folder: Path, assets: Path) -> Order:
        named = make(folder)
        path = str(folder / "special") if named is None else named
        out = ["--out", str(folder / "out"), "--quiet"]
        quoted = json.dumps(path)
        arguments = draw.choice(
            [
                ["judge", "--set", f"answers={quoted}", *out],
                ["cite", str(assets / "recipe.yaml"), "--set", f"train.data={quoted}", "--dry-run", "--quiet"],
                ["merge", str(assets / "model"), "--set", f"tuned=[{quoted}]", *out],
                ["evaluate", str(assets / "model"), "--set", f"suite={quoted}", *out],
                ["evaluate", "--set", f"model={quoted}", *out],
                ["train", "--model", str(assets / "model"), "--set", f"data={quoted}", *out],
            ]
        )
        return Order(arguments, codes, said=said)

    return build


def _socket(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("special")
    finally:
        os.chdir(here)


def _named_pipe(ending: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        os.mkfifo(folder / f"special{ending}")
        return str(folder / f"special{ending}")

    return make


def _argument(*arguments: str, codes: tuple[int, ...] = (1,), said: str = "") -> Build:
    def build(draw: random.Random, folder: Path, assets: Path) -> Order:
        os.mkfifo(folder / "pipe.yaml")
        os.mkfifo(folder / "pipe.jsonl")
        (folder / "loop").symlink_to("loop")
        words = {"given": folder, "assets": assets}
        return Order([word.format(**words) for word in arguments], codes, said=said)

    return build


PATHS: dict[str, Build] = {
    "nul": _path(lambda folder: "a\0b.jsonl", "NUL"),
    "half-a-character": _path(lambda folder: "\ud800.jsonl"),
    "nobody": _path(lambda folder: "~nobody/x.jsonl"),
    "long": _path(lambda folder: "x" * 5000 + ".jsonl"),
    "socket": _path(_socket),
    "pipe": _path(_named_pipe(".jsonl")),
    "device": _path(lambda folder: "/dev/zero"),
    "terminal": _path(lambda folder: "/dev/tty"),
    "memory": _path(lambda folder: "/proc/self/mem"),
    "escape": _path(lambda folder: "\x1b[31mred.jsonl", "x1b"),
    "out-is-the-root": _argument("testbed", "--out", "/", codes=(2,)),
    "out-is-long": _argument("testbed", "--out", "{given}/" + "x" * 300, "--quiet"),
    "out-is-a-loop": _argument("testbed", "--out", "{given}/loop", "--quiet"),
    "out-is-a-device": _argument("testbed", "--out", "/dev/null", "--quiet"),
    "out-is-a-pipe": _argument("testbed", "--out", "{given}/pipe.yaml", "--quiet"),
    "out-below-a-device": _argument("testbed", "--out", "/dev/null/x", "--quiet"),
    "cite-a-pipe": _argument("cite", "{given}/pipe.yaml", said="a named pipe"),
    "config-a-pipe": _argument("testbed", "--config", "{given}/pipe.yaml", "--out", "{given}/out", said="a named pipe"),
    "suite-a-pipe": _argument(
        "evaluate", "{assets}/model", "--suite", "{given}/pipe.yaml", "--out", "{given}/out", said="a named pipe"),
    "mergekit-a-pipe": _argument(
        "merge", "--mergekit", "{given}/pipe.yaml", "--out", "{given}/out", said="a named pipe"),
    "verify-a-pipe": _argument("verify", "{given}/pipe.yaml"),
    "report-a-pipe": _argument("report", "{given}/pipe.yaml"),
    "verify-nothing": _argument("verify", "{given}"),
    "report-nothing": _argument("report", "{given}"),
}  # fmt: skip


def any_path(draw: random.Random, folder: Path, assets: Path) -> Order:
    """A name of strange characters, with an ending that commands know."""
    signs = string.ascii_letters + "~/.:@+ %{}[]\\'\"\x01\x7f\u202e\u2028é𝔘\0\ud800$*?"
    name = "".join(draw.choices(signs, k=draw.randint(1, 30))) + draw.choice(
        ["", ".jsonl", ".yaml", ":train", "/x.csv"]
    )
    return _path(lambda folder: name, codes=(1, 2, 4))(draw, folder, assets)


# Surroundings: variables, streams, limits, the working folder, objects of the user's own


def _cite(codes: tuple[int, ...] = (0,), said: str = "", extra: tuple[str, ...] = (), **order: Any) -> Build:
    def build(draw: random.Random, folder: Path, assets: Path) -> Order:
        return Order(["cite", str(assets / "recipe.yaml"), *extra], codes, said=said, **order)

    return build


_STRANGER = """\
import os, sys
from alignkeep.types import Message, Prompt
def leaves(): sys.exit(0)
def leaves_well(): raise SystemExit
def wants_more(x): return ()
def gives_nothing(): return 3
def raises(): raise ValueError("\\x1b[31mred" * 10000)
def recurses(): return recurses()
def interrupts(): raise KeyboardInterrupt
class Unsayable(Exception):
    def __str__(self): raise RuntimeError("no")
def unsayable(): raise Unsayable
class Leaving:
    def judge(self, prompt, answer): sys.exit(0)
class Raising:
    def judge(self, prompt, answer): raise Unsayable
"""


def _object(option: str, spec: str, codes: tuple[int, ...] = (1,), said: str = "") -> Build:
    def build(draw: random.Random, folder: Path, assets: Path) -> Order:
        (folder / "stranger.py").write_text(_STRANGER)
        out = ["--out", str(folder / "out"), "--quiet"]
        if option == "--judge":
            return Order(["judge", str(assets / "answers.jsonl"), option, spec, *out], codes, said=said)
        return Order(["evaluate", str(assets / "model"), option, spec, *out], codes, said=said)

    return build


def _judge(codes: tuple[int, ...], said: str = "", json_too: bool = True, **order: Any) -> Build:
    def build(draw: random.Random, folder: Path, assets: Path) -> Order:
        arguments = ["judge", str(assets / "answers.jsonl"), "--out", str(folder / "out"), "--quiet"]
        return Order([*arguments, *(["--json"] if json_too else [])], codes, said=said, **order)

    return build


SURROUNDINGS: dict[str, Build] = {
    "rank-no-number": _judge((1,), "RANK", environment={"RANK": "x"}),
    "rank-alone": _judge((1,), "RANK", environment={"RANK": "3"}),
    "rank-beyond": _judge((1,), "RANK", environment={"RANK": "3", "WORLD_SIZE": "2"}),
    "rank-digits": _judge((1,), "RANK", environment={"RANK": "9" * 5000, "WORLD_SIZE": "2"}),
    "world-no-number": _judge((1,), "WORLD_SIZE", environment={"WORLD_SIZE": "-3"}),
    "stdout-closed": _cite((4,), streams={"stdout": None}),
    "stdout-full": _cite((4,), streams={"stdout": "/dev/full"}),
    "stdout-nobody-reads": _cite(streams={"stdout": "|"}),
    "stderr-closed": _judge((0,), streams={"stderr": None}),
    "stderr-full": _judge((0,), streams={"stderr": "/dev/full"}),
    "stderr-nobody-reads": _judge((0,), streams={"stderr": "|"}),
    "error-and-stderr-closed": _cite((1,), extra=("--set", "x=1"), streams={"stderr": None}),
    "error-and-stderr-full": _cite((1,), extra=("--set", "x=1"), streams={"stderr": "/dev/full"}),
    "all-closed": _cite((4,), streams={"stdout": None, "stderr": None}),
    "folder-deleted": _cite((1,), "working folder", delete_folder=True),
    "ascii": _cite(environment={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    "no-home": _cite(environment={"HOME": "/nonexistent"}),
    "file-limit-0": _judge((4,), file_limit=0, streams={"stdout": "/dev/null", "stderr": "/dev/null"}),
    "file-limit-100": _judge((4,), "File too large", file_limit=300, json_too=False),
    "suite-sys-exit": _object("--suite", "sys:exit", said="built into Python"),
    "suite-abort": _object("--suite", "os:abort", said="built into Python"),
    "suite-os-exit": _object("--suite", "os:_exit", said="built into Python"),
    "suite-leaves": _object("--suite", "stranger:leaves", said="SystemExit"),
    "suite-leaves-well": _object("--suite", "stranger:leaves_well", said="SystemExit"),
    "suite-wants-more": _object("--suite", "stranger:wants_more", said="TypeError"),
    "suite-gives-nothing": _object("--suite", "stranger:gives_nothing"),
    "suite-raises": _object("--suite", "stranger:raises", said="ValueError"),
    "suite-recurses": _object("--suite", "stranger:recurses", said="RecursionError"),
    "suite-interrupts": _object("--suite", "stranger:interrupts", codes=(130,)),
    "suite-unsayable": _object("--suite", "stranger:unsayable"),
    "suite-json": _object("--suite", "json:dumps"),
    "judge-leaves": _object("--judge", "stranger:Leaving", said="SystemExit"),
    "judge-raises": _object("--judge", "stranger:Raising"),
    "judge-sys-exit": _object("--judge", "sys:exit"),
}


def any_surroundings(draw: random.Random, folder: Path, assets: Path) -> Order:
    """A limit of file sizes, or a language."""
    if draw.random() < 0.7:
        return _judge((0, 4), json_too=False, file_limit=draw.randint(1, 6000))(draw, folder, assets)
    language = draw.choice(["C", "POSIX", "de_DE.ISO-8859-1", "ja_JP.eucJP", "nonsense", ""])
    return _cite(environment={"LC_ALL": language, "PYTHONUTF8": draw.choice(["0", "1"])})(draw, folder, assets)


def any_kill(draw: random.Random, folder: Path, assets: Path) -> Order:
    """A signal at some instant; the same command then ends as if there had been none."""
    model, out = str(assets / "model"), ["--out", str(folder / "out"), "--quiet"]
    suite = ["--suite", str(assets / "suite.yaml"), "--attacks", "none", "--max-new-tokens", "4"]
    arguments, longest = draw.choice(
        [
            (["judge", str(assets / "answers.jsonl")], 0.3),
            (["testbed"], 2.0),
            (["merge", model, str(assets / "tuned"), "--method", draw.choice(["linear", "ties", "slerp"])], 0.6),
            (["evaluate", model, *suite], 2.5),
        ]
    )
    number = draw.choice([signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    codes = (0, 130) if number == signal.SIGINT else (0, -number)
    return Order([*arguments, *out], codes, kill=(draw.uniform(0, longest), int(number)))
