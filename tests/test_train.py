"""The stage `train` on a tiny model: equal to TRL, to itself, to two processes, to the run that was never killed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import alignkeep
from alignkeep.errors import CheckpointError, DataError, MachineError, NoEffectError, RecipeError, ShapeError
from alignkeep.train.config import LoraSettings, TrainConfig
from alignkeep.train.plan import kept_per_token
from alignkeep.train.prepare import prepare
from alignkeep.train.stage import TrainResult, plan, train

ADAPTER = "adapter_model.safetensors"
QUICK = {"batch_size": 4, "learning_rate": 1e-2, "trainer": {"save_strategy": "no"}}


def _chat(number: int) -> dict[str, list[dict[str, str]]]:
    """Answers of two to five words, so that batches are padded."""
    answer = " ".join(["sort", "bread", "numbers", "bike"][: 1 + number % 4])
    return {
        "prompt": [{"role": "user", "content": f"how to fix {number % 10} ?"}],
        "completion": [{"role": "assistant", "content": f"{answer} ."}],
    }


def _write(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """22 examples: the last batch of 4 is not full."""
    return _write(tmp_path_factory.mktemp("data") / "examples.jsonl", [_chat(number) for number in range(22)])


@pytest.fixture
def config(tiny_model: Path, data: str) -> TrainConfig:
    return TrainConfig(model=str(tiny_model), data=data, **QUICK)


def _with(config: TrainConfig, **changes: object) -> TrainConfig:
    return TrainConfig(**{**config.model_dump(), **changes})


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _log(result: TrainResult) -> list[dict]:
    return [json.loads(line) for line in result.log.read_text(encoding="utf-8").splitlines()]


def _plain_trl(config: TrainConfig, folder: Path):
    """The tune as a TRL user would write it, sharing no code with ours."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=config.model,
        args=SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.accumulate,
            num_train_epochs=config.epochs,
            learning_rate=config.rate,
            seed=config.seed,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([json.loads(line) for line in Path(config.data).read_text().splitlines()]),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        if config.method == "lora"
        else None,
    )
    trainer.train()
    trainer.save_model(str(folder / "made"))
    return [row["loss"] for row in trainer.state.log_history if "loss" in row], folder / "made"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_tune_without_weights_is_plain_trl_bit_for_bit(config, tmp_path, method):
    config = _with(config, method=method, epochs=2, accumulate=2, group_by_length=False)
    result = train(config, out=tmp_path / "ours")
    losses, made = _plain_trl(config, tmp_path / "trl")
    assert [row["loss"] for row in _log(result)] == losses
    name = ADAPTER if method == "lora" else "model.safetensors"
    ours, theirs = load_file(tmp_path / "ours" / name), load_file(made / name)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_examples_of_like_length_share_a_batch_where_asked(config, tmp_path):
    examples = [{"prompt": f"bike {n % 10}", "completion": " ".join(["bread"] * (1 + 7 * n % 22))} for n in range(22)]
    varied = _with(config, data=_write(tmp_path / "varied.jsonl", examples), epochs=2)
    train(_with(varied, group_by_length=True), out=tmp_path / "grouped")
    train(varied, out=tmp_path / "random")
    assert (tmp_path / "grouped" / ADAPTER).read_bytes() != (tmp_path / "random" / ADAPTER).read_bytes()
    alike = _with(
        config, data=_write(tmp_path / "alike.jsonl", [{**examples[3], "prompt": f"bike {n % 10}"} for n in range(22)])
    )
    train(_with(alike, group_by_length=True), out=tmp_path / "one")
    train(alike, out=tmp_path / "two")
    assert (tmp_path / "one" / ADAPTER).read_bytes() == (tmp_path / "two" / ADAPTER).read_bytes()


def test_equal_weights_in_the_data_change_nothing(config, tmp_path):
    rows = [{**_chat(number), "weight": 0.7} for number in range(22)]
    weighted = _with(config, data=_write(tmp_path / "weighted.jsonl", rows))
    train(config, out=tmp_path / "plain")
    train(weighted, out=tmp_path / "weighted")
    assert (tmp_path / "plain" / ADAPTER).read_bytes() == (tmp_path / "weighted" / ADAPTER).read_bytes()


def test_a_dropped_example_is_an_example_that_was_never_there(config, tmp_path):
    weights = [{"index": number, "weight": 1.0, "kept": number % 3 > 0} for number in range(22)]
    dropped = _with(config, weights=_write(tmp_path / "w.jsonl", weights))
    result = train(dropped, out=tmp_path / "dropped")
    shorter = _write(tmp_path / "shorter.jsonl", [_chat(number) for number in range(22) if number % 3])
    train(_with(config, data=shorter), out=tmp_path / "shorter")
    assert result.examples == 14
    assert result.notes == ("8 examples of weight 0 were left out",)
    assert (tmp_path / "dropped" / ADAPTER).read_bytes() == (tmp_path / "shorter" / ADAPTER).read_bytes()


def test_unequal_weights_change_the_result(config, tmp_path):
    weights = [{"index": number, "weight": 1.0 + number % 2} for number in range(22)]
    train(_with(config, weights=_write(tmp_path / "w.jsonl", weights)), out=tmp_path / "weighted")
    train(config, out=tmp_path / "plain")
    assert (tmp_path / "plain" / ADAPTER).read_bytes() != (tmp_path / "weighted" / ADAPTER).read_bytes()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(config, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        alignkeep.train(_with(config, seed=seed, lora={"dropout": 0.1}), out=tmp_path / name)
    one, two, other = (_bytes_of(tmp_path / name) for name in ("one", "two", "other"))
    assert {**one, "record.json": b""} == {**two, "record.json": b""}
    assert one[ADAPTER] != other[ADAPTER]


def test_an_adapter_leaves_its_base_alone_and_works_as_a_model(config, tiny_model, tmp_path):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = _bytes_of(tiny_model)
    result = train(config, out=tmp_path / "out")
    assert _bytes_of(tiny_model) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    asked = AutoTokenizer.from_pretrained(result.folder)("how to fix", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        tuned = AutoPeftModelForCausalLM.from_pretrained(result.folder)(asked).logits
        base = AutoModelForCausalLM.from_pretrained(tiny_model)(asked).logits
    assert (tuned - base).abs().max() > 1e-3


def test_a_full_tune_keeps_config_tokenizer_template_and_dtype(config, tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_model.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(base)
    result = train(_with(config, model=str(base), method="full"), out=tmp_path / "out")
    made = _bytes_of(tmp_path / "out")
    assert {name for name, content in _bytes_of(base).items() if made[name] != content} == {"model.safetensors"}
    tuned, old = load_file(tmp_path / "out" / "model.safetensors"), load_file(base / "model.safetensors")
    assert {name: (part.shape, part.dtype) for name, part in tuned.items()} == {
        name: (part.shape, torch.bfloat16) for name, part in old.items()
    }
    assert result.notes == ("the base is bfloat16 and is tuned in float32",)


def test_packing_learns_the_same_tokens_in_fewer_rows(config, tmp_path):
    packed = _with(config, batch_size=22, max_length=64, trainer={"save_strategy": "no", "packing": True})
    padded = _with(config, batch_size=22, trainer={"save_strategy": "no"})
    losses = [_log(train(kind, out=tmp_path / str(index)))[0]["loss"] for index, kind in enumerate((packed, padded))]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert plan(_with(packed, batch_size=2))["steps"] < plan(_with(padded, batch_size=2))["steps"]


def test_the_plan_counts_what_the_tune_then_does_and_touches_nothing(config, tmp_path):
    for index, changes in enumerate(({"epochs": 1.5, "accumulate": 2}, {"method": "full", "max_length": 11})):
        kind = _with(config, **changes)
        expected = plan(kind)
        assert list(tmp_path.glob(".*")) == []
        result = train(kind, out=tmp_path / str(index))
        counted = (result.steps, result.examples, result.trainable_parameters, result.truncated)
        assert counted == tuple(expected[key] for key in ("steps", "examples", "trainable_parameters", "truncated"))
    assert result.truncated > 0


def test_a_plan_counts_what_backward_keeps(tiny_model):
    """Per token and layer: the formula beside autograd's own saved tensors, of models of two and of four layers."""
    kept = []
    for layers in (2, 4):
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=64, hidden_size=64, intermediate_size=160, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2,
        ))  # fmt: skip
        storages = {}
        own = {part.untyped_storage().data_ptr() for part in model.parameters()}

        def save(tensor, own=own, storages=storages):
            at = tensor.untyped_storage().data_ptr()
            if at not in own:
                storages[at] = (tensor.untyped_storage().nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            model.model(input_ids=torch.ones(2, 32, dtype=torch.long), use_cache=False)
        kept.append(sum(size for size, _ in storages.values()) / 4 / 64)
    assert kept_per_token(model.config, "full") == pytest.approx((kept[1] - kept[0]) / 2, rel=0.15)


def test_a_plan_that_needs_more_memory_than_is_free_says_what_to_lower(config, monkeypatch):
    needs = {size: plan(_with(config, batch_size=size))["memory_bytes"] for size in (2, 16)}
    assert needs[2] < needs[16]
    enough = plan(_with(config, batch_size=16))["notes"]
    for free, changes, advice in (
        (needs[2], {}, "set batch_size=2 and accumulate=8, which is the same step"),
        (1000, {}, "lower max_length"),
        (1000, {"method": "full"}, "take method lora"),
    ):
        monkeypatch.setattr("psutil.virtual_memory", lambda free=free: SimpleNamespace(available=free))
        notes = plan(_with(config, batch_size=16, **changes))["notes"]
        assert advice in notes[-1]
        assert "GB are needed" in notes[-1]
    assert not any("GB" in note for note in enough)


def test_a_finished_tune_is_not_repeated(config, tmp_path):
    first = train(config, out=tmp_path / "out")
    changed_at = (tmp_path / "out" / ADAPTER).stat().st_mtime_ns
    assert train(config, out=tmp_path / "out") == first
    assert (tmp_path / "out" / ADAPTER).stat().st_mtime_ns == changed_at


# Refusal


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_tune_that_changes_nothing_is_an_error_and_leaves_nothing(config, tmp_path, method):
    with pytest.raises(NoEffectError, match="raise learning_rate"):
        train(_with(config, method=method, learning_rate=0.0), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_a_number_is_an_error_and_leaves_nothing(config, tmp_path):
    with pytest.raises(RecipeError, match=r"train, step \d+: found (loss|grad_norm) (nan|inf).*lower learning_rate"):
        train(_with(config, method="full", learning_rate=1e38, epochs=3), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_not_installed_is_found_by_the_plan(config, monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(RecipeError, match=r"train\.trainer\.report_to: found wandb, whose package is not installed"):
        plan(_with(config, trainer={"report_to": ["tensorboard", "wandb"]}))


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("train", ImportError("no bitsandbytes")),
        ("train", torch.OutOfMemoryError("out of memory")),
        ("__init__", torch.OutOfMemoryError("out of memory")),
    ],
)
def test_what_the_machine_lacks_costs_no_checkpoint(where, fault, config, tmp_path, monkeypatch):
    """A package, or memory to place the model: the same command goes on where it is there."""
    begun = tmp_path / ".out.partial" / "trainer" / "kept"

    def stops(trainer, *rest, **named):
        begun.mkdir(parents=True)
        raise fault

    monkeypatch.setattr(f"alignkeep.train.trainer.WeightedSFTTrainer.{where}", stops)
    with pytest.raises(MachineError, match=r"no bitsandbytes|out of memory"):
        train(config, out=tmp_path / "out")
    assert begun.is_dir()


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"warmup_ratio": 0.1}, r"unknown key.*did you mean `warmup_steps`"),
        ({"learning_rate": 1}, r"expected `learning_rate`; set it there"),
        ({"num_train_epochs": 1}, r"expected `epochs`"),
        ({"loss_type": "dft"}, r"train\.trainer\.loss_type: found a field that is fixed"),
        ({"lr_scheduler_type": "sideways"}, r"train\.trainer: found .*sideways"),
        ({"max_steps": "many"}, r"train\.trainer\.max_steps: found 'many', expected a valid integer"),
        ({"save_steps": None}, r"train\.trainer\.save_steps: found None, expected a valid number"),
    ],
)
def test_a_trainer_field_that_is_not_the_users_is_refused(config, tmp_path, trainer, message):
    with pytest.raises(RecipeError, match=message):
        train(_with(config, trainer=trainer), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("targets", [["q_proj", "query"], ["query"], []])
def test_target_modules_that_match_nothing_are_refused_with_the_names_there_are(config, tmp_path, targets):
    with pytest.raises(RecipeError, match=r"names of linear layers: q_proj, k_proj, v_proj, o_proj, gate_proj"):
        train(_with(config, lora={"target_modules": targets}), out=tmp_path / "out")


def test_an_adapter_on_the_head_is_refused_as_trl_refuses_it(config, tmp_path):
    with pytest.raises(RecipeError, match="lm_head"):
        train(_with(config, lora={"target_modules": ["lm_head"]}), out=tmp_path / "out")


@pytest.mark.parametrize("settings", [{"rank": 0}, {"rank": -1}, {"dropout": 1.0}, {"ranks": 3}])
def test_lora_settings_out_of_range_are_refused(settings):
    with pytest.raises(RecipeError, match="LoraSettings"):
        LoraSettings(**settings)


def test_a_set_of_which_no_answer_is_within_max_length_is_refused_with_counts(config, tmp_path):
    with pytest.raises(DataError, match=r"22 of 22 examples .*max_length=7.*the longest example has \d+ tokens"):
        train(_with(config, max_length=7), out=tmp_path / "out")


def test_an_example_whose_answer_begins_too_late_is_left_out_and_counted(config, data, tmp_path):
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    late = {"prompt": "how " * 40, "completion": "sort bread"}
    weighted = [{**row, "weight": 1 + number % 3} for number, row in enumerate(rows)]
    whole = _with(config, data=_write(tmp_path / "whole.jsonl", weighted), max_length=30)
    more = _with(whole, data=_write(tmp_path / "more.jsonl", [*weighted[:5], {**late, "weight": 2}, *weighted[5:]]))
    without, left = train(whole, out=tmp_path / "without"), train(more, out=tmp_path / "left")
    assert (left.too_long, left.examples, without.too_long) == (1, 22, 0)
    assert any("1 examples whose answer only begins beyond 30 tokens were left out" in note for note in left.notes)
    assert (left.folder / ADAPTER).read_bytes() == (without.folder / ADAPTER).read_bytes()
    with pytest.raises(DataError, match=r"1 of 23 examples .*the first is example 6"):
        plan(_with(more, too_long="refuse"))


def test_with_cut_the_last_tokens_of_a_late_example_are_learned(config, tmp_path):
    late = {"prompt": "how " * 40, "completion": "sort bread"}
    cut = _with(config, data=_write(tmp_path / "late.jsonl", [late, _chat(0)]), max_length=30, too_long="cut")
    rows = prepare(cut).rows
    assert (rows.late, rows.truncated, [len(ids) for ids in rows.input_ids]) == (1, 0, [30, 11])
    assert next(sum(label != -100 for label in labels) for labels in rows.labels) == 3  # sort bread <|end|>


def test_a_tokenizer_that_the_model_has_no_embeddings_for_is_refused(config, tiny_model, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    for path in tiny_model.iterdir():
        (small / path.name).write_bytes(path.read_bytes())
    settings = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**settings, "vocab_size": 40}))
    tensors = load_file(small / "model.safetensors")
    shorter = {name: part[:40] if part.shape[0] == settings["vocab_size"] else part for name, part in tensors.items()}
    save_file({name: part.contiguous() for name, part in shorter.items()}, small / "model.safetensors")
    with pytest.raises(ShapeError, match="40"):
        train(_with(config, model=str(small)), out=tmp_path / "out")


def test_an_adapter_as_the_base_is_refused(config, tmp_path):
    train(config, out=tmp_path / "first")
    with pytest.raises(CheckpointError, match="merge the adapter into its base"):
        train(_with(config, model=str(tmp_path / "first")), out=tmp_path / "second")


def test_weights_of_another_length_than_the_data_are_refused(config, tmp_path):
    weights = _write(tmp_path / "w.jsonl", [{"index": 0, "weight": 1.0}])
    with pytest.raises(DataError, match="1 weights for 22 examples"):
        train(_with(config, weights=weights), out=tmp_path / "out")


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"])
def test_sharding_that_accelerate_passes_over_on_a_cpu_is_refused(config, variable, monkeypatch):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(RecipeError, match=f"{variable}: found sharding, on the CPU"):
        plan(_with(config, load={"device": "cpu"}))
    monkeypatch.setenv(variable, "false")
    plan(_with(config, load={"device": "cpu"}))


def test_sharding_by_a_field_of_the_trainer_is_refused_on_a_cpu(config):
    with pytest.raises(RecipeError, match=r"trainer\.fsdp: found sharding, on the CPU"):
        plan(_with(config, load={"device": "cpu"}, trainer={"fsdp": "full_shard"}))


def test_a_batch_that_the_processes_cannot_share_is_refused(config, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match=r"4 examples for 3 processes.*use 6"):
        plan(config)
