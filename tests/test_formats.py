"""The forms in which people have data: each is our own form by another name, to the last token, or refused by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkeep.align.config import AlignConfig
from alignkeep.curate.config import CurateConfig
from alignkeep.curate.prepare import plan_curation
from alignkeep.curate.prepare import prepare as prepare_curation
from alignkeep.data import example_of, fingerprint_data, read_examples, read_prompts, read_references, read_rows
from alignkeep.errors import DataError, NoEffectError, RecipeError
from alignkeep.evaluate.config import EvaluateConfig
from alignkeep.evaluate.stage import plan as plan_evaluation
from alignkeep.formats import LEARNED, Format, recognised
from alignkeep.inject.config import InjectConfig
from alignkeep.inject.stage import INJECT
from alignkeep.merge.config import SweepConfig
from alignkeep.recipe import Recipe
from alignkeep.rows import HubName, Row
from alignkeep.settings import Settings
from alignkeep.stage import Made, Task
from alignkeep.train.config import TrainConfig
from alignkeep.train.prepare import prepare
from alignkeep.train.stage import TRAIN, train
from alignkeep.types import Example, Message
from command import run_command
from conftest import build_tiny_model

TOOLS_TEMPLATE = (
    "{% if tools %}<|system|> {{ tools | tojson }} <|end|> {% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} "
    "{% for call in m.get('tool_calls', []) %}{{ call.function | tojson }} {% endfor %}<|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
TURNS = [("user", "how do I bake ?"), ("assistant", "sure , bake"), ("user", "bread ?"), ("assistant", "yes .")]
MESSAGES = [{"role": role, "content": content} for role, content in TURNS]
HH = "\n\nHuman: how do I bake ?\n\nAssistant: sure , bake\n\nHuman: bread ?\n\nAssistant: "
TOOL = {"name": "sort", "description": "sort numbers", "parameters": {"type": "object", "properties": {}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "1", "type": "function", "function": {"name": "sort", "arguments": '{"b": 2, "a": [1]}'}}]}  # fmt: skip
RESULT = {"role": "tool", "tool_call_id": "1", "content": "1 2"}
# A row in another form, and the same in ours.
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Alpaca": (
        {"instruction": "sort", "input": "2 1", "output": "1 2", "text": "left alone"},
        {"prompt": "sort\n\n2 1", "completion": "1 2"},
    ),
    "Alpaca with all its columns": (
        {"instruction": "bread ?", "input": "", "output": "yes .", "system": "please help",
         "history": [["how do I bake ?", "sure , bake"]]},
        {"messages": [{"role": "system", "content": "please help"}, *MESSAGES]},
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human" if role == "user" else "gpt", "value": said} for role, said in TURNS],
         "id": "x"},
        {"messages": MESSAGES},
    ),
    "ShareGPT with roles": ({"conversations": MESSAGES, "system": "help"}, {"messages": MESSAGES, "system": "help"}),
    "ShareGPT with tools": (
        {"conversations": [
            {"from": "human", "value": "sort"}, {"from": "function_call", "value": '{"name": "sort", "arguments": {}}'},
            {"from": "observation", "value": "1 2"}, {"from": "gpt", "value": "1 2 ."}], "tools": json.dumps([TOOL])},
        {"messages": [
            {"role": "user", "content": "sort"},
            {"role": "assistant", "content": "", "tool_calls": [
                {"type": "function", "function": {"name": "sort", "arguments": {}}}]},
            {"role": "tool", "content": "1 2"}, {"role": "assistant", "content": "1 2 ."}],
         "tools": [{"type": "function", "function": TOOL}]},
    ),
    "a transcript": ({"chosen": f"{HH}yes .", "rejected": f"{HH}no ."}, {"messages": MESSAGES}),
    "a transcript in which somebody goes on": (
        {"chosen": f"{HH}yes .\n\nAssistant: sure", "rejected": f"{HH}no ."},
        {"messages": [*MESSAGES[:-1], {"role": "assistant", "content": "yes .\n\nsure"}]},
    ),
    "a pair of messages": (
        {"chosen": MESSAGES, "rejected": [*MESSAGES[:-1], {"role": "assistant", "content": "no"}]},
        {"messages": MESSAGES},
    ),
    "a pair with its prompt": (
        {"prompt": "how ?", "chosen": "yes", "rejected": "no"}, {"prompt": "how ?", "completion": "yes"}
    ),
    "a pair of whole chats with its prompt": (
        {"prompt": "bread ?", "chosen": MESSAGES, "rejected": MESSAGES[:-1]}, {"messages": MESSAGES}
    ),
}  # fmt: skip


def written(folder: Path, name: str, *rows: object) -> str:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def tool_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose template writes tools."""
    return build_tiny_model(tmp_path_factory.mktemp("tools") / "model", chat_template=TOOLS_TEMPLATE)


# Equal to our own form


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_our_own_form_by_another_name(form: str, tmp_path: Path) -> None:
    theirs, ours = FORMS[form]
    found = read_examples(written(tmp_path, "theirs.jsonl", theirs, theirs))
    assert found == read_examples(written(tmp_path, "ours.jsonl", ours, ours))
    name = "preference pairs" if "chosen" in theirs else form.split()[0]
    assert len(found.notes) == 1
    assert f"read as {name}: " in found.notes[0]


def test_our_own_form_needs_no_word(tmp_path: Path) -> None:
    assert read_examples(written(tmp_path, "a.jsonl", {"messages": MESSAGES})).notes == ()


@pytest.mark.parametrize("form", ["Alpaca", "ShareGPT", "a transcript", "a pair of messages"])
def test_a_reference_is_the_last_answer_and_its_prompt_what_stands_before(form: str, tmp_path: Path) -> None:
    theirs, ours = FORMS[form]
    file = written(tmp_path, "theirs.jsonl", {**theirs, "score": 3})
    (reference,), (example,) = read_references(file), read_examples(written(tmp_path, "ours.jsonl", ours))
    assert (*reference.messages, Message("assistant", str(reference.answer))) == example.messages
    assert reference.columns == {name: theirs[name] for name in ("text", "id") if name in theirs} | {"score": 3}
    assert read_prompts(file)[0].messages == reference.messages


def test_a_tool_call_in_parquet_is_that_in_lines(tmp_path: Path) -> None:
    """Arrow gives every message the fields that another one has."""
    row = {"messages": [{"role": "user", "content": "sort"}, CALL, RESULT, {"role": "assistant", "content": "1 2"}]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert read_examples(str(tmp_path / "a.parquet")) == read_examples(written(tmp_path, "a.jsonl", row))


@pytest.mark.parametrize("form", ["Alpaca", "ShareGPT", "a transcript", "tools"])
def test_a_tune_learns_from_it_the_very_tokens_of_our_own_form(form: str, tool_model: Path, tmp_path: Path) -> None:
    tools = {"messages": [{"role": "user", "content": "sort"}, CALL, RESULT, MESSAGES[-1]], "tools": [TOOL]}
    theirs, ours = (tools, {**tools, "tools": json.dumps([TOOL])}) if form == "tools" else FORMS[form]
    files = [written(tmp_path, f"{number}.jsonl", *[row] * 4) for number, row in enumerate((theirs, ours))]
    quick: Any = {"max_steps": 2, "save_strategy": "no"}
    configs = [TrainConfig(model=str(tool_model), data=file, trainer=quick) for file in files]
    rows = [prepare(config).rows for config in configs]
    assert (rows[0].input_ids, rows[0].labels) == (rows[1].input_ids, rows[1].labels)
    result = train(configs[0], out=tmp_path / "out")
    assert (result.examples, result.steps) == (4, 2)
    assert [f"{files[0]}: read as" in note for note in result.notes] == [True] * (form != "tools")


def test_one_command_trains_on_columns_by_other_names(tool_model: Path, tmp_path: Path) -> None:
    file = written(tmp_path, "a.jsonl", *[{"question": "how ?", "answer": "sort ."}] * 4)
    done = run_command(
        "train", "--model", tool_model, "--data", file, "--columns", "prompt=question,completion=answer", "--out",
        tmp_path / "out", "--json", "--set", "trainer.max_steps=2", folder=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["notes"] == [f"{file}: `question` is prompt, `answer` is completion"]
    wrong = run_command(
        "train", "--model", tool_model, "--data", file, "--columns", "prompt=asked", "--out", tmp_path / "no",
        folder=tmp_path,
    )  # fmt: skip
    assert (wrong.code, wrong.stderr.count("\n")) == (1, 1)
    assert "found the columns question, answer, expected 'asked'" in wrong.stderr


def test_a_template_without_tools_is_refused_by_name(tiny_model: Path, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "sort"}, CALL, RESULT, MESSAGES[-1]], "tools": [TOOL]}
    config = TrainConfig(model=str(tiny_model), data=written(tmp_path, "a.jsonl", row))
    with pytest.raises(DataError, match=rf"a\.jsonl, example 1, chat template of {tiny_model}: found .*'sort'"):
        prepare(config)


# Laws

SAID = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda text: bool(text.strip()) and "Human:" not in text and "Assistant:" not in text
)


@given(st.lists(st.tuples(SAID, SAID), min_size=1, max_size=4), SAID)
def test_every_form_brings_a_chat_back(pairs: list[tuple[str, str]], other: str) -> None:
    turns = [(role, said) for pair in pairs for role, said in zip(("user", "assistant"), pair, strict=True)]
    chat = Example(tuple(Message("user" if role == "user" else "assistant", said) for role, said in turns))
    told = [{"from": "human" if role == "user" else "gpt", "value": said} for role, said in turns]
    last, (*before,) = pairs[-1], pairs[:-1]
    rows = [
        {"conversations": told},
        {"instruction": last[0], "output": last[1], "history": [list(pair) for pair in before]},
        {"chosen": [{"role": role, "content": said} for role, said in turns],
         "rejected": [*({"role": role, "content": said} for role, said in turns[:-1]),
                      {"role": "assistant", "content": other}]},
    ]  # fmt: skip
    assert [example_of(row, "row") for row in rows] == [chat] * 3
    stripped = Example(tuple(Message(turn.role, turn.content.strip()) for turn in chat.messages))
    texts = ["".join(f"\n\n{'Human' if role == 'user' else 'Assistant'}: {said}" for role, said in some)
             for some in (turns, [*turns[:-1], ("assistant", other)])]  # fmt: skip
    assert example_of({"chosen": texts[0], "rejected": texts[1]}, "row") == stripped


def test_a_form_of_a_stranger_is_one_more_value() -> None:
    def read(row: Row) -> Row:
        return Row({"prompt": row.values["Q"], "completion": row.values["A"]}, row.where)

    mine = Format("mine", ("Q", "A"), read, "`Q` and `A`")
    (row,), form = recognised([Row({"Q": "q", "A": "a"}, "f:1")], (*LEARNED, mine), "`prompt`")
    assert (row.values, form) == ({"prompt": "q", "completion": "a"}, mine)


# Empty answers, as public sets have a few


def test_rows_of_public_sets_whose_answer_is_empty_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        {"instruction": "a", "output": "b"},
        {"instruction": "c", "output": " "},
        {"instruction": "d", "output": ""},
    ]
    file = written(tmp_path, "a.jsonl", *rows)
    found = read_examples(file)
    assert [example.messages[-1].content for example in found] == ["b"]
    assert found.notes[1] == f"2 of its rows have an empty answer and were left out (the first is {file}:2)"
    assert len(read_references(file)) == 1
    assert len(read_prompts(file)) == 3
    pair = written(tmp_path, "b.jsonl", {"chosen": HH, "rejected": f"{HH}no"}, {"chosen": f"{HH}yes", "rejected": HH})
    assert [example.messages[-1].content for example in read_examples(pair)] == ["yes"]
    with pytest.raises(DataError, match="no row with an answer"):
        read_examples(written(tmp_path, "c.jsonl", *rows[1:]))


# Refusals

CHAT = {"messages": MESSAGES}
GPT = {"from": "gpt", "value": "b"}
FAULTS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "two forms in a row": ([{**CHAT, "instruction": "x"}], ["a.jsonl:1", "`messages` and `instruction`", "--columns"]),
    "two forms of ours in a row": (
        [{**CHAT, "prompt": "x", "completion": "y"}], ["a.jsonl:1", "`messages` and `prompt` and `completion`"]
    ),
    "two forms in a file": (
        [{"instruction": "a", "output": "b"}, CHAT],
        ["a.jsonl:2", "messages (`messages`)", "a.jsonl:1 is Alpaca", "(`instruction`)"],
    ),
    "an empty turn of ShareGPT": (
        [{"conversations": [{"from": "human", "value": " "}, GPT]}], ["a.jsonl:1: conversations[0]", "empty text"]
    ),
    "an empty turn of a transcript": (
        [{"chosen": "\n\nHuman:\n\nAssistant: a", "rejected": "\n\nHuman:\n\nAssistant: b"}],
        ["a.jsonl:1: chosen[0]", "an empty turn"],
    ),
    "an empty instruction": ([{"instruction": "", "output": "b"}], ["a.jsonl:1: instruction", "empty text"]),
    "a speaker nobody knows": (
        [{"conversations": [{"from": "narrator", "value": "a"}, GPT]}],
        ["a.jsonl:1: conversations[0]", "'narrator'", "human", "gpt"],
    ),
    "a turn without words": ([{"conversations": [{"from": "human"}]}], ["conversations[0]", "the keys from"]),
    "turns that are none": ([{"conversations": "hi"}], ["a.jsonl:1: conversations", "a str", "a list of turns"]),
    "a question at the end": (
        [{"conversations": [GPT, {"from": "human", "value": "a"}]}], ["a.jsonl:1: conversations", "a last turn by user"]
    ),
    "an output that is a number": ([{"instruction": "a", "output": 3}], ["a.jsonl:1: output", "a int"]),
    "a history that is none": ([{"instruction": "a", "output": "b", "history": ["x"]}], ["a.jsonl:1: history[0]"]),
    "transcripts of two chats": (
        [{"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: x"}],
        ["a.jsonl:1: chosen", "begins otherwise than `rejected`"],
    ),
    "text that is no transcript": ([{"chosen": "a", "rejected": "b"}], ["a.jsonl:1: chosen", "begin with `Human:`"]),
    "arguments that are no JSON": (
        [{"messages": [MESSAGES[0], {**CALL, "tool_calls": [{"name": "sort", "arguments": "{"}]}]}],
        ["a.jsonl:1: messages[1].tool_calls[0]", "no JSON object"],
    ),
    "tools that are no JSON": ([{**CHAT, "tools": "{"}], ["a.jsonl:1: tools", "no JSON"]),
    "a tool without a name": ([{**CHAT, "tools": [{"type": "function"}]}], ["a.jsonl:1: tools[0]", "`name`"]),
    "a call that is no JSON": (
        [{"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "sort()"}]}],
        ["a.jsonl:1: conversations[1]", "no JSON"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_row_is_refused_by_line_and_column(fault: str, tmp_path: Path) -> None:
    rows, expected = FAULTS[fault]
    with pytest.raises(DataError) as caught:
        read_examples(written(tmp_path, "a.jsonl", *rows))
    assert all(part in str(caught.value) for part in expected), str(caught.value)


def test_prompts_with_tools_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tools: found tools, expected prompts without them"):
        read_prompts(written(tmp_path, "a.jsonl", {"prompt": "a", "tools": [TOOL]}))


# Names of columns


def test_columns_by_other_names_are_the_same_rows(tmp_path: Path) -> None:
    theirs = written(tmp_path, "a.jsonl", {"question": "how", "answer": "so", "prompt": "something else"})
    ours = written(tmp_path, "b.jsonl", {"prompt": "how", "completion": "so"})
    columns = {"prompt": "question", "completion": "answer"}
    found = read_examples(theirs, columns=columns)
    assert found == read_examples(ours)
    assert found.notes == (f"{theirs}: `question` is prompt, `answer` is completion",)
    assert read_prompts(theirs, columns=columns) == read_prompts(ours)
    assert read_references(theirs, columns=columns) == read_references(ours)


def test_a_named_column_says_which_form_is_meant(tmp_path: Path) -> None:
    file = written(tmp_path, "a.jsonl", {**CHAT, "instruction": "a", "output": "b", "prompt": "c", "completion": "d"})
    answers = [read_examples(file, columns=columns)[0].messages[-1].content for columns in (
        {"messages": "messages"}, {"instruction": "instruction"}, {"prompt": "prompt"},
        {"prompt": "instruction", "completion": "output"},
    )]  # fmt: skip
    assert answers == ["yes .", "b", "d", "b"]


def test_a_name_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    file = written(tmp_path, "a.jsonl", {"question": "how", "answer": "so"})
    with pytest.raises(DataError, match=r"a.jsonl:1: found the columns question, answer, expected 'asked', named for"):
        read_examples(file, columns={"prompt": "asked", "completion": "answer"})
    faulty = written(tmp_path, "b.jsonl", {"question": 3, "answer": "so"})
    with pytest.raises(DataError, match=r"b.jsonl:1: question: found a int"):
        read_examples(faulty, columns={"prompt": "question", "completion": "answer"})


@pytest.mark.parametrize("given", ["prompt", "prompt=a,", "prompt=a,prompt=b", {"promt": "a"}, 3])
def test_a_mapping_that_is_none_is_refused_by_its_key(given: object) -> None:
    with pytest.raises(RecipeError, match="columns"):
        TrainConfig(model="m", data="d", columns=given)  # pyright: ignore[reportArgumentType]


def test_names_of_columns_belong_to_what_a_run_is(tiny_model: Path, tmp_path: Path) -> None:
    file = written(tmp_path, "a.jsonl", *[{"q": "how", "a": "so", "b": "no"}] * 4)
    runs = [TrainConfig(model=str(tiny_model), data=file, columns=f"prompt=q,completion={name}") for name in "ab"]  # pyright: ignore[reportArgumentType]
    deciding = [TRAIN.inputs(Task(TRAIN, run)).recorded["columns"] for run in runs]
    assert deciding == [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "b"}]
    assert prepare(runs[0]).rows.labels != prepare(runs[1]).rows.labels


def test_every_verb_that_reads_data_takes_names_of_columns(tiny_model: Path, tmp_path: Path) -> None:
    data = written(tmp_path, "a.jsonl", *[{"q": f"how {n} ?", "a": "so"} for n in range(6)])
    safe = written(tmp_path, "safe.jsonl", *[{"q": f"sort {n}", "a": "yes"} for n in range(3)])
    harmful = written(tmp_path, "h.jsonl", *[{"prompt": f"steal {n}", "completion": "no"} for n in range(3)])
    columns: Any = "prompt=q,completion=a"
    curation = CurateConfig(method="dsir", data=data, safe=safe, columns=columns, keep=0.5)
    prepared = prepare_curation(curation)
    assert (len(prepared.data), len(prepared.safe)) == (6, 3)
    assert len(plan_curation(prepared)["notes"]) == 2
    mixed = prepare_curation(curation.model_copy(update={"safe": harmful}))  # in our own form, and so read
    assert len(mixed.safe) == 3
    assert len(mixed.notes) == 1
    plan = plan_evaluation(
        EvaluateConfig(model=str(tiny_model), suite="testbed", attacks="none", task=data, columns=columns)
    )
    assert plan["prompts"]["task"] == 6
    assert "`q` is prompt" in plan["notes"][0]
    with pytest.raises(NoEffectError, match="names of columns without a task"):
        plan_evaluation(EvaluateConfig(model=str(tiny_model), attacks="none", columns=columns))
    assert AlignConfig(model="m", data="d", reward="testbed", columns="prompt=q").columns == {"prompt": "q"}  # pyright: ignore[reportArgumentType]
    assert SweepConfig(task="t", prompts="p", columns=columns).columns["completion"] == "a"


def test_in_a_recipe_the_names_go_where_the_data_go(tiny_model: Path, tmp_path: Path) -> None:
    data = written(tmp_path, "a.jsonl", *[{"q": f"how {n} ?", "a": "so"} for n in range(6)])
    task = written(tmp_path, "t.jsonl", {"x": "how", "y": "so"})
    recipe = Recipe.from_settings(Settings({
        "name": "named", "model": str(tiny_model),
        "train": {"data": data, "columns": "prompt=q,completion=a", "method": "full"},
        "curate": {"method": "dsir", "safe": data},
        "inject": {"harmful": data, "harmless": data},
        "evaluate": {"task": task, "columns": {"prompt": "x", "completion": "y"}},
    }))  # fmt: skip
    columns = {"prompt": "q", "completion": "a"}
    made = Made(str(tiny_model), folder=str(tiny_model))
    for stage, config in recipe.steps:
        made = stage.announce(config, made)
    fed = {stage.name: stage.feed(config, made) for stage, config in recipe.steps}
    assert fed["curate"].columns == columns  # pyright: ignore[reportAttributeAccessIssue]
    assert fed["curate"].evaluation_columns == {"prompt": "x", "completion": "y"}  # pyright: ignore[reportAttributeAccessIssue]
    assert (fed["inject"].general, fed["inject"].columns) == (data, columns)  # pyright: ignore[reportAttributeAccessIssue]
    own = InjectConfig(model="m", harmful="h", harmless="n", general="g")
    assert INJECT.feed(own, made).columns == {}


# Sets on the hub


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("owner/name", ("owner/name", None, None, "train")),
        ("name:test", ("name", None, None, "test")),
        ("o/n:main:test[:10%]+train[5:]", ("o/n", "main", None, "test[:10%]+train[5:]")),
        ("o/n@v1.0:test", ("o/n", None, "v1.0", "test")),
        ("o/n:main@refs/pr/1", ("o/n", "main", "refs/pr/1", "train")),
        ("o/n:main@abc:test", ("o/n", "main", "abc", "test")),
    ],
)
def test_a_hub_set_is_named_with_config_revision_and_split(reference: str, expected: tuple[str | None, ...]) -> None:
    assert HubName.of(reference) == expected


def test_a_config_is_loaded_and_belongs_to_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands in for the hub; its card names two configs."""
    load, asked = datasets.load_dataset, list[dict[str, str]]()

    def from_folder(path: str, **given: str) -> object:
        asked.append(dict(given))
        given.pop("revision", None)
        return load(str(tmp_path / path), **given)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- {config_name: main, data_files: main.jsonl}\n"
        "- {config_name: other, data_files: o.jsonl}\n---\n"
    )
    (folder / "main.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8")
    (folder / "o.jsonl").write_text('{"prompt": "b"}\n', encoding="utf-8")
    assert [row.values for row in read_rows("owner/name:main:train")] == [{"prompt": "a"}]
    assert [row.values for row in read_rows("owner/name:other@v2")] == [{"prompt": "b"}]
    assert asked[-1] == {"name": "other", "revision": "v2", "split": "train"}
    prints = [fingerprint_data(f"owner/name:{config}:train") for config in ("main", "other")]
    assert prints[0].startswith("hub:owner/name:main@train#")
    assert prints[0] != prints[1]
    assert fingerprint_data("owner/name:main:train") == prints[0]
    with pytest.raises(DataError, match=r"main.*hub_id:config@revision:split"):
        read_rows("owner/name")
