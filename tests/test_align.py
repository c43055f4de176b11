"""The stage `align` on a tiny model: what it writes, what it measures, what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import RwkvConfig, RwkvForCausalLM

import alignkeep
import rewards
from alignkeep.align import stage
from alignkeep.align.config import AlignConfig, RewardSettings
from alignkeep.align.held_out import _gap
from alignkeep.align.prepare import prepare
from alignkeep.align.reward import PairwiseReward, load_reward
from alignkeep.align.scorer import Scorer
from alignkeep.align.stage import align, plan
from alignkeep.errors import CheckpointError, DataError, MachineError, NoEffectError, RecipeError
from alignkeep.models.config import LoadConfig
from alignkeep.models.loading import load_model
from command import run_command

ADAPTER = "adapter_model.safetensors"
WORDS = ["sort", "bread", "numbers", "bike"]


def _rows(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"how to fix {n % 10} {n // 10} ?", "reference": " ".join(WORDS[: 1 + n % 4]), "number": n}
        for n in range(first, first + count)
    ]


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> AlignConfig:
    return AlignConfig.model_validate(
        {
            "model": str(tiny_model), "data": _write(tmp_path / "data.jsonl", _rows(0, 12)),
            "reward": "rewards:overlap",
            "held_out": {"data": _write(tmp_path / "held_out.jsonl", _rows(12, 5)), "every": 2}, "batch_size": 4,
            "learning_rate": 1e-2, "sampling": {"group": 2, "max_new_tokens": 6}, "load": {"device": "cpu"},
            "trainer": {"save_strategy": "no"},
        }
    )  # fmt: skip


def _with(config: AlignConfig, **changes: object) -> AlignConfig:
    return AlignConfig(**{**config.model_dump(), **changes})


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_it_writes_an_adapter_that_loads_the_log_and_the_held_out_answers(config, tmp_path):
    result = align(config, out=tmp_path / "out")
    assert result.steps == 3
    assert (result.prompts, result.samples) == (12, 3 * 4 * 2)
    assert any(one.any() for name, one in load_file(tmp_path / "out" / ADAPTER).items() if "lora_B" in name)
    log = _lines(tmp_path / "out" / "training_log.jsonl")
    assert [row["step"] for row in log if "held_out/ras" in row] == [0, 2, 3]
    steps = [row for row in log if "loss" in row]
    names = ("imitation", "exploration", "regulariser", "reference_advantage", "groups_ahead", "wins", "unscored")
    assert all({f"grao/{name}" for name in names} <= row.keys() for row in steps)
    assert all(row["loss"] == pytest.approx(-sum(row[f"grao/{name}"] for name in names[:3]), abs=1e-4) for row in steps)
    held_out = _lines(tmp_path / "out" / "held_out.jsonl")
    assert [row["reference"] for row in held_out] == [row["reference"] for row in _rows(12, 5)]
    gaps = [row["after_gap"] for row in held_out]
    assert result.ras is not None
    assert (result.ras.value, result.ras.n) == (sum(gap > 0 for gap in gaps) / 5, 5)
    assert result.ras_or_tie is not None
    assert result.ras_or_tie.value == sum(gap >= 0 for gap in gaps) / 5
    signs = [(row["after_gap"] > row["before_gap"]) - (row["after_gap"] < row["before_gap"]) for row in held_out]
    assert result.nag is not None
    assert result.nag.value == pytest.approx(sum(signs) / 5)
    assert load_model(str(tmp_path / "out")).checkpoint.is_adapter


def test_a_model_that_was_better_before_the_end_is_said_to_have_been(config, tmp_path):
    """All five won at step 2, none at step 3. Not so where the best look is the last."""
    made = _with(config, reward=RewardSettings(spec="rewards:best_at_step_2"))
    (note,) = align(made, out=tmp_path / "fallen").notes
    assert note.startswith("it was better before: 100.0% at step 2, 0.0% at the end; end at trainer.max_steps=2, or ")
    bound = made.objective.model_copy(update={"bounded": True})
    (note,) = align(_with(made, objective=bound), out=tmp_path / "held").notes
    assert note.endswith("end at trainer.max_steps=2")
    at_two = made.trainer | {"max_steps": 2}
    assert align(_with(made, trainer=at_two), out=tmp_path / "risen").notes == ()


def test_the_reward_of_the_reference_is_taken_off_what_an_answer_gets(config, tmp_path):
    """An answer of no word of its reference has a reward of at most 0, its reference one of 1 to 4."""
    align(config, out=tmp_path / "out")
    for row in _lines(tmp_path / "out" / "held_out.jsonl"):
        wanted, words = set(row["reference"].split()), row["before"].split()
        reward = len(wanted & set(words)) - sum(word not in wanted for word in words) / 4
        assert row["before_gap"] == pytest.approx(reward - len(wanted))


def test_it_learns_to_say_what_the_references_say(config, tmp_path):
    """Of a random model the log-probability of the references rises, in nats a token: I of the term beta A_y I."""
    result = align(_with(config, epochs=20, held_out=None), out=tmp_path / "out")
    steps = _lines(tmp_path / "out" / "training_log.jsonl")
    nats = [row["grao/imitation"] / row["grao/reference_advantage"] / 0.5 for row in steps]
    assert sum(nats[-5:]) / 5 > sum(nats[:5]) / 5 + 0.4
    assert (result.ras, result.nag) == (None, None)


@pytest.mark.parametrize("method", ["grao", "grpo"])
def test_a_whole_model_comes_out_in_the_dtype_of_its_base(method, config, tiny_model, tmp_path):
    align(_with(config, method=method, lora=None), out=tmp_path / "out")
    base, made = (load_file(folder / "model.safetensors") for folder in (tiny_model, tmp_path / "out"))
    assert base.keys() == made.keys()
    assert all(made[name].dtype == base[name].dtype for name in base)
    assert any((made[name] != base[name]).any() for name in base)


def test_a_finished_run_is_not_done_again_and_another_setting_is_another_run(config, tmp_path):
    first = align(config, out=tmp_path / "out")
    before = (tmp_path / "out" / "record.json").stat().st_mtime_ns
    assert align(config, out=tmp_path / "out") == first
    assert (tmp_path / "out" / "record.json").stat().st_mtime_ns == before
    with pytest.raises(RecipeError, match="overwrite"):
        align(_with(config, seed=1), out=tmp_path / "out")


def test_the_same_seed_gives_the_same_bytes(config, tmp_path):
    for name in ("one", "two"):
        align(config, out=tmp_path / name)
    for file in (ADAPTER, "training_log.jsonl", "held_out.jsonl"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_a_learning_rate_of_0_changes_nothing_and_is_an_error(config, tmp_path):
    with pytest.raises(NoEffectError):
        align(_with(config, learning_rate=0), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["grao", "grpo"])
def test_rewards_that_never_tell_answers_apart_are_an_error(method, config, tmp_path):
    with pytest.raises(NoEffectError, match=r"align\.reward.*equal"):
        align(_with(config, method=method, reward="rewards:even"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rewards_that_told_answers_apart_once_are_enough(config):
    for name, method in (("grao/flat", "grao"), ("frac_reward_zero_std", "grpo")):
        settings = _with(config, method=method)
        stage._refuse_equal_rewards([{name: 1.0}, {name: 0.9}, {"loss": 0.0}], settings)
        stage._refuse_equal_rewards([], settings)
        with pytest.raises(NoEffectError, match="equal within every group"):
            stage._refuse_equal_rewards([{name: 1.0}, {name: 1.0}], settings)


def test_what_a_reward_function_does_is_part_of_the_run(config, tmp_path, monkeypatch):
    module = tmp_path / "ours" / "taste.py"
    module.parent.mkdir()
    monkeypatch.syspath_prepend(str(module.parent))
    module.write_text("def reward(*, completions, **_): return [len(one[-1]['content']) for one in completions]\n")
    config = _with(config, reward="taste:reward")
    align(config, out=tmp_path / "out")
    module.write_text("def reward(*, completions, **_): return [-len(one[-1]['content']) for one in completions]\n")
    with pytest.raises(RecipeError, match="overwrite"):
        align(config, out=tmp_path / "out")


def test_a_reward_function_gets_all_that_trl_gives_it_and_every_column(config, tmp_path):
    for name, first, count in (("data", 0, 12), ("held_out", 12, 5)):
        _write(
            tmp_path / f"{name}.jsonl",
            [row | {"tests": ["a", "b"][: row["number"] % 2]} for row in _rows(first, count)],
        )
    assert align(_with(config, reward="rewards:speaking"), out=tmp_path / "out").steps == 3


@pytest.mark.parametrize("column", ["image", "prompts", "completion_ids"])
def test_a_column_that_trl_takes_for_its_own_is_refused(column, config, tmp_path):
    data = _write(tmp_path / "other.jsonl", [row | {column: "x"} for row in _rows(0, 12)])
    with pytest.raises(DataError, match=f"a column `{column}`"):
        align(_with(config, data=data), out=tmp_path / "out")


@pytest.mark.parametrize("spec", ["judge:/nowhere", "scorer:/nowhere"])
def test_a_judge_that_is_not_there_is_found_by_the_plan(spec, config):
    with pytest.raises(CheckpointError, match="nowhere"):
        plan(_with(config, reward=spec))


def test_vllm_that_is_not_installed_is_found_by_the_plan(config):
    with pytest.raises(RecipeError, match="no vllm installed"):
        plan(_with(config, trainer={"use_vllm": True}))


def test_held_out_answers_that_are_cut_off_are_counted(config, tmp_path):
    result = align(_with(config, sampling={"group": 2, "max_new_tokens": 1}), out=tmp_path / "out")
    rows = _lines(tmp_path / "out" / "held_out.jsonl")
    assert result.held_out_cut == sum(bool(row["after"]) for row in rows)  # one token that is no end
    assert result.held_out_cut > 0


def test_a_look_is_taken_without_dropout(config, tmp_path):
    """The first look is the base's, whatever an adapter that is still 0 drops."""
    config = _with(config, trainer={"max_steps": 1, "disable_dropout": False}, learning_rate=1e-9)
    for name, dropout in (("plain", 0.0), ("dropping", 0.9)):
        align(_with(config, lora={"dropout": dropout}), out=tmp_path / name)
    plain, dropping = (_lines(tmp_path / name / "held_out.jsonl") for name in ("plain", "dropping"))
    assert [row["before"] for row in plain] == [row["before"] for row in dropping]


def test_gaps_that_rounding_leaves_are_ties():
    assert _gap(0.7, 0.7 + 5e-8) == 0
    assert _gap(0.7, 0.6) == pytest.approx(0.1)
    assert math.isnan(_gap(math.nan, 0.6))


def test_a_model_that_padding_leads_astray_is_refused(config, tiny_model, tmp_path):
    """TRL would sample from prompts that its state has read with their padding."""
    folder = tmp_path / "rwkv"
    shutil.copytree(tiny_model, folder, ignore=lambda _, names: [one for one in names if "model" in one])
    torch.manual_seed(0)
    RwkvForCausalLM(RwkvConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2)).save_pretrained(folder)
    with pytest.raises(
        RecipeError, match=r"align\.model: found RwkvForCausalLM, which answers a padded prompt otherwise"
    ):
        align(_with(config, model=str(folder)), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_plan_says_what_is_then_done_and_touches_nothing(config, tmp_path):
    found = plan(config)
    assert not (tmp_path / "out").exists()
    result = align(config, out=tmp_path / "out")
    assert (found["steps"], found["samples"], found["prompts"]) == (result.steps, result.samples, result.prompts)
    assert found["trainable_parameters"] == result.trainable_parameters
    assert found["memory_bytes"] > 0


def test_a_judge_that_falls_silent_ends_the_run_and_the_same_command_goes_on_where_it_was(config, tmp_path):
    """Two calls for the look at step 0, one for step 1, and the one for step 2 finds nobody there."""
    rewards.calls.clear()
    config = _with(config, reward="rewards:flaky", trainer={"save_steps": 1})
    with pytest.raises(MachineError, match="none could be scored"):
        align(config, out=tmp_path / "out")
    assert (tmp_path / ".out.partial" / "trainer" / "checkpoint-1" / "complete").exists()
    result, whole = (align(config, out=tmp_path / name) for name in ("out", "whole"))
    assert result.steps == 3
    for file in (ADAPTER, "training_log.jsonl", "held_out.jsonl"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    assert result.nag == whole.nag


@pytest.mark.parametrize(
    ("first", "error", "said"), [(1, DataError, "KeyError"), (-1, MachineError, "ConnectionError")]
)
def test_a_reward_that_fails_midway_costs_nothing_that_was_learned(first, error, said, config, tmp_path):
    rewards.calls[:] = [-1] if first < 0 else []
    config = _with(config, reward="rewards:torn", trainer={"save_steps": 1})
    with pytest.raises(error, match=said):
        align(config, out=tmp_path / "out")
    assert (tmp_path / ".out.partial" / "trainer" / "checkpoint-1" / "complete").exists()
    assert align(config, out=tmp_path / "out").steps == 3


@pytest.mark.parametrize("method", ["grao", "grpo"])
def test_a_judge_that_says_nothing_of_any_sample_is_the_machines_error(method, config, tmp_path):
    with pytest.raises(MachineError, match="none could be scored"):
        align(_with(config, reward="rewards:Mute", method=method, held_out=None), out=tmp_path / "out")


def test_a_run_without_one_scored_reference_is_no_grao(config, tmp_path):
    """Three steps of two prompts: too few to be ended on the way."""
    changes = {
        "reward": "rewards:of_samples_alone", "held_out": None, "batch_size": 2, "trainer": {"max_steps": 3}
    }  # fmt: skip
    with pytest.raises(NoEffectError, match="not one reference that could be scored"):
        align(_with(config, **changes), out=tmp_path / "out")


def test_a_judge_that_is_never_there_is_the_machines_error(config, tmp_path):
    with pytest.raises(MachineError, match="none could be scored"):
        align(_with(config, reward="rewards:unscored"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("rewards:endless", DataError, "the reward inf"),
        ("rewards:short", DataError, "1 rewards, of 5 answers"),
        ("rewards:faulty", DataError, "KeyError"),
        ("rewards:Shouting", DataError, r"the verdict 2\.0"),
        ("rewards:nothing", RecipeError, "nothing"),
        ("rewards:constant", RecipeError, "a reward function"),
        ("nowhere:reward", RecipeError, "nowhere"),
        ("reward", RecipeError, "package.module:object"),
        ("judge:https://host/v1", RecipeError, "name the model"),
        ("judge:https://user:secret@host/v1#m", RecipeError, "credentials"),
    ],
)
def test_a_faulty_reward_is_named_in_one_line(spec, error, said, config, tmp_path):
    with pytest.raises(error, match=said) as caught:
        align(_with(config, reward={"spec": spec}), out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spec", ["rewards:Longer", "rewards:waiting"])
def test_judges_of_pairs_and_functions_that_wait_are_rewards_too(spec, config, tmp_path):
    result = align(_with(config, reward={"spec": spec}), out=tmp_path / "out")
    rows = _lines(tmp_path / "out" / "held_out.jsonl")
    if spec == "rewards:Longer":
        assert {row["after_gap"] for row in rows} <= {-1, 0, 1}
    assert result.ras is not None
    assert result.ras.value == sum(len(row["after"]) > len(row["reference"]) for row in rows) / 5


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "how to fix ?"}], "`reference`"),
        ([{"prompt": "how to fix ?", "reference": " "}], "empty text"),
        ([{"reference": "sort"}], "`prompt`"),
        ([{"prompt": "how to fix ?", "reference": "sort"}], "1 prompts"),
        ([{"prompt": "how " * 300, "reference": "sort"}] * 4, "context of 256"),
        ([{"prompt": f"fix {n}", "reference": "sort", "odd": n if n else "text"} for n in range(4)], "several types"),
    ],
)
def test_unusable_data_is_refused_before_the_model_is_loaded(rows, said, config, tmp_path):
    data = _write(tmp_path / "other.jsonl", rows)
    with pytest.raises((DataError, RecipeError), match=said):
        align(_with(config, data=data, held_out=None), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_held_out_prompts_that_are_learned_from_are_refused_with_their_number(config, tmp_path):
    held_out = {"data": _write(tmp_path / "mixed.jsonl", _rows(10, 5))}
    with pytest.raises(DataError, match="2 of 5 prompts"):
        align(_with(config, held_out=held_out), out=tmp_path / "out")


def test_of_many_held_out_prompts_some_are_drawn_with_the_seed(config):
    config = _with(config, held_out={"data": config.held_out.data, "limit": 3})
    drawn = [prepare(_with(config, seed=seed)).held_out for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 3


def test_chosen_and_completion_stand_in_for_a_reference(config, tmp_path):
    rows = [
        {"prompt": f"fix {n}", ("chosen" if n % 2 else "completion"): [{"role": "assistant", "content": "sort bread"}]}
        for n in range(4)
    ]
    found = prepare(_with(config, data=_write(tmp_path / "chosen.jsonl", rows), held_out=None))
    assert found.data["reference"] == ["sort bread"] * 4


def test_a_held_out_prompt_without_reference_is_refused_even_where_learning_needs_none(config, tmp_path):
    rows = [{"prompt": f"fix {n}"} for n in range(4)]
    held_out = {"data": _write(tmp_path / "bare.jsonl", rows)}
    with pytest.raises(DataError, match="`reference`"):
        prepare(_with(config, method="grpo", held_out=held_out))


def test_references_beyond_the_limit_are_counted_and_the_trainer_has_the_limit(config):
    found = prepare(_with(config, sampling={"group": 2, "max_new_tokens": 3}, held_out=None))
    assert found.cut == 6  # of 12 references of one to four words those of three and four, with their end
    assert found.arguments.max_completion_length == found.new_tokens == 3
    assert any("6 references were cut off" in note for note in found.notes)


def test_a_longest_prompt_that_leaves_others_without_room_is_refused(config, tmp_path):
    long = {"prompt": "fix " * 230, "reference": "sort"}
    data = _write(tmp_path / "long.jsonl", [*_rows(0, 11), long])
    with pytest.raises(DataError, match="median"):
        prepare(_with(config, data=data, sampling={"group": 2, "max_new_tokens": 100}))
    held_out = {"data": _write(tmp_path / "held.jsonl", [long])}
    with pytest.raises(DataError, match="median"):
        prepare(_with(config, held_out=held_out, sampling={"group": 2, "max_new_tokens": 100}))


def test_answers_have_the_room_that_the_longest_prompt_leaves_and_it_is_said(config):
    found = prepare(_with(config, sampling={"group": 2, "max_new_tokens": 4000}))
    assert found.new_tokens == 256 - found.longest_prompt
    assert any("at most" in note for note in found.notes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trainer": {"beta": 0.1}}, "beta"),
        ({"trainer": {"num_generations": 4}}, "sampling.group"),
        ({"trainer": {"log_completions": True}}, "log_completions"),
        ({"trainer": {"nonsense": 1}}, "unknown key"),
        ({"trainer": {"max_steps": [3]}}, r"align\.trainer\.max_steps: found \[3\], expected a valid integer"),
        ({"accumulate": 3}, "divisor"),
        ({"lora": {"target_modules": ["nothing"]}}, "align.lora.target_modules"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes, said, config, tmp_path):
    with pytest.raises(RecipeError, match=said):
        align(_with(config, **changes), out=tmp_path / "out")


def test_a_group_of_one_and_strengths_of_0_are_refused(config):
    with pytest.raises(RecipeError, match="greater than or equal to 2"):
        _with(config, sampling={"group": 1})
    with pytest.raises(NoEffectError, match="all 0"):
        _with(config, objective={"imitation": 0, "exploration": 0, "regulariser": 0})


def test_an_adapter_is_no_base(config, tmp_path):
    align(config, out=tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"align\.model.*an adapter"):
        align(_with(config, model=str(tmp_path / "out")), out=tmp_path / "again")


def test_a_reward_model_compares_by_the_sign_of_its_scores(tiny_model, tmp_path, monkeypatch):
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    settings = LlamaConfig.from_pretrained(tiny_model, num_labels=1)
    model = LlamaForSequenceClassification(settings).eval()
    model.save_pretrained(tmp_path / "scorer")
    tokenizer.save_pretrained(tmp_path / "scorer")
    answers, references = ["sort bread", "bike", "bike"], ["numbers", "bread", "bike"]

    def scored(text: str) -> float:
        ids = tokenizer(f"<|user|> how ? <|end|> <|assistant|> {text} <|end|>", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return model(ids).logits.item()

    gaps = [scored(one) - scored(other) for one, other in zip(answers, references, strict=True)]
    prompts = [[{"role": "user", "content": "how ?"}]] * 3
    completions = [[{"role": "assistant", "content": text}] for text in answers]
    for margin in (0.0, max(map(abs, gaps)) + 1e-3):
        spec = RewardSettings(spec=f"scorer:{tmp_path / 'scorer'}", tie_margin=margin)
        reward = load_reward(spec, LoadConfig(device="cpu"), tmp_path / "none")
        expected = [0.0 if abs(gap) <= margin else float((gap > 0) - (gap < 0)) for gap in gaps]
        assert reward(prompts=prompts, completions=completions, reference=references) == expected
    assert expected == [0, 0, 0]
    # It remembers no more than so many texts, and is right with any number of them.
    scorer = Scorer(str(tmp_path / "scorer"), LoadConfig(device="cpu"), 0.0)
    monkeypatch.setattr("alignkeep.align.scorer._REMEMBERED", 3)
    for _ in range(2):
        found = PairwiseReward(scorer)(prompts=prompts, completions=completions, reference=references)
        assert found == [float((gap > 0) - (gap < 0)) for gap in gaps]
        assert len(scorer._scores) == 3
    reward = load_reward(RewardSettings(spec=f"scorer:{tiny_model}"), LoadConfig(device="cpu"), tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"no tensor score\.weight"):  # a language model, its head made up
        reward(prompts=prompts, completions=completions, reference=references)


def test_the_verb_says_what_it_found_and_gives_it_as_json(config, tmp_path):
    settings = {**config.model_dump(mode="json"), "reward": "testbed"}
    refusal = {"reference": "sorry no", "expected": "sorry", "kind": "harmful"}
    rows = [row | refusal for row in _rows(0, 17)]
    settings["data"] = _write(tmp_path / "data.jsonl", rows[:12])
    settings["held_out"]["data"] = _write(tmp_path / "held_out.jsonl", rows[12:])
    (tmp_path / "align.yaml").write_text(json.dumps(settings), encoding="utf-8")
    asked = ("align", "--config", tmp_path / "align.yaml", "--out", tmp_path / "out")
    done = run_command(*asked, "--json", folder=tmp_path)
    assert done.code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["steps"] == 3
    assert facts["ras"]["n"] == 5
    assert "better than the reference" in run_command(*asked, folder=tmp_path).stdout
    missing = run_command("align", "--out", tmp_path / "none", folder=tmp_path)
    assert missing.code == 2
    assert "model and data and reward" in missing.stderr


def test_the_room_is_called_from_python(config, tmp_path):
    result = alignkeep.align(config, out=tmp_path / "out")
    assert result.folder == tmp_path / "out"
    from alignkeep.align import GRAOConfig, GRAOTrainer, PairJudge

    assert GRAOTrainer.__name__ == "GRAOTrainer"
    assert GRAOConfig.__name__ == "GRAOConfig"
    assert PairJudge is not None
