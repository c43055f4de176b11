"""What an alignment does not do without a word: prompts and ends that differ between samples and looks, settings that
nothing reads, judges asked for nothing, modules that cannot be imported."""

# ruff: noqa: F811  a fixture of another file
from __future__ import annotations

import sys
from typing import Any

import pytest

import rewards
from alignkeep.align.aligning import JUDGEMENTS
from alignkeep.align.config import AlignConfig, RewardSettings
from alignkeep.align.reward import PairwiseReward, check_reward, fingerprint_reward, load_reward
from alignkeep.align.stage import _gather_judgements, align, plan
from alignkeep.align.trainer import GRAOTrainer
from alignkeep.checkpoint.parts import append_rows, recover_rows
from alignkeep.errors import DataError, NoEffectError, RecipeError
from alignkeep.judging.pairs import Comparison
from alignkeep.models import generation
from alignkeep.models.config import LoadConfig
from alignkeep.models.loading import load_model, load_tokenizer
from command import run_command
from conftest import build_tiny_model
from test_align import WORDS, _lines, _rows, _with, _write, config  # noqa: F401  a fixture
from test_align_trainer import TURN


class _StopError(Exception):
    pass


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[GRAOTrainer]:
    """Those that would have trained."""
    seen: list[GRAOTrainer] = []

    def train(trainer: GRAOTrainer, **options: object) -> None:
        seen.append(trainer)
        raise _StopError

    monkeypatch.setattr(GRAOTrainer, "train", train)
    return seen


def test_a_look_asks_as_samples_are_asked(config, tmp_path, monkeypatch):
    quiet = "{% if add_generation_prompt %}<|assistant|> {% if quiet %}no yes {% endif %}{% endif %}"
    thinking = TURN.replace(
        "{{ m['content'] }}", "{% if m['role'] == 'assistant' %}no yes {% endif %}{{ m['content'] }}"
    )
    folder = build_tiny_model(tmp_path / "model", chat_template=thinking + quiet)
    asked: list[list[int]] = []
    encode = generation.encode_prompt
    monkeypatch.setattr(generation, "encode_prompt", lambda *given: asked.append(encode(*given)) or asked[-1])
    trainer = {"save_strategy": "no", "max_steps": 1, "chat_template_kwargs": {"quiet": True}}
    align(_with(config, model=str(folder), trainer=trainer), out=tmp_path / "out")
    tokenizer: Any = load_tokenizer(str(folder), LoadConfig(device="cpu"))
    expected = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, quiet=True, tokenize=False
        )
        for row in _rows(12, 5)
    ]
    assert expected[0].endswith("<|assistant|> no yes ")
    assert asked[:5] == [tokenizer(one, add_special_tokens=False)["input_ids"] for one in expected]


def test_samples_references_and_looks_end_alike(config, trainers, tmp_path):
    template = TURN.replace("<|end|>", "<s>") + "{% if add_generation_prompt %}<|assistant|> {% endif %}"
    folder = build_tiny_model(tmp_path / "model", chat_template=template)
    with pytest.raises(_StopError):
        align(_with(config, model=str(folder)), out=tmp_path / "out")
    (trainer,) = trainers
    loaded = load_model(str(folder), LoadConfig(device="cpu"))
    tokenizer: Any = loaded.tokenizer
    assert sorted(trainer.eos_token_ids) == generation.stop_ids(loaded)
    assert tokenizer.bos_token_id in trainer.eos_token_ids
    row = {"prompt": [{"role": "user", "content": "how to fix 1 ?"}], "reference": "sort bread"}
    assert trainer._tokens_of(row) == tokenizer("sort bread <s>")["input_ids"]


@pytest.mark.parametrize(
    ("reward", "name"),
    [
        ({"spec": "rewards:overlap", "both_orders": True}, "both_orders"),
        ({"spec": "testbed", "criterion": "harmless"}, "criterion"),
        ({"spec": "judge:model", "tie_margin": 0.5}, "tie_margin"),
        ({"spec": "judge:model", "retries": 2}, "retries"),
        ({"spec": "judge:model", "body": {"top_p": 1}}, "body"),
        ({"spec": "scorer:model", "max_tokens": 9}, "max_tokens"),
    ],
)
def test_a_setting_that_this_reward_does_not_read_is_refused(reward, name):
    with pytest.raises(NoEffectError, match=rf"align\.reward\.{name}: found .* with {reward['spec']}"):
        RewardSettings(**reward)


def test_settings_that_a_reward_reads_are_taken():
    RewardSettings(spec="judge:model", criterion="harmless", both_orders=True, max_tokens=9)
    RewardSettings(spec="judge:https://host/v1#m", timeout=9, retries=0, concurrency=1, body={"max_tokens": None})
    RewardSettings(spec="scorer:model", tie_margin=0.5)
    with pytest.raises(RecipeError, match="does not fill itself, unlike messages"):
        RewardSettings(spec="judge:https://host/v1#m", body={"messages": []})


def test_strengths_of_grao_under_grpo_are_refused(config):
    with pytest.raises(NoEffectError, match="method grpo"):
        AlignConfig(**{**config.model_dump(), "method": "grpo", "objective": {"imitation": 5}})


@pytest.mark.parametrize("method", ["grao", "grpo"])
@pytest.mark.parametrize(
    "trainer",
    [
        {"num_iterations": 2}, {"sync_ref_model": True}, {"eval_steps": 3}, {"num_generations_eval": 4},
        {"label_smoothing_factor": 0.1}, {"dataloader_drop_last": True}, {"data_seed": 3},
        {"train_sampling_strategy": "sequential"}, {"max_tool_calling_iterations": 2},
        {"generation_kwargs": {"temperature": 5.0}}, {"generation_kwargs": '{"n": 3}'},
        {"generation_kwargs": {"max_new_tokens": 3}},
    ],
)  # fmt: skip
def test_trainer_fields_that_would_do_nothing_or_another_thing_are_refused(method, trainer, config):
    (name,) = trainer
    with pytest.raises(RecipeError, match=rf"align\.trainer\.{name}"):
        plan(_with(config, method=method, trainer=trainer))


def test_a_word_that_yaml_takes_for_false_is_a_strategy(config):
    assert plan(_with(config, trainer={"save_strategy": False}))["steps"] == 3


@pytest.mark.parametrize("backend", ["transfomers", "on"])
def test_a_backend_is_one_of_two(backend, config, tmp_path):
    command = ["align", "--model", config.model, "--data", config.data, "--reward", "rewards:even"]
    ended = run_command(*command, "--backend", backend, "--out", tmp_path / "out", "--dry-run", folder=tmp_path)
    assert ended.code == 1
    assert ended.stderr.strip() == f"error: --backend: found {backend}, expected transformers or vllm; name one of them"


def test_an_answer_that_is_its_reference_is_a_tie_and_no_judge_is_asked():
    asked: list[str] = []

    class First:
        """Has a liking for whatever it is shown."""

        def compare(self, pairs: list[Comparison]) -> list[float | None]:
            asked.extend(pair.answer for pair in pairs)
            return [1.0] * len(pairs)

    reward = PairwiseReward(First())
    given = {"prompts": ["how?"] * 3, "completions": ["a", "b", "c"], "reference": ["a", "x", "c"]}
    assert reward(**given) == [0.0, 1.0, 0.0]
    assert asked == ["b"]
    assert reward(prompts=["how?"], completions=["a"], reference=["a"]) == [0.0]
    assert asked == ["b"]


def test_a_judge_of_too_few_words_is_refused():
    with pytest.raises(DataError, match="0 verdicts on 1 pairs"):
        PairwiseReward(rewards.Absent())(prompts=["how?"], completions=["a"], reference=["b"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("print(undefined)\n", "NameError"),
        ("open('/nonexistent/prompts.txt')\n", "FileNotFoundError"),
        (
            "class reward:\n    def __init__(self, path):\n        pass\n    def compare(self, pairs):\n        pass\n",
            "TypeError",
        ),
    ],
)
def test_whatever_the_users_module_raises_names_the_reward(text, said, tmp_path, monkeypatch):
    name = f"reward_of_{said.lower()}"
    (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError, match=rf"align\.reward\.spec: found '{name}:reward' \({said}"):
        load_reward(RewardSettings(spec=f"{name}:reward"), LoadConfig(device="cpu"), tmp_path / "none")
    sys.modules.pop(name, None)


def test_a_class_is_made_once_when_it_is_needed(tmp_path, monkeypatch):
    settings = RewardSettings(spec="rewards:Counted")
    monkeypatch.setattr(rewards.Counted, "made", 0)
    check_reward(settings)
    fingerprint_reward(settings)
    assert rewards.Counted.made == 0
    load_reward(settings, LoadConfig(device="cpu"), tmp_path / "none")
    assert rewards.Counted.made == 1


@pytest.mark.parametrize("column", ["prompts", "trainer_state", "image"])
@pytest.mark.parametrize("where", ["data", "held_out"])
def test_a_column_of_trls_own_is_found_by_the_plan_in_either_file(column, where, config, tmp_path):
    first, count = (0, 12) if where == "data" else (12, 5)
    file = _write(tmp_path / "other.jsonl", [{**row, column: "x"} for row in _rows(first, count)])
    changes: dict[str, object] = {"data": file} if where == "data" else {"held_out": {"data": file}}
    with pytest.raises(DataError, match=rf"other\.jsonl: found a column `{column}`"):
        plan(_with(config, **changes))


def test_columns_of_several_types_are_found_by_the_plan(config, tmp_path):
    rows = [{**row, "odd": n if n else "text"} for n, row in enumerate(_rows(0, 12))]
    with pytest.raises(DataError, match="several types"):
        plan(_with(config, data=_write(tmp_path / "other.jsonl", rows)))


def test_what_was_said_to_other_processes_is_kept(tmp_path):
    for rank, file in enumerate((JUDGEMENTS, f"{JUDGEMENTS}.1", f"{JUDGEMENTS}.2")):
        append_rows(tmp_path / file, [{"key": str(rank), "reply": WORDS[rank]}])
    _gather_judgements(tmp_path)
    assert [row["reply"] for row in recover_rows(tmp_path / JUDGEMENTS)] == WORDS[:3]
    assert [file.name for file in tmp_path.iterdir()] == [JUDGEMENTS]


def test_a_judges_folder_is_not_written_over(config, tiny_model, tmp_path):
    judge = build_tiny_model(tmp_path / "judge")
    with pytest.raises(RecipeError, match="inputs are never written to"):
        align(_with(config, reward={"spec": f"judge:{judge}"}), out=judge, overwrite=True)
    assert (judge / "model.safetensors").exists()


def test_the_log_has_the_last_step_however_seldom_it_is_written(config, tmp_path):
    align(_with(config, trainer={"save_strategy": "no", "logging_steps": 1000}), out=tmp_path / "out")
    assert [row["step"] for row in _lines(tmp_path / "out" / "training_log.jsonl") if "loss" in row] == [3]


def test_the_plan_counts_a_reference_for_every_prompt_of_a_pass(config):
    """Twice as many references need more memory; grpo has none."""
    found = {
        (method, group): plan(_with(config, method=method, held_out=None, sampling={"group": group}))["memory_bytes"]
        for method in ("grao", "grpo") for group in (2, 4)
    }  # fmt: skip
    rest = {group: found["grao", group] - found["grpo", group] for group in (2, 4)}
    assert rest[2] == rest[4] > 0


def test_an_apples_device_is_refused_where_there_is_none(config):
    import torch

    if torch.backends.mps.is_available():
        assert plan(_with(config, load={"device": "mps"}))["steps"] == 3
        return
    with pytest.raises(RecipeError, match=r"load\.device: found mps"):
        plan(_with(config, load={"device": "mps"}))
