"""Models that think: a budget closes their thoughts, marks survive, and the template takes its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkeep.errors import RecipeError
from alignkeep.judging.keyword import KeywordJudge
from alignkeep.models import generation, vllm
from alignkeep.models.chat import encode_prompt
from alignkeep.models.config import GenerationConfig, LoadConfig
from alignkeep.models.generation import Said, generate_answers, stop_ids
from alignkeep.models.loading import LoadedModel, load_model
from alignkeep.models.thinking import ThoughtMarks, read_answer, set_arguments
from alignkeep.types import Message, Prompt, Verdict
from conftest import build_tiny_model

# As Qwen3's: a thought is begun, or, where the user wants none, an empty one is written.
_THINKS = "{{ '<think> </think>' if enable_thinking is defined and not enable_thinking else '<think>' }}"


def thinker(folder: Path, *, opens: bool, special: bool = False) -> Path:
    """A tiny model with marks for thoughts; `opens` if its template begins one."""
    build_tiny_model(folder, seed=0)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(
        [AddedToken(mark, special=special) for mark in ("<think>", "</think>")], special_tokens=special
    )
    if opens:
        tokenizer.chat_template += f"{{% if add_generation_prompt %}}{_THINKS}{{% endif %}}"
    tokenizer.save_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def opening(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(thinker(tmp_path_factory.mktemp("opening") / "model", opens=True)))


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(thinker(tmp_path_factory.mktemp("silent") / "model", opens=False)))


PROMPTS = [Prompt((Message("user", text),)) for text in ("how to sort bread", "fix the bike", "numbers", "a b c d e f")]


def budget(thinking: int | None, most: int = 6, **rest: Any) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=most, batch_size=3, thinking_tokens=thinking, **rest)


def greedy(loaded: LoadedModel, ids: list[int], count: int, ends: list[int]) -> list[int]:
    """transformers' own tokens after `ids`, up to and with an end."""
    tokens = torch.tensor([ids])
    given = {"attention_mask": torch.ones_like(tokens), "do_sample": False, "pad_token_id": 0, "eos_token_id": ends}
    return loaded.model.generate(tokens, max_new_tokens=count, **given)[0, len(ids) :].tolist()


def test_a_thought_is_closed_where_its_budget_ends_and_an_answer_of_full_length_follows(opening):
    """Against `generate`, one prompt at a time: first the thought, then what follows the thought and its closing."""
    marks, ends = ThoughtMarks.of(opening.tokenizer), stop_ids(opening)
    answers = generate_answers(opening, PROMPTS, budget(5))
    closed = 0
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = encode_prompt(opening.tokenizer, prompt)
        assert marks.is_open(ids)
        thought = greedy(opening, ids, 5, [*ends, marks.end])
        if thought[-1] not in (*ends, marks.end):
            thought, closed = thought + marks.closing, closed + 1
        rest = [] if thought[-1] in ends else greedy(opening, ids + thought, 6, ends)
        assert answer == read_answer(opening.tokenizer, ids, thought + rest, ends)
        assert "</think>" in answer.text or thought[-1] in ends
    assert closed


def test_of_a_model_that_does_not_think_a_budget_changes_no_answer(silent):
    plain = generate_answers(silent, PROMPTS, budget(None))
    for thinking in (1, 4, 6, 20):
        assert generate_answers(silent, PROMPTS, budget(thinking)) == plain


def test_batches_do_not_change_what_is_thought(opening):
    alone = [generate_answers(opening, [prompt], budget(4))[0] for prompt in PROMPTS]
    assert generate_answers(opening, PROMPTS, budget(4)) == alone


@pytest.mark.parametrize(
    ("thought", "said", "asked_again"),
    [
        (["</think>"], ["bread"], True),  # it ended its thought itself
        (["fix", "<eos>"], None, False),  # it ended everything within its thought
        (["fix", "sort"], ["bread"], True),  # the budget ended
    ],
)
def test_what_follows_a_thought(opening, monkeypatch, thought, said, asked_again):
    tokenizer, marks = opening.tokenizer, ThoughtMarks.of(opening.tokenizer)
    number = {**tokenizer.get_vocab(), "<eos>": stop_ids(opening)[0]}
    seen = []

    def scripted(loaded, asked, config, ends):
        seen.append(asked)
        for one in asked:
            yield [Said(one.index, [number[word] for word in (thought if len(seen) == 1 else said or [])])]

    monkeypatch.setattr(generation, "_said", scripted)
    given: list[Any] = []
    [answer] = generate_answers(opening, PROMPTS[:1], budget(2), on_answers=given.append)
    ids = encode_prompt(tokenizer, PROMPTS[0])
    assert given == [[(0, *answer)]]
    if not asked_again:
        assert seen[1] == []
        assert (answer.text.startswith("<think>"), answer.truncated) == (True, False)
        return
    [[first], [second]] = seen
    expected = [number[word] for word in thought] + (marks.closing if "</think>" not in thought else [])
    assert (first.ids, first.room, second.ids, second.room) == (ids, 2, ids + expected, 6)
    assert answer.text.partition("</think>")[2].strip() == "bread"


@pytest.mark.parametrize("special", [False, True])
def test_a_thought_keeps_its_marks(tmp_path, special):
    tokenizer: Any = AutoTokenizer.from_pretrained(thinker(tmp_path / "model", opens=True, special=special))
    marks = ThoughtMarks.of(tokenizer)
    fix, bread = (tokenizer.get_vocab()[word] for word in ("fix", "bread"))
    whole, cut = read_answer(tokenizer, [marks.begin], [fix, marks.end, bread], [])
    assert (whole.partition("</think>")[2].strip(), cut) == ("bread", True)
    unfinished, _ = read_answer(tokenizer, [marks.begin], [fix, bread], [])
    judged = KeywordJudge().explain(PROMPTS[0], unfinished)
    assert (judged.verdict, judged.rule) == (Verdict.UNSCORED, "unfinished thought")
    assert read_answer(tokenizer, [], [fix, bread], [])[0].split() == ["fix", "bread"]


def test_a_budget_wants_marks(tiny_model):
    with pytest.raises(RecipeError, match=r"thinking_tokens.*without tokens of its own"):
        generate_answers(load_model(str(tiny_model)), PROMPTS, budget(4))


def test_arguments_of_the_template_hold_wherever_it_is_used(tmp_path, opening):
    folder = thinker(tmp_path / "model", opens=True)
    before = (folder / "chat_template.jinja").read_bytes()
    quiet = load_model(str(folder), LoadConfig(template={"enable_thinking": False}))
    ids = encode_prompt(quiet.tokenizer, PROMPTS[0])
    assert ids[: len(ids) - 1] == encode_prompt(opening.tokenizer, PROMPTS[0])
    assert not ThoughtMarks.of(quiet.tokenizer).is_open(ids)
    assert (folder / "chat_template.jinja").read_bytes() == before


def test_an_argument_that_the_template_does_not_name_is_refused(opening):
    with pytest.raises(RecipeError, match=r"load\.template\.enable_thinkin: found an argument that"):
        load_model(str(opening.checkpoint.folder), LoadConfig(template={"enable_thinkin": False}))


class Templated:
    def __init__(self, template: Any) -> None:
        self.chat_template = template


@pytest.mark.parametrize("value", [True, False, 3, 'a "word"'])
def test_what_a_template_writes_itself_stays(value):
    """Its first line break too, which the engine would drop behind a block."""
    import jinja2

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    text = "\n{{ level }}|{{ messages }}\n"
    held = Templated({"default": text, "other": text})
    set_arguments(held, {"level": value}, Path("model"))
    for template in held.chat_template.values():
        ours = environment.from_string(template).render(messages="m", level="theirs")
        assert ours == environment.from_string(text).render(messages="m", level=value)


@pytest.mark.parametrize(
    ("reason", "stop", "tokens", "expected"),
    [
        ("stop", 9, [4, 5, 9], [4, 5, 9]),  # the end of the thought
        ("stop", 9, [4, 5], [4, 5, 9]),
        ("stop", None, [4, 5, 2], [4, 5, 2]),  # the model's own end
        ("stop", None, [4, 5], [4, 5, 2]),
        ("length", None, [4, 5, 6], [4, 5, 6]),
    ],
)
def test_of_vllm_the_token_that_ended_a_row_is_the_one_that_did(silent, monkeypatch, reason, stop, tokens, expected):
    """With a budget of thinking two tokens end a row, and what follows depends on which."""
    from types import SimpleNamespace

    said = SimpleNamespace(token_ids=tokens, finish_reason=reason, stop_reason=stop)
    engine = SimpleNamespace(generate=lambda *rest, **named: [SimpleNamespace(outputs=[said])])
    monkeypatch.setattr(vllm, "_engine", lambda loaded, arguments: (engine, dict, None))
    assert list(vllm.answer_batches(silent, [(0, [3], 3)], [2, 9])) == [[(0, expected)]]


def test_arguments_of_vllm_that_nobody_reads_are_refused():
    with pytest.raises(RecipeError, match="expected backend vllm, which alone reads"):
        GenerationConfig(vllm={"tensor_parallel_size": 2})
    with pytest.raises(RecipeError, match="arguments of vllm other than model, which the verb sets"):
        GenerationConfig(backend="vllm", vllm={"model": "another"})
    assert GenerationConfig(backend="vllm", vllm={"tensor_parallel_size": 2}).vllm == {"tensor_parallel_size": 2}


def test_marks_are_found_without_listing_the_vocabulary(opening, monkeypatch):
    """It is asked for every answer; of 49,152 tokens a list takes 36 ms."""
    monkeypatch.setattr(type(opening.tokenizer), "get_vocab", lambda self: pytest.fail("the whole vocabulary"))
    assert ThoughtMarks.find(opening.tokenizer) is not None
