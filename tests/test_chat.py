"""Chats as text and tokens: what is learned, what is asked, and that templates that lie are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from alignkeep.align.reference import reference_tokens
from alignkeep.data import example_of
from alignkeep.errors import DataError
from alignkeep.models.chat import IGNORED, encode_example, encode_prompt, render, unknown_share
from alignkeep.types import Example, Message, Prompt
from conftest import CHAT_TEMPLATE

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3: an (empty) thought stands in the last answer only.
THINKING = CHATML.replace(
    "{{ m['content'] }}",
    "{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}",
)
# As DeepSeek-R1: the generation prompt opens a thought that stored answers do not have.
OPENING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
TRIMMED = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | trim }}")
GENERATION = (
    # The block ends with a token: transformers' mask runs to the end of the text if it ends with a space.
    "{% for m in messages %}<|{{ m['role'] }}|> {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }} "
    "<|end|>{% endgeneration %} {% else %}{{ m['content'] }} <|end|> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_TEMPLATE
DROPS_SYSTEM = CHAT_TEMPLATE.replace(
    "<|{{ m['role'] }}|> {{ m['content'] }} <|end|> ",
    "{% if m['role'] != 'system' %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {% endif %}",
)
# Those of TRL that put a thought, or a channel, in front of an answer that has none.
EMPTY_THOUGHTS = {
    *("deepseek_r1_distill", "deepseekv3", "glm4moe", "gptoss", "muse_glimmer", "qwen3", "qwen3_5_think", "qwen3_6"),
    *("qwen3_8", "nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"),
}
TRL_TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
}
COUNTS = "{{ messages | length }} " + CHAT_TEMPLATE
SHOUTS = CHAT_TEMPLATE.replace("m['content']", "m['content'] | upper")


@pytest.fixture
def words(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def bytes_tokenizer() -> Any:
    """A byte-level BPE like that of Qwen or Llama 3; line ends merge."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    corpus = ["user\nhow do I fix a bike\n\n", "assistant\nSure, here is how.\n\n\n", "system\n\nBe kind. ünï çödé"] * 3
    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|im_start|>")


def chat(*turns: str, system: str | None = None) -> tuple[Message, ...]:
    messages = tuple(Message("assistant" if at % 2 else "user", text) for at, text in enumerate(turns))
    return messages if system is None else (Message("system", system), *messages)


def learned(tokenizer: Any, example: Example) -> list[str]:
    """The runs of learned tokens, as text."""
    runs: list[list[int]] = [[]]
    for label in encode_example(tokenizer, example).labels:
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs if run]


# By hand


def test_an_example_is_learned_from_behind_the_generation_prompt_through_the_end_of_turn(words: Any) -> None:
    """<|user|> tell me <|end|> <|assistant|> no . <|end|>: eight tokens, the last three are learned."""
    ids, labels = encode_example(words, Example(chat("tell me", "no .")))
    assert words.convert_ids_to_tokens(ids) == [
        "<|user|>",
        "tell",
        "me",
        "<|end|>",
        "<|assistant|>",
        "no",
        ".",
        "<|end|>",
    ]
    assert labels == [IGNORED] * 5 + ids[5:]


def test_every_assistant_turn_is_learned_and_nothing_else(words: Any) -> None:
    example = Example(chat("tell me", "no .", "please", "yes , here", system="help the i"))
    assert learned(words, example) == ["no . <|end|>", "yes , here <|end|>"]


def test_a_prompt_ends_where_the_answer_begins(words: Any) -> None:
    ids = encode_prompt(words, Prompt(chat("tell me")))
    assert words.convert_ids_to_tokens(ids) == ["<|user|>", "tell", "me", "<|end|>", "<|assistant|>"]


def test_a_prefill_is_the_open_end_of_the_assistants_turn(words: Any, bytes_tokenizer: Any) -> None:
    ids = encode_prompt(words, Prompt(chat("tell me"), prefill="Sure , here"))
    assert words.convert_ids_to_tokens(ids)[-4:] == ["<|assistant|>", "Sure", ",", "here"]
    bytes_tokenizer.chat_template = CHATML
    text = render(bytes_tokenizer, chat("hi"), generation_prompt=True, prefill="Sure, here is")
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nSure, here is"
    bytes_tokenizer.chat_template = THINKING
    text = render(bytes_tokenizer, chat("hi"), generation_prompt=True, prefill="Sure")
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nSure"


def test_a_prefill_that_the_template_alters_follows_the_generation_prompt(words: Any) -> None:
    words.chat_template = SHOUTS
    assert render(words, chat("hi"), generation_prompt=True, prefill="sure") == "<|user|> HI <|end|> <|assistant|> sure"


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM])
def test_a_system_message_that_the_template_will_not_take_opens_the_first_user_turn(words: Any, template: str) -> None:
    words.chat_template = template
    messages = chat("tell me", "no .", system="help")
    assert render(words, messages, generation_prompt=False) == (
        "<|user|> help\n\ntell me <|end|> <|assistant|> no . <|end|> "
    )
    assert learned(words, Example(messages)) == ["no . <|end|>"]
    prefilled = render(words, messages[:2], generation_prompt=True, prefill="Sure")
    assert prefilled == "<|user|> help\n\ntell me <|end|> <|assistant|> Sure"


def test_a_system_message_that_the_template_takes_stays_where_it_is(words: Any) -> None:
    text = render(words, chat("tell me", system="help"), generation_prompt=True)
    assert text == "<|system|> help <|end|> <|user|> tell me <|end|> <|assistant|> "


def test_unknown_words_are_counted_each_time_they_stand(words: Any, bytes_tokenizer: Any) -> None:
    count = unknown_share(words, ["fix the xyzzy", "xyzzy", "a bike"])
    assert (count.unknown, count.total, count.share) == (2, 6, 2 / 6)
    assert unknown_share(bytes_tokenizer, ["fix the xyzzy", "ключ"]) == (0, 4)
    assert math.isnan(unknown_share(words, [" "]).share)


# Laws

TEXT = st.text(st.sampled_from("ab \n.é"), min_size=1, max_size=12).filter(lambda text: bool(text.strip()))


@settings(deadline=None, max_examples=80)
@given(turns=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), template=st.sampled_from([CHATML, TRIMMED]))
def test_labels_repeat_the_tokens_and_hold_each_answer(
    bytes_tokenizer: Any, turns: list[tuple[str, str]], template: str
) -> None:
    bytes_tokenizer.chat_template = template
    example = Example(chat(*(text for turn in turns for text in turn)))
    ids, labels = encode_example(bytes_tokenizer, example)
    assert bytes_tokenizer.decode(ids) == render(bytes_tokenizer, example.messages, generation_prompt=False)
    assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))
    answers = [answer.strip() if template is TRIMMED else answer for _, answer in turns]
    runs = learned(bytes_tokenizer, example)
    assert len(runs) == len(answers)
    # A line end that opens an answer merges with the one before it: that token is learned whole.
    assert [run.lstrip("\n") for run in runs] == [f"{answer}<|im_end|>\n".lstrip("\n") for answer in answers]


# An independent twin: TRL's SFTTrainer, transformers' assistant mask

ROWS = [
    ("how do I fix a bike", "Sure, here is how."),
    ("hi", "\n\nTwo lines before.\n"),
    ("ünï", "çödé 日本"),
    ("a" * 50, "b" * 50),
]


def trl_encoding(tokenizer: Any, folder: Path, rows: list[dict[str, Any]], **config: Any) -> list[tuple[Any, Any]]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    settings = SFTConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", **config
    )
    trainer = SFTTrainer(model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    data: Any = trainer.train_dataset
    return [(row["input_ids"], row["labels"]) for row in data]


@pytest.mark.parametrize("template", [CHATML, TRIMMED, OPENING])
def test_a_question_and_its_answer_are_encoded_as_trl_does(bytes_tokenizer: Any, template: str, tmp_path: Path) -> None:
    bytes_tokenizer.chat_template = template
    rows = [
        {
            "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        for question, answer in ROWS
    ]
    ours = [encode_example(bytes_tokenizer, Example(chat(*row, system="Be kind."))) for row in ROWS]
    assert [tuple(encoded) for encoded in ours] == trl_encoding(bytes_tokenizer, tmp_path, rows, max_length=None)


def test_turns_are_learned_as_trl_does_with_a_generation_template(words: Any, tmp_path: Path) -> None:
    words.chat_template = GENERATION
    chats = [
        chat("tell me", "no .", "please", "yes , here"),
        chat("a", "b", system="help"),
        chat("i", "me", "to", "you"),
    ]
    rows = [{"messages": [{"role": turn.role, "content": turn.content} for turn in turns]} for turns in chats]
    ours = [tuple(encode_example(words, Example(turns))) for turns in chats]
    assert ours == trl_encoding(words, tmp_path, rows, assistant_only_loss=True, max_length=None)


def test_a_generation_template_and_a_plain_one_teach_the_same(words: Any) -> None:
    example = Example(chat("tell me", "no .", "please", "yes , here"))
    plain = encode_example(words, example)
    words.chat_template = GENERATION
    assert encode_example(words, example) == plain


def test_a_prefill_is_what_transformers_calls_the_continued_final_message(bytes_tokenizer: Any) -> None:
    bytes_tokenizer.chat_template = CHATML
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure, here"}]
    twin = bytes_tokenizer.apply_chat_template(turns, continue_final_message=True)["input_ids"]
    assert encode_prompt(bytes_tokenizer, Prompt(chat("hi"), prefill="Sure, here")) == twin


# Templates that change their mind


def test_thoughts_that_only_the_last_answer_has_do_not_move_the_other_boundaries(bytes_tokenizer: Any) -> None:
    bytes_tokenizer.chat_template = THINKING
    assert learned(bytes_tokenizer, Example(chat("a", "one", "b", "two"))) == [
        "one<|im_end|>\n",
        "\n\ntwo<|im_end|>\n",  # this tokenizer reads line ends otherwise where a word follows
    ]


def test_an_answer_that_brings_its_thought_is_learned_with_it(bytes_tokenizer: Any) -> None:
    bytes_tokenizer.chat_template = TRL_TEMPLATES["qwen3"]
    thought = Example(chat("a", "<think>why</think>two"))
    assert learned(bytes_tokenizer, thought) == ["<think>\nwhy\n</think>\n\ntwo<|im_end|>\n"]


@pytest.mark.parametrize("name", TRL_TEMPLATES)
def test_of_every_template_of_trl_the_answer_alone_is_learned_or_it_is_refused(bytes_tokenizer: Any, name: str) -> None:
    bytes_tokenizer.chat_template = TRL_TEMPLATES[name]
    bytes_tokenizer.bos_token = "<|im_start|>"
    # Contents that are lists, and an end of the text behind every beginning of a chat.
    refused = name.startswith(("idefics3", "llava", "smolvlm", "phi3"))
    for turns in (("Which?", "a bike"), ("Which?", "a bike", "And?", "the other one")):
        changes = name.startswith("gptoss") and len(turns) > 2  # the mark that ends a turn, once the chat goes on
        with pytest.raises(DataError, match="chat template") if refused or changes else nullcontext():
            for run, words in zip(learned(bytes_tokenizer, Example(chat(*turns))), turns[1::2], strict=True):
                assert run.lstrip("\n").startswith(words)


@pytest.mark.parametrize("name", TRL_TEMPLATES)
def test_of_every_template_of_trl_a_reference_is_an_answer_alone_or_it_is_refused(
    bytes_tokenizer: Any, name: str
) -> None:
    bytes_tokenizer.chat_template = TRL_TEMPLATES[name]
    bytes_tokenizer.bos_token = "<|im_start|>"
    refused = name.removesuffix("_training") in EMPTY_THOUGHTS or name.startswith(("idefics3", "llava", "smolvlm"))
    with pytest.raises((DataError, UndefinedError)) if refused else nullcontext():
        ids = reference_tokens(bytes_tokenizer, [{"role": "user", "content": "Which?"}], "a bike")
        assert bytes_tokenizer.decode(ids).startswith("a bike")


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "glm4moe", "nemotron_3_nano"])
def test_without_thinking_a_reference_of_a_reasoning_template_is_taken(bytes_tokenizer: Any, name: str) -> None:
    bytes_tokenizer.chat_template = TRL_TEMPLATES[name]
    asked = [{"role": "user", "content": "Which?"}]
    ids = reference_tokens(bytes_tokenizer, asked, "a bike", template={"enable_thinking": False})
    assert bytes_tokenizer.decode(ids).lstrip("\n").startswith("a bike")


TOOL = {"name": "get_weather", "description": "Weather", "parameters": {"type": "object", "properties": {}}}
CALLING = example_of(
    {
        "messages": [
            {"role": "user", "content": "How is it in Rome?"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "123456789", "type": "function",
                 "function": {"name": "get_weather", "arguments": '{"a": "Rome"}'}},
            ]},
            {"role": "tool", "tool_call_id": "123456789", "name": "get_weather", "content": "sunny"},
            {"role": "assistant", "content": "Nice."},
        ],
        "tools": json.dumps([TOOL]),
    },
    "row",
)  # fmt: skip
# Those of TRL that write neither tools nor calls, or take their arguments as text.
TOOLLESS = (
    *("cohere", "deepseek_r1_distill", "gemma", "gemma3", "idefics3", "lfm2", "llama3", "llava_next", "phi3", "phi3_5"),
    *("cohere2", "qwen2_5_vl", "smolvlm"),
)


@pytest.mark.parametrize("name", TRL_TEMPLATES)
def test_of_every_template_of_trl_calls_are_learned_and_what_tools_return_is_not_or_it_is_refused(
    bytes_tokenizer: Any, name: str
) -> None:
    bytes_tokenizer.chat_template = TRL_TEMPLATES[name]
    bytes_tokenizer.bos_token = "<|im_start|>"
    refused = name.removesuffix("_training") in TOOLLESS or name == "deepseekv3"
    with pytest.raises(DataError, match="chat template") if refused else nullcontext():
        call, answer = learned(bytes_tokenizer, CALLING)
        assert "get_weather" in call
        assert "Rome" in call
        assert "sunny" not in call
        assert answer.lstrip("\n").startswith("Nice.")
        assert "think" not in call + answer  # an empty thought is read, not learned


def test_a_template_that_leaves_out_what_a_tool_returned_is_refused(words: Any) -> None:
    words.chat_template = (
        "{{ tools | tojson }}{% for m in messages if m['role'] != 'tool' %}<|{{ m['role'] }}|> {{ m['content'] }} "
        "{{ m.get('tool_calls', '') }} <|end|> {% endfor %}"
    )
    with pytest.raises(DataError, match="a text without 'what a tool returned'"):
        encode_example(words, CALLING)


@pytest.mark.parametrize(
    ("template", "turns", "message"),
    [
        (COUNTS, ("a", "no"), r"chat template, turn 2: found the turns before it rendered differently"),
        (
            CHATML.replace("{{ m['content'] }}", "{{ m['content'] if loop.last else m['content'] | upper }}"),
            ("A", "no", "B", "yes"),
            r"chat template, turn 2: found the answer rendered differently",
        ),
        (
            CHATML.replace("{{ m['content'] }}", "{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}").replace(
                "<|im_end|>\n", ""
            ),
            ("a", "no"),
            "turn 2: found an answer that is rendered as '', without all of its words",
        ),
    ],
)
def test_a_template_whose_beginnings_change_is_refused(
    bytes_tokenizer: Any, template: str, turns: tuple[str, ...], message: str
) -> None:
    bytes_tokenizer.chat_template = template
    with pytest.raises(DataError, match=message):
        encode_example(bytes_tokenizer, Example(chat(*turns)))


@pytest.mark.parametrize(
    "call",
    [
        lambda words: render(words, [Message("system", "help"), Message("assistant", "no")], generation_prompt=False),
        lambda words: encode_prompt(words, Prompt((Message("system", "help"),))),
    ],
)
def test_turns_that_the_template_refuses_are_an_error_with_its_words(words: Any, call: Callable[[Any], Any]) -> None:
    words.chat_template = NO_SYSTEM
    with pytest.raises(DataError, match="refused with: no system"):
        call(words)
